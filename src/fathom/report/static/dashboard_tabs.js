"use strict";

// What the tabs besides the curves show of the selected runs. Everything is set as text: what a run's files or a
// model say can be anything, and none of it may become a part of the page.
const dashboardTabs = (() => {
  const { format } = chartNumbers;

  /** An element with properties and children; strings become text. */
  function el(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (key === "class") made.className = value;
      else made[key] = value;
    }
    made.append(...children.filter((child) => child != null).map((child) => (child instanceof Node ? child : String(child))));
    return made;
  }

  /** Text in which commands, written in backticks, are set as such; an option stays in one piece where lines break. */
  const marked = (text) =>
    String(text).split(/`([^`]+)`/).map((part, i) => (i % 2 ? el("code", {}, ...part.split(/(--[\w-]+)/).map((word, j) => (j % 2 ? el("span", {}, word) : word))) : part));

  const whole = (value) => (value == null ? "" : Math.round(value).toLocaleString("en-US"));
  const title = (run) => el("h3", { class: "run-title" }, el("i", { class: `swatch hue-${run.hue}` }), run.name);
  const moment = (unix) => (unix == null ? "" : new Date(unix * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" }));

  function duration(seconds) {
    if (seconds == null || !(seconds >= 0)) return "";
    if (seconds < 60) return `${format(seconds)} s`;
    if (seconds < 600) return `${Math.floor(Math.round(seconds) / 60)} min ${String(Math.round(seconds) % 60).padStart(2, "0")} s`;
    const minutes = Math.round(seconds / 60);
    if (minutes < 120) return `${minutes} min`;
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
  }

  /** A table; a column whose name begins with # is of numbers, and one that is empty throughout is left out. */
  function table(heads, rows) {
    const kept = heads.map((_, i) => i).filter((i) => rows.some((row) => row[i] != null && row[i] !== ""));
    const kind = (i) => (heads[i].startsWith("#") ? "number" : "");
    return el(
      "table",
      {},
      el("thead", {}, el("tr", {}, ...kept.map((i) => el("th", { class: kind(i) }, heads[i].replace("#", ""))))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...kept.map((i) => el("td", { class: kind(i) }, row[i] ?? ""))))),
    );
  }

  /** The steps at which any of the runs said something, ascending. */
  const sampleSteps = (runs) =>
    [...new Set(runs.flatMap((run) => run.details.samples.map((s) => s.step).filter(Number.isFinite)))].sort((a, b) => a - b);

  /** What each run last said to each prompt up to a step. */
  function samples(runs, step) {
    const prompts = new Map();
    for (const run of runs) {
      const said = new Map();
      for (const sample of run.details.samples) {
        const known = said.get(String(sample.prompt ?? ""));
        if (sample.step <= step && !(known && known.step > sample.step)) said.set(String(sample.prompt ?? ""), sample);
      }
      for (const [prompt, sample] of said) prompts.set(prompt, [...(prompts.get(prompt) || []), { run, sample }]);
    }
    if (!prompts.size) return [el("p", { class: "muted" }, "No samples yet. A run says something at its end, and whenever its recipe has it do so.")];
    return [...prompts].flatMap(([prompt, answers]) => [
      el("p", { class: "prompt" }, prompt || "(no prompt)"),
      ...answers.map(({ run, sample }) =>
        el(
          "div",
          { class: "said" },
          el("small", { class: "muted" }, runs.length > 1 ? `${run.name}, step ${whole(sample.step)}` : `step ${whole(sample.step)}`),
          el("i", { class: `swatch hue-${run.hue}`, hidden: runs.length === 1 }),
          String(sample.text ?? JSON.stringify(sample)),
        ),
      ),
    ]);
  }

  function evaluations(runs) {
    return runs.flatMap((run) => {
      const { evaluations: found, batch_tokens: batch } = run.summary;
      const rows = found.map((e, i) => [
        whole(e.step),
        batch ? format(e.step * batch) : "",
        duration(e.train_s),
        e.val_bpb == null ? "not a number" : e.val_bpb.toFixed(4),
        i && e.val_bpb != null && found[i - 1].val_bpb != null ? signed(e.val_bpb - found[i - 1].val_bpb) : "",
      ]);
      const others = Object.entries(run.details.evals).filter(([name, e]) => !(/^bpb-\d+$/.test(name) && found.some((f) => f.step === e.step)));
      const nothing = rows.length || others.length ? null : el("p", { class: "muted" }, "Nothing was evaluated yet.");
      return [
        title(run),
        ...(rows.length ? [table(["#step", "#tokens", "#training time", "#bits per byte", "#change"], rows)] : []),
        ...others.flatMap(([name, result]) => [el("h3", {}, heading(name, result)), ...result_of(result)]),
        ...(nothing ? [nothing] : []),
      ];
    });
  }

  const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(4);

  const TASKS = { bpb: "Bits per byte", core: "CORE", chat: "Chat tasks", quiz: "Quiz", samples: "Samples" };
  const LIMITED = { bpb: "rows of each part", samples: "samples" };
  const ROWS_OF = { lossless: "whole documents", "best-fit": "best-fit rows" };
  const TOLD = ["task", "step", "run", "stage", "value", "standard_error", "n", "time", "seconds", "train_s", "fathom"];
  const isDigest = (key) => /digest|sha256/.test(key);
  const withError = (value, error) => (typeof error === "number" ? `${value.toFixed(4)} ± ${error.toFixed(4)}` : shown(value));
  const isTable = (value) => value !== null && typeof value === "object";

  /** What was measured, of what, and of how much. */
  function heading(name, result) {
    const task = typeof result.task === "string" ? result.task : name.split("-")[0];
    const corpus = result.data?.corpus;
    const limit = result.settings?.limit;
    return [
      (TASKS[task] ?? name) + (typeof corpus === "string" ? ` of ${corpus}` : ""),
      Number.isFinite(result.step) ? `step ${whole(result.step)}` : "",
      Number.isFinite(limit) ? `at most ${whole(limit)} ${LIMITED[task] ?? "items of each"}` : "",
    ].filter(Boolean).join(", ");
  }

  /** One file of evals/: what was found, of how many and when; digests are left to the file. */
  function result_of(result) {
    const parts = Array.isArray(result.sets) ? setsOf(result.sets) : null;
    const own = parts ? ["sets", "val_bpb", "rows", "rows_of"] : [];
    const rest = Object.entries(result).filter(([key]) => !TOLD.includes(key) && !own.includes(key) && !isDigest(key));
    const facts = [
      ["result", typeof result.value === "number" && !parts ? withError(result.value, result.standard_error) : ""],
      ["items", !parts && Number.isFinite(result.n) ? whole(result.n) : ""],
      ...rest.filter(([, value]) => value != null && !isTable(value)).map(([key, value]) => [key.replaceAll("_", " "), shown(value)]),
    ].filter(([, value]) => value);
    const when = Number.isFinite(result.time) ? `Measured ${moment(result.time)}` : "";
    const took = result.seconds == null ? "" : `in ${duration(result.seconds)}`;
    const measured = when || took ? el("p", { class: "muted" }, `${when || "Measured"} ${took}`.trim() + ".") : null;
    return [parts, facts.length ? table(["what", "value"], facts) : null, measured, ...rest.filter(([, value]) => isTable(value)).map(folded)].filter(Boolean);
  }

  const setsOf = (sets) =>
    table(
      ["part", "rows of", "#tokens", "#bits per byte"],
      sets.map((one) => [one?.split, ROWS_OF[one?.rows_of] ?? one?.rows_of, Number.isFinite(one?.tokens) ? whole(one.tokens) : "", typeof one?.bpb === "number" ? withError(one.bpb, one.standard_error) : "not a number"]),
    );

  /** A table within a result, to be opened: of numbers as one, everything else as it is written. */
  function folded([key, value]) {
    const told = Object.entries(value).filter(([name]) => !isDigest(name));
    if (!told.length || (key === "data" && told.every(([name]) => name === "corpus"))) return null;
    const numbers = !Array.isArray(value) && told.every(([, v]) => typeof v === "number");
    const inside = numbers
      ? table(["what", "#value"], told.map(([k, v]) => [k.replaceAll("_", " "), shown(v)]))
      : el("pre", {}, JSON.stringify(value, (k, v) => (isDigest(k) ? undefined : v), 1));
    return el("details", {}, el("summary", {}, `${key.replaceAll("_", " ")} (${told.length})`), inside);
  }

  const shown = (value) => (typeof value !== "number" ? String(value) : Number.isInteger(value) ? whole(value) : format(value));

  /** A row for each fact that any phase has, a column for each phase. */
  function byPhase(names, phases) {
    const facts = names.map((name, i) => [name, ...phases.map((phase) => phase[i] ?? "")]).filter(([, ...values]) => values.some((value) => value !== ""));
    const [head, ...rest] = facts;
    const made = table(["", ...head.slice(1)].map((cell) => cell || " "), rest);
    made.className = "facts-by-phase";
    return made;
  }

  function hardware(runs) {
    return runs.flatMap((run) => {
      const { phases, peak_memory_gb: peak, troubles } = run.details;
      const rows = phases.map((phase, i) => {
        const on = phase.circumstances;
        const last = i === phases.length - 1;
        const rate = on.peak_flops ? `${format(on.peak_flops / 1e12)} TFLOP/s` : "";
        return [
          phase.kind,
          `${whole(phase.first_step)} to ${whole(phase.last_step)}`,
          moment(phase.began),
          phase.ended == null ? "" : duration(phase.ended - phase.began),
          phase.ended_by || (last && run.summary.state === "running" ? "at work" : "broken off"),
          on.device_name || on.device,
          on.device_memory_gb == null ? "" : `${format(on.device_memory_gb)} GB`,
          on.dtype,
          rate && on.peak_source ? `${rate} (${on.peak_source})` : rate,
          on.device_batch == null ? "" : `${on.device_batch} rows × ${on.grad_accum ?? 1}`,
          "compile_from" in on ? (on.compile_from == null ? "eager" : `compiled from step ${on.compile_from}`) : "",
          on.torch,
        ];
      });
      const names = ["phase", "steps", "began", "lasted", "ended", "device", "its memory", "numbers", "peak rate", "micro-batch", "kernels", "torch"];
      const silent = phases.length && phases.every((phase) => !Object.keys(phase.circumstances).length);
      return [
        title(run),
        rows.length ? byPhase(names, rows) : el("p", { class: "muted" }, "No phase of training is in its record."),
        silent ? el("p", { class: "muted" }, "Its record does not say what it ran on.") : null,
        peak == null ? null : el("p", {}, `Peak memory: ${format(peak)} GB.`),
        troubles.length ? el("ul", { class: "wrong" }, ...troubles.map((sentence) => el("li", {}, `In the record: ${sentence}.`))) : null,
      ].filter(Boolean);
    });
  }

  function assessment(runs) {
    return runs.flatMap((run) => [
      title(run),
      ...run.details.findings.map((finding) =>
        el(
          "div",
          { class: `finding ${["good", "note", "warn", "bad"].includes(finding.severity) ? finding.severity : "note"}` },
          el("b", {}, ...marked(finding.sentence)),
          finding.evidence.length ? el("ul", {}, ...finding.evidence.map((line) => el("li", {}, ...marked(line)))) : null,
          finding.advice ? el("p", {}, ...marked(finding.advice)) : null,
        ),
      ),
    ]);
  }

  return { el, whole, duration, moment, samples, sampleSteps, evaluations, hardware, assessment };
})();
