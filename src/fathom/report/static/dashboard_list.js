"use strict";

// The list of runs at the side: where each is, and which are chosen.
const dashboardList = (() => {
  const MANY = 9; // from so many runs on there is a field to find one by its name
  const { el, whole } = dashboardTabs;

  function facts(run) {
    if (run.state === "unreadable") return run.problem;
    if (run.state === "reading") return "";
    const steps = run.steps_planned ? `${whole(run.steps_done)} of ${whole(run.steps_planned)}` : whole(run.steps_done);
    const parts = [run.stage, run.steps_done == null ? "" : `step ${steps}`];
    if (run.loss != null) parts.push(`loss ${run.loss.toFixed(3)}`);
    if (run.val_bpb != null) parts.push(`bpb ${run.val_bpb.toFixed(3)}`);
    return parts.filter(Boolean).join(" · ");
  }

  const items = new Map(); // a run keeps its element, so that a click meets what it was aimed at

  function item(name, toggled) {
    const box = el("input", { type: "checkbox" });
    box.onchange = () => toggled(name, box.checked);
    const [swatch, state, words, done] = [el("i"), el("span"), el("span"), el("progress", { max: 1 })];
    const body = el("span", {}, el("span", { class: "name" }, swatch, name), el("span", { class: "facts" }, state, words), done);
    const label = el("label", {}, box, body);
    return { element: el("li", {}, label), label, box, swatch, state, words, done };
  }

  /** Bring the list up to date; `hues` has the colour of each chosen run, `toggled(name, on)` hears of a choice. */
  function show(listed, hues, toggled) {
    const [filter, list] = [document.getElementById("filter"), document.getElementById("runs")];
    const wanted = filter.value.toLowerCase();
    filter.hidden = listed.length < MANY;
    document.getElementById("count").textContent = listed.length;
    for (const name of items.keys()) if (!listed.some((run) => run.name === name)) items.delete(name);
    const shown = listed.filter((run) => run.name.toLowerCase().includes(wanted)).map((run) => {
      if (!items.has(run.name)) items.set(run.name, item(run.name, toggled));
      const { element, label, box, swatch, state, words, done } = items.get(run.name);
      const hue = hues.get(run.name);
      label.title = dashboardTabs.moment(run.updated);
      box.checked = hue !== undefined;
      swatch.className = `swatch hue-${hue}`;
      swatch.hidden = hue === undefined;
      state.className = run.state.replace(" ", "-");
      state.textContent = run.state;
      words.textContent = facts(run) && ` · ${facts(run)}`;
      done.hidden = run.state !== "running" || !run.steps_planned;
      done.value = run.steps_planned ? Math.min(1, run.steps_done / run.steps_planned) : 0;
      return element;
    });
    if (shown.length !== list.children.length || shown.some((element, i) => element !== list.children[i])) list.replaceChildren(...shown);
  }

  return { show };
})();
