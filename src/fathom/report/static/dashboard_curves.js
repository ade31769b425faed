"use strict";

// From runs' columns to charts: which curves there are, over which axis, how smooth. Draws nothing.
const dashboardCurves = (() => {
  const METRICS = [
    { key: "loss", title: "Training loss", unit: "nats a token", of: (c) => c.loss, smooth: true },
    { key: "bpb", title: "Validation", unit: "bits per byte" },
    { key: "grad", title: "Gradient", unit: "norm of all gradients", of: (c) => c.grad_norm, smooth: true },
    { key: "lr", title: "Learning rate", unit: "share of its peak", of: (c) => c.lr, linear: true },
    { key: "speed", title: "Speed", unit: "tokens/s", of: (c, run) => c.step_s.map((s) => (s > 0 && run.batch_tokens ? run.batch_tokens / s : null)), smooth: true, linear: true },
    { key: "mfu", title: "MFU", unit: "% of the device's peak rate", of: (c) => c.mfu.map((m) => (m == null ? null : 100 * m)), smooth: true, linear: true },
    { key: "memory", title: "Memory", unit: "GB, the most so far", of: (c) => c.memory_gb, linear: true },
  ];

  /** Where a run's points stand on the chosen axis; null where its record does not say. */
  function along(run, step, train_s, axis, unit) {
    const { batch_tokens: batch, flops_per_token: flops } = run.summary;
    if (axis === "step") return step;
    if (axis === "time") return train_s.map((s) => (s == null ? null : s / unit.seconds));
    const factor = axis === "tokens" ? batch : batch && flops && batch * flops;
    return factor ? step.map((s) => s * factor) : null;
  }

  function timeUnit(runs) {
    const longest = Math.max(0, ...runs.map((run) => run.columns.train_s.findLast((s) => s != null) || 0));
    if (longest > 3 * 3600) return { seconds: 3600, name: "hours" };
    return longest > 300 ? { seconds: 60, name: "minutes" } : { seconds: 1, name: "seconds" };
  }

  /** A running mean that forgets; the beginning is not drawn towards zero. */
  function smoothed(values, keep) {
    let mean = 0;
    let weight = 0;
    return values.map((value) => {
      if (value == null) return null;
      mean = keep * mean + (1 - keep) * value;
      weight = keep * weight + (1 - keep);
      return mean / weight;
    });
  }

  function curvesOf(metric, runs, chosen, unit) {
    return runs.flatMap((run) => {
      const look = { name: run.name, hue: run.hue, style: "line" };
      if (metric.key === "bpb") {
        const found = run.summary.evaluations;
        const x = along(run, found.map((e) => e.step), found.map((e) => e.train_s), chosen.axis, unit);
        return x && found.length ? [{ ...look, x, y: found.map((e) => e.val_bpb) }] : [];
      }
      const x = along(run, run.columns.step, run.columns.train_s, chosen.axis, unit);
      const y = metric.of(run.columns, run.summary);
      if (!x || !y.some((value) => value != null)) return [];
      if (!metric.smooth || chosen.smoothing === 0) return [{ ...look, x, y }];
      return [{ ...look, x, y, faint: true }, { ...look, x, y: smoothed(y, chosen.smoothing) }];
    });
  }

  function marksOf(runs, axis, unit) {
    if (runs.length !== 1) return [];
    const [run] = runs;
    return run.summary.beginnings.flatMap(([step, kind]) => {
      const i = run.columns.step.findIndex((s) => s >= step);
      const x = i < 0 ? null : along(run, [step], [run.columns.train_s[i]], axis, unit);
      return x && x[0] != null ? [[x[0], kind]] : [];
    });
  }

  /** A word about runs whose bits per byte are of different text; "" where they are of one. */
  function unlike(runs) {
    if (new Set(runs.map((run) => run.summary.text[0])).size < 2) return "";
    const told = runs.map((run) => `${run.name}: ${run.summary.text[1]}`).join(", ");
    return `These runs read different text or tokens (${told}): loss and bits per byte are not to be compared between them.`;
  }

  /** A chart for each metric that a run has; `missing` names those that none has. */
  function charts(runs, chosen) {
    const unit = timeUnit(runs);
    const x_label = { step: "steps", tokens: "tokens", time: `training time in ${unit.name}`, flops: "FLOPs" }[chosen.axis];
    const marks = marksOf(runs, chosen.axis, unit);
    const found = METRICS.map((metric) => ({
      key: metric.key,
      chart: {
        title: metric.title,
        y_label: metric.unit,
        x_label,
        curves: curvesOf(metric, runs, chosen, unit),
        marks,
        log_x: chosen.logX,
        log_y: chosen.logY && !metric.linear,
      },
    }));
    const missing = found.filter(({ chart }) => !chart.curves.length).map(({ chart }) => chart.title.replace(/^[A-Z](?=[a-z])/, (letter) => letter.toLowerCase()));
    return { charts: found.filter(({ chart }) => chart.curves.length), missing };
  }

  return { charts, smoothed, unlike };
})();
