"use strict";

// Charts drawn by uPlot, for the report's page and the dashboard alike. A chart is a plain object:
//   {title, x_label, y_label, curves: [{name, x, y, style, hue, faint}], log_x, log_y, marks: [[x, label]]}
// `style` is line, dashed or points; a null in y is a gap; `hue` picks a colour (else the curve's own position does).
const fathomCharts = (() => {
  const HUES = 8;
  const HEIGHT = 280;
  const FEW_POINTS = 60; // a line of so few gets a dot on each
  const { format, trim, align, logTicks } = chartNumbers;
  const live = new Set();

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** Whether a range is too narrow for ticks of any use: a constant, or one that rounding makes look like a curve. */
  const isFlat = (min, max) => !(max - min > 1e-9 * Math.max(Math.abs(min), Math.abs(max)));

  function widened(min, max, log) {
    if (log) return [min / 1.2, max * 1.2];
    const room = 0.05 * Math.max(Math.abs(min), Math.abs(max)) || 1;
    return [min - room, max + room];
  }

  const ranges = {
    x: (log) => (u, min, max) => {
      for (const [at] of u.fathomMarks) {
        if (u.fathomZoom) break;
        if (Number.isFinite(at) && !(log && at <= 0)) [min, max] = [Math.min(min ?? at, at), Math.max(max ?? at, at)];
      }
      if (min == null) return log ? [1, 10] : [0, 1];
      return isFlat(min, max) ? widened(min, max, log) : [min, max];
    },
    y: (log) => (u, min, max) => {
      if (min == null) return log ? [1, 10] : [0, 1];
      if (isFlat(min, max)) return widened(min, max, log);
      if (log) return [min / (max / min) ** 0.06, max * (max / min) ** 0.06];
      const room = (max - min) * 0.06;
      return [min >= 0 && min - room < 0 ? 0 : min - room, max <= 0 && max + room > 0 ? 0 : max + room];
    },
  };

  function axis(scale, log, label) {
    const across = scale === "x";
    return {
      scale,
      label: across ? label : undefined,
      labelSize: 22,
      labelFont: "13px system-ui, sans-serif",
      font: "12px system-ui, sans-serif",
      stroke: () => css("--chart-text"),
      grid: { stroke: () => css("--chart-grid"), width: 1 },
      ticks: { stroke: () => css("--chart-grid"), width: 1, size: 5 },
      space: across ? 64 : 36,
      size: across ? 34 : (u, values) => 16 + Math.max(0, ...(values || []).map((v) => (v || "").length)) * 7,
      splits: log
        ? (u, i, min, max) => logTicks(min, max, Math.max(2, Math.floor((across ? u.width : u.height) / (across ? 80 : 45))))
        : undefined,
      filter: log ? (u, ticks) => ticks : undefined,
      values: (u, ticks) => {
        const steps = ticks.slice(1).map((t, i) => t - ticks[i]).filter((d) => d > 0);
        const even = !log || ticks.at(-1) / ticks[0] < 3;
        return ticks.map((t) => (even && steps.length ? format(t, Math.min(...steps)) : trim(format(t))));
      },
    };
  }

  function colour(curve, index) {
    const base = css(`--hue-${(curve.hue ?? index) % HUES}`) || "#1668b3";
    return curve.faint ? base + "48" : base;
  }

  function series(curve, index, count) {
    const points = curve.style === "points";
    const stroke = () => colour(curve, index);
    return {
      label: curve.name,
      class: curve.faint ? "faint" : undefined,
      scale: "y",
      stroke,
      width: curve.faint ? 1 : 1.8,
      dash: curve.style === "dashed" ? [7, 5] : undefined,
      paths: points ? () => null : undefined,
      points: { show: points || (count <= FEW_POINTS && !curve.faint && curve.style !== "dashed"), size: points ? 8 : 5, stroke, fill: stroke },
      value: (u, v) => (v == null ? "" : format(v)),
    };
  }

  /** The nearest point that a curve has to where the pointer is. */
  function nearest(u, s, hovered) {
    const values = u.data[s];
    if (s === 0 || values[hovered] != null) return hovered;
    for (let away = 1; away < values.length; away++) {
      for (const i of [hovered - away, hovered + away]) {
        if (values[i] != null) return Math.abs(u.valToPos(u.data[0][i], "x") - u.valToPos(u.data[0][hovered], "x")) < 24 ? i : null;
      }
      if (hovered - away < 0 && hovered + away >= values.length) break;
    }
    return null;
  }

  function drawMarks(u) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
    ctx.fillStyle = css("--chart-text");
    ctx.strokeStyle = css("--chart-mark");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
    ctx.textBaseline = "top";
    ctx.textAlign = "left";
    const taken = [];
    for (const [at, label] of u.fathomMarks) {
      if (!(at >= u.scales.x.min && at <= u.scales.x.max)) continue;
      const x = Math.round(u.valToPos(at, "x", true));
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
      const width = ctx.measureText(label).width;
      const gap = 4 * devicePixelRatio;
      const left = x + gap + width > bbox.left + bbox.width ? Math.max(bbox.left, x - gap - width) : x + gap;
      let row = 0;
      while (taken.some((t) => t.row === row && left < t.right + gap && left + width + gap > t.left)) row++;
      taken.push({ row, left, right: left + width });
      ctx.fillText(label, left, bbox.top + gap + row * 14 * devicePixelRatio);
    }
    ctx.restore();
  }

  /** A smoothed curve that is switched off in the legend takes the faint one beneath it along. */
  function toggleShadow(u, chart, index, change) {
    const curve = chart.curves[index - 1];
    if (change.show == null || !curve || curve.faint) return;
    chart.curves.forEach((other, i) => {
      if (other.faint && other.hue === curve.hue) u.setSeries(i + 1, { show: change.show }, false);
    });
  }

  const signature = (chart) =>
    JSON.stringify([chart.log_x, chart.log_y, chart.x_label, chart.y_label, chart.curves.map((c) => [c.name, c.style, c.hue, c.faint])]);

  class Drawing {
    constructor(figure, chart, { sync, height } = {}) {
      this.figure = figure;
      this.sync = sync;
      this.height = height || HEIGHT;
      figure.replaceChildren();
      const caption = figure.appendChild(document.createElement("figcaption"));
      this.title = caption.appendChild(document.createElement("b"));
      this.unit = caption.appendChild(document.createElement("span"));
      this.reset = caption.appendChild(document.createElement("button"));
      this.reset.type = "button";
      this.reset.textContent = "reset zoom";
      this.reset.hidden = true;
      this.reset.onclick = () => this.resetZooms();
      this.place = figure.appendChild(document.createElement("div"));
      this.place.className = "plot";
      this.watcher = new ResizeObserver(() => this.fit());
      this.update(chart);
      this.watcher.observe(this.place);
      live.add(this);
    }

    update(chart) {
      this.title.textContent = chart.title;
      this.unit.textContent = chart.y_label;
      this.place.setAttribute("role", "img");
      this.place.setAttribute("aria-label", `${chart.title}: ${chart.y_label} over ${chart.x_label}, ${chart.curves.map((c) => c.name).join(", ")}`);
      const same = this.plot && this.shown === signature(chart);
      this.chart = chart;
      if (same) {
        const { data } = align(chart);
        this.plot.fathomMarks = chart.marks || [];
        this.plot.setData(data, !this.zoomed);
        if (this.zoomed) this.plot.redraw(true, true);
      } else {
        this.make();
      }
    }

    make() {
      const chart = this.chart;
      const kept = this.zoomed && this.plot ? { min: this.plot.scales.x.min, max: this.plot.scales.x.max } : null;
      const scaleKept = kept && this.shownX === chart.x_label + chart.log_x ? kept : null;
      this.plot?.destroy();
      this.shown = signature(chart);
      this.shownX = chart.x_label + chart.log_x;
      this.setZoomed(false);
      const { data, lengths } = align(chart);
      const options = {
        width: Math.max(this.place.clientWidth, 200),
        height: this.height,
        padding: [10, 14, 0, 4],
        scales: {
          x: { time: false, distr: chart.log_x ? 3 : 1, range: ranges.x(chart.log_x) },
          y: { distr: chart.log_y ? 3 : 1, range: ranges.y(chart.log_y) },
        },
        axes: [axis("x", chart.log_x, chart.x_label), axis("y", chart.log_y, chart.y_label)],
        series: [{ label: chart.x_label, value: (u, v) => (v == null ? "" : format(v)) }, ...chart.curves.map((c, i) => series(c, i, lengths[i]))],
        legend: { live: true, markers: { width: 3 } },
        cursor: { dataIdx: nearest, drag: { x: true, y: false, uni: 8 }, sync: this.sync ? { key: this.sync, scales: ["x", null] } : undefined, y: false },
        hooks: {
          draw: [drawMarks],
          setSeries: [(u, index, change) => toggleShadow(u, chart, index, change)],
          setSelect: [(u) => { if (u.select.width > 0) this.setZoomed(true); }],
        },
      };
      this.plot = new uPlot(options, null, (u, ready) => {
        u.fathomMarks = chart.marks || [];
        u.fathomZoom = false;
        this.place.replaceChildren(u.root);
        ready();
      });
      this.plot.over.addEventListener("dblclick", () => this.resetZooms());
      this.plot.setData(data);
      if (scaleKept) {
        this.setZoomed(true);
        this.plot.setScale("x", scaleKept);
      }
    }

    setZoomed(zoomed) {
      this.zoomed = zoomed;
      if (this.plot) this.plot.fathomZoom = zoomed;
      this.reset.hidden = !zoomed;
    }

    /** Charts that zoom together go back together. */
    resetZooms() {
      const group = this.sync ? [...live].filter((other) => other.sync === this.sync) : [this];
      for (const drawing of group) {
        drawing.setZoomed(false);
        drawing.plot.setData(drawing.plot.data, true);
      }
    }

    fit(width) {
      const to = Math.floor(width || this.place.clientWidth);
      if (to > 0 && to !== this.plot.width) this.plot.setSize({ width: to, height: this.height });
    }

    destroy() {
      this.watcher.disconnect();
      this.plot.destroy();
      live.delete(this);
    }
  }

  const redraw = () => live.forEach((drawing) => drawing.make());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

  // A printed page is light and as wide as paper, whatever the screen was.
  const printing = (on) => {
    document.documentElement.toggleAttribute("data-printing", on);
    live.forEach((drawing) => {
      drawing.make();
      drawing.fit(on ? 660 : 0);
    });
  };
  addEventListener("beforeprint", () => printing(true));
  addEventListener("afterprint", () => printing(false));

  return { draw: (figure, chart, options) => new Drawing(figure, chart, options), redraw };
})();
