"use strict";

// The numbers of a chart, before anything is drawn: how they read, where ticks stand, how curves share one x.
const chartNumbers = (() => {
  const UNITS = [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]];

  /** How many decimals a step needs: 2.5 one, 0.25 two, 50 none. */
  function decimals(step) {
    let count = 0;
    while (count < 8 && Math.abs(step * 10 ** count - Math.round(step * 10 ** count)) > 1e-6 * step * 10 ** count) count++;
    return count;
  }

  /** A number for a person; `step` is the distance to the next tick, so that neighbours differ. */
  function format(value, step) {
    if (value == null || !Number.isFinite(value)) return "";
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 1e15 || size < 1e-4) {
      const digits = step ? Math.max(0, Math.floor(Math.log10(size)) - Math.floor(Math.log10(step))) : 3;
      return value.toExponential(Math.min(digits, 4)).replace("e+", "e");
    }
    const [unit, letter] = (step || size >= 1e5 ? UNITS.find(([least]) => size >= least && size >= 1e4) : null) || [1, ""];
    const shown = value / unit;
    const digits = step
      ? decimals(step / unit)
      : Math.max(0, 4 - Math.max(1, Math.ceil(Math.log10(Math.abs(shown)))));
    return shown.toFixed(Math.min(digits, 8)) + letter;
  }

  /** Points in ascending order, each x once (by a hair's breadth), without what a logarithm cannot show. */
  function tidy(curve, logX, logY) {
    const points = [];
    for (let i = 0; i < curve.x.length; i++) {
      const x = curve.x[i];
      let y = curve.y[i];
      if (x == null || !Number.isFinite(x) || (logX && x <= 0)) continue;
      if (y == null || !Number.isFinite(y) || (logY && y <= 0)) y = null;
      points.push([x, y]);
    }
    points.sort((a, b) => a[0] - b[0]);
    for (let i = 1; i < points.length; i++) {
      const before = points[i - 1][0];
      if (points[i][0] <= before) points[i][0] = before + Math.max(Math.abs(before) * 2 ** -51, 1e-300);
    }
    return [points.map((p) => p[0]), points.map((p) => p[1])];
  }

  /** One table of all curves over one x: undefined where a curve has no point, null where it has a gap. */
  function align(chart) {
    const tables = chart.curves.map((curve) => tidy(curve, chart.log_x, chart.log_y));
    const lengths = tables.map((table) => table[0].length);
    const data = tables.length ? uPlot.join(tables, tables.map(() => [0, 2])) : [[]];
    return { data, lengths };
  }

  function niceStep(width, count) {
    const raw = width / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    return power * ([1, 2, 5].find((m) => m * power >= raw) || 10);
  }

  /** Ticks of a logarithmic axis: even steps on a narrow one, 1-2-5 over few decades, powers over many. */
  function logTicks(min, max, most) {
    if (!(min > 0) || !(max > min)) return [];
    const ticks = [];
    if (max / min < 3) {
      const step = niceStep(max - min, most);
      for (let i = Math.ceil(min / step); i * step <= max; i++) ticks.push(Number((i * step).toPrecision(12)));
      return ticks;
    }
    const [from, to] = [Math.floor(Math.log10(min)), Math.ceil(Math.log10(max))];
    const decades = Math.log10(max / min);
    const mantissas = decades < 1 ? [1, 1.5, 2, 3, 4, 5, 7] : decades * 3 <= most * 1.5 ? [1, 2, 5] : [1];
    const every = Math.max(1, Math.ceil((to - from) / most));
    for (let power = from; power <= to; power += every) {
      for (const m of mantissas) {
        const tick = Number(`${m}e${power}`);
        if (tick >= min && tick <= max) ticks.push(tick);
      }
    }
    return ticks;
  }

  /** 1.50M is 1.5M, 2.0 is 2. */
  const trim = (text) => text.replace(/(\.\d*?)0+(?=\D|$)/, "$1").replace(/\.(?=\D|$)/, "");

  return { format, trim, align, logTicks };
})();
