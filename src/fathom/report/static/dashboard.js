"use strict";

// The dashboard: what is chosen, asking for what changed every two seconds, showing it.
{
  const POLL_MS = 2000;
  const DETAILS_MS = 8000; // samples and the like of a run at work are asked for no more often
  const FIRST_SHOWN = 3;
  const { el, whole } = dashboardTabs;
  const $ = (id) => document.getElementById(id);
  const framed = window.parent !== window; // it is a tab of the chat page

  const chosen = { runs: new Map(), tab: "curves", axis: "step", smoothing: 0.6, logX: false, logY: false }; // name -> hue
  const known = new Map(); // name -> {summary, columns, mark, version, details, asked}
  const drawings = new Map();
  let listed = null;
  let greeted = false; // whether runs were chosen for whoever came

  // ---- what is chosen stands in the address, so that a reload or a bookmark brings it back

  function remember() {
    const words = new URLSearchParams({ tab: chosen.tab, axis: chosen.axis, smoothing: chosen.smoothing });
    if (chosen.logX) words.set("logx", "1");
    if (chosen.logY) words.set("logy", "1");
    for (const name of chosen.runs.keys()) words.append("run", name);
    history.replaceState(null, "", `#${words}`);
  }

  function recall() {
    const words = new URLSearchParams(location.hash.slice(1));
    const one = (key, allowed, otherwise) => (allowed.includes(words.get(key)) ? words.get(key) : otherwise);
    chosen.tab = one("tab", [...document.querySelectorAll("[data-tab]")].map((b) => b.dataset.tab), "curves");
    chosen.axis = one("axis", ["step", "tokens", "time", "flops"], "step");
    const smoothing = Number(words.get("smoothing") ?? NaN);
    if (smoothing >= 0 && smoothing <= 0.99) chosen.smoothing = smoothing;
    chosen.logX = words.has("logx");
    chosen.logY = words.has("logy");
    words.getAll("run").forEach(choose);
  }

  function choose(name) {
    const taken = [...chosen.runs.values()];
    let hue = 0;
    while (taken.includes(hue) && hue < 8) hue++;
    if (!chosen.runs.has(name)) chosen.runs.set(name, hue < 8 ? hue : chosen.runs.size % 8);
  }

  function toggle(name, on) {
    if (on) choose(name);
    else chosen.runs.delete(name);
    remember();
    update();
  }

  // ---- inside of the chat page: no name of its own, and light or dark as the page around it

  function wearTheirs() {
    document.documentElement.dataset.framed = "";
    const theirs = window.parent;
    const rules = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]);
    const dark = rules.filter((rule) => rule instanceof CSSMediaRule && rule.conditionText.includes("prefers-color-scheme: dark"));
    const follow = () => {
      const isDark = theirs.document.documentElement.dataset.theme === "dark";
      for (const rule of dark) rule.media.mediaText = isDark ? "all" : "not all";
      document.documentElement.style.colorScheme = isDark ? "dark" : "light";
      fathomCharts.redraw();
    };
    theirs.addEventListener("fathom-theme", follow);
    follow();
  }

  // ---- asking

  /** The key of a server that asks for one, as it was given to the chat page around this. */
  function givenKey() {
    try {
      return framed ? sessionStorage.getItem("fathom.key") : null;
    } catch {
      return null; // storage is blocked
    }
  }

  async function ask(path) {
    const key = givenKey();
    const answer = await fetch(path, { cache: "no-store", headers: key ? { Authorization: `Bearer ${key}` } : {} });
    const value = await answer.json();
    if (!answer.ok) throw Object.assign(new Error(value.problem), { status: answer.status });
    return value;
  }

  async function refresh() {
    let answer;
    try {
      answer = await ask("api/runs");
    } catch {
      $("pulse").className = "lost";
      $("pulse").textContent = `no answer: \`fathom ${framed ? "serve" : "dashboard"}\` has ended, start it again`;
      return;
    }
    $("pulse").className = "";
    const working = answer.runs.filter((run) => run.state === "running");
    $("pulse").textContent = working.length ? `${working.length} at work` : "none at work";
    if (!greeted && answer.runs.length) {
      greeted = true;
      const withCurve = answer.runs.find((run) => run.loss != null) ?? answer.runs[0]; // an imported run has none
      const newest = working.length ? working.slice(0, FIRST_SHOWN) : [withCurve];
      if (!chosen.runs.size) (answer.first.length ? answer.first : newest.map((run) => run.name)).forEach(choose);
    }
    listed = answer.runs;
    await update();
  }

  async function update() {
    if (listed === null) return;
    const there = new Map(listed.map((run) => [run.name, run]));
    for (const name of [...known.keys()]) if (!there.has(name)) known.delete(name);
    const readable = [...chosen.runs.keys()].map((name) => there.get(name)).filter((run) => run?.version && run.state !== "unreadable");
    await Promise.all(readable.map((run) => follow(run.name, run.version)));
    show();
  }

  async function follow(name, version) {
    const run = known.get(name) || { asked: 0 };
    try {
      if (run.version !== version) {
        const answer = await ask(`api/runs/${name}?has=${run.mark || ""}`);
        const { from, mark, columns } = answer.curves;
        run.columns = Object.fromEntries(Object.entries(columns).map(([key, more]) => [key, [...(run.columns?.[key] || []).slice(0, from), ...more]]));
        Object.assign(run, { mark, version: answer.version, summary: answer, problem: "" });
      }
      const stale = run.details?.version !== run.version && Date.now() - run.asked > DETAILS_MS;
      if (chosen.tab !== "curves" && (!run.details || stale)) {
        run.asked = Date.now();
        run.details = await ask(`api/runs/${name}/details`);
      }
    } catch (error) {
      run.problem = error.message;
      run.version = "";
    }
    known.set(name, run);
  }

  // ---- curves

  let drawn = "";

  function showCurves(runs) {
    const now = JSON.stringify([chosen.axis, chosen.smoothing, chosen.logX, chosen.logY, runs.map((run) => [run.name, run.hue, run.version])]);
    if (now === drawn) return;
    drawn = now;
    const { charts, missing } = dashboardCurves.charts(runs, chosen);
    for (const [key, drawing] of drawings) {
      if (charts.some((found) => found.key === key)) continue;
      drawing.destroy();
      drawing.figure.remove();
      drawings.delete(key);
    }
    let before = null;
    for (const { key, chart } of charts) {
      const drawing = drawings.get(key);
      if (drawing) drawing.update(chart);
      else {
        const figure = el("figure", { class: "chart" });
        $("charts").insertBefore(figure, before ? before.nextSibling : $("charts").firstChild);
        drawings.set(key, fathomCharts.draw(figure, chart, { sync: "runs" }));
      }
      before = drawings.get(key).figure;
    }
    const over = { step: "steps", tokens: "tokens", time: "training time", flops: "FLOPs" }[chosen.axis];
    const whose = runs.length > 1 ? "these runs" : "this run";
    const absent = missing.length ? `Not in the record of ${whose}, over ${over}: ${missing.join(", ")}.` : "";
    $("hint").hidden = !charts.length;
    $("missing").textContent = [dashboardCurves.unlike(runs), absent].filter(Boolean).join(" ");
  }

  // ---- the page as a whole

  let shownTab = "";

  function fill(tab, nodes) {
    const place = $(tab).querySelector(".content");
    const open = [...place.querySelectorAll("details[open]>summary")].map((s) => s.textContent);
    const fresh = el("div", {}, ...nodes);
    if (shownTab === tab && place.dataset.shown === fresh.textContent) return;
    place.dataset.shown = fresh.textContent;
    place.replaceChildren(...fresh.childNodes);
    place.querySelectorAll("details").forEach((d) => (d.open = open.includes(d.querySelector("summary").textContent)));
  }

  function showSamples(runs) {
    const steps = dashboardTabs.sampleSteps(runs);
    const slider = $("moment");
    const atEnd = shownTab !== "samples" || Number(slider.value) >= Number(slider.max);
    slider.max = Math.max(0, steps.length - 1);
    if (atEnd) slider.value = slider.max;
    $("time").hidden = steps.length < 2;
    const step = steps[Number(slider.value)];
    $("at").textContent = step === undefined ? "" : whole(step);
    fill("samples", dashboardTabs.samples(runs, step ?? Infinity));
  }

  const tabs = {
    curves: showCurves,
    samples: showSamples,
    evaluations: (runs) => fill("evaluations", dashboardTabs.evaluations(runs)),
    hardware: (runs) => fill("hardware", dashboardTabs.hardware(runs)),
    assessment: (runs) => fill("assessment", dashboardTabs.assessment(runs)),
  };

  function notice(ready) {
    if (!listed.length) return "There are no runs here yet. `fathom quickstart` makes one in minutes; it appears here by itself.";
    if (!chosen.runs.size) return "Choose a run from the list under “Runs”.";
    const problems = [...chosen.runs.keys()].flatMap((name) => {
      const line = listed.find((run) => run.name === name);
      if (!line) return [`${name} is not there.`];
      if (line.state === "unreadable") return [`${name}: ${line.problem}`];
      return known.get(name)?.problem ? [`${name}: ${known.get(name).problem}`] : [];
    });
    return problems.join(" ") || (ready ? "" : "Reading …");
  }

  function show() {
    if (listed === null) return;
    dashboardList.show(listed, chosen.runs, toggle);
    const runs = [...chosen.runs].flatMap(([name, hue]) => {
      const run = known.get(name);
      const needed = run && run.summary && (chosen.tab === "curves" || run.details);
      return needed ? [{ name, hue, ...run }] : [];
    });
    const text = notice(runs.length > 0);
    $("notice").textContent = text;
    $("notice").hidden = !text;
    for (const button of document.querySelectorAll("[data-tab]")) {
      const on = button.dataset.tab === chosen.tab;
      if (on) button.setAttribute("aria-current", "page");
      else button.removeAttribute("aria-current");
      $(button.dataset.tab).hidden = !on || !runs.length;
    }
    if (runs.length) tabs[chosen.tab](runs);
    shownTab = chosen.tab;
  }

  function listen() {
    $("tabs").onclick = ({ target }) => {
      if (!target.dataset.tab) return;
      chosen.tab = target.dataset.tab;
      remember();
      update();
    };
    $("controls").onsubmit = (event) => event.preventDefault();
    $("controls").oninput = () => {
      chosen.axis = document.querySelector("[name=axis]:checked").value;
      chosen.smoothing = Number($("smoothing").value);
      chosen.logX = $("log-x").checked;
      chosen.logY = $("log-y").checked;
      $("smoothed").textContent = chosen.smoothing ? chosen.smoothing.toFixed(2) : "off";
      remember();
      show();
    };
    $("moment").oninput = show;
    $("filter").oninput = show;
    $("drawer").open = innerWidth > 832;
  }

  async function start() {
    if (framed) wearTheirs();
    recall();
    document.querySelector(`[name=axis][value=${chosen.axis}]`).checked = true;
    $("smoothing").value = chosen.smoothing;
    $("smoothed").textContent = chosen.smoothing ? chosen.smoothing.toFixed(2) : "off";
    $("log-x").checked = chosen.logX;
    $("log-y").checked = chosen.logY;
    listen();
    for (;;) {
      await refresh();
      await new Promise((wake) => setTimeout(wake, POLL_MS));
    }
  }

  start();
}
