// How answers are chosen: the sheet of settings, what is kept of it, and what of it goes into a request.

import { $, el } from "./dom.js";

const FIELDS = [
  { key: "temperature", label: "Temperature", help: "0 always takes the most likely token; more is more varied.", from: 0, to: 2, step: 0.05, usual: 0.6 },
  { key: "top_p", label: "Top-p", help: "Only the likeliest tokens that together have this probability; 1 for all.", from: 0.01, to: 1, step: 0.01, usual: 1 },
  { key: "top_k", label: "Top-k", help: "Only so many of the likeliest tokens; 0 for all.", from: 0, to: 200, step: 1, usual: 50 },
  { key: "min_p", label: "Min-p", help: "Only tokens at least this share as likely as the likeliest.", from: 0, to: 1, step: 0.01, usual: 0 },
  { key: "repetition_penalty", label: "Repetition penalty", help: "Above 1, tokens that were said are less likely to come again.", from: 1, to: 2, step: 0.05, usual: 1 },
  { key: "max_tokens", label: "Longest answer", help: "In tokens.", from: 1, to: 2048, step: 1, usual: 256 },
];

export class Settings {
  /** `systemChanged(text)` hears that the system message was set. */
  constructor(store, systemChanged) {
    this._store = store;
    this._inputs = new Map();
    const kept = store.recall("settings", {});
    this.values = Object.fromEntries(FIELDS.map((field) => [field.key, within(field, kept[field.key])]));
    this.values.seed = Number.isSafeInteger(kept.seed) && kept.seed >= 0 ? kept.seed : null;
    this.values.system = typeof kept.system === "string" ? kept.system : "";
    this._systemChanged = systemChanged;
    $("sampling").append(...FIELDS.map((field) => this._row(field)));
    $("system").oninput = () => {
      this._set("system", $("system").value);
      this._systemChanged(this.values.system);
    };
    $("seed").oninput = () => {
      const seed = $("seed").value.trim() === "" ? null : Number($("seed").value);
      const isSeed = seed === null || (Number.isSafeInteger(seed) && seed >= 0);
      $("seed").setAttribute("aria-invalid", String(!isSeed));
      if (isSeed) this._set("seed", seed);
    };
    $("reset-settings").onclick = () => this._reset();
    this._show();
  }

  /** The most tokens that the server gives. */
  limit(most) {
    const field = FIELDS.find(({ key }) => key === "max_tokens");
    if (!(most >= 1)) return;
    field.to = most;
    const { range, number } = this._inputs.get("max_tokens");
    range.max = number.max = most;
    this.values.max_tokens = Math.min(this.values.max_tokens, most);
    this._show();
  }

  /** Show a conversation's own system message. */
  showSystem(text) {
    $("system").value = text;
  }

  /** The settings as a request has them: all of them, since the server has defaults of its own. */
  request() {
    const { system, seed, ...sampling } = this.values;
    return seed === null ? sampling : { ...sampling, seed };
  }

  _row(field) {
    const { key, label, help, from, to, step } = field;
    const limits = { min: from, max: to, step };
    const number = el("input", { type: "number", id: `set-${key}`, inputMode: "decimal", "aria-describedby": `about-${key}`, ...limits });
    const range = el("input", { type: "range", tabIndex: -1, "aria-hidden": "true", ...limits });
    this._inputs.set(key, { range, number });
    range.oninput = () => ((number.value = range.value), this._set(key, within(field, Number(range.value))));
    number.oninput = () => {
      const value = number.value === "" ? NaN : Number(number.value);
      const isFit = value >= field.from && value <= field.to && (step < 1 || Number.isInteger(value));
      number.setAttribute("aria-invalid", String(!isFit));
      if (isFit) range.value = this._set(key, value);
    };
    number.onchange = () => this._show();
    return el("div", { class: "setting" }, el("label", { htmlFor: `set-${key}` }, label), number, range, el("small", { id: `about-${key}` }, help));
  }

  _set(key, value) {
    this.values[key] = value;
    this._store.remember("settings", this.values);
    return value;
  }

  _show() {
    for (const [key, { range, number }] of this._inputs) {
      range.value = number.value = this.values[key];
      number.setAttribute("aria-invalid", "false");
    }
    $("seed").value = this.values.seed ?? "";
    $("seed").setAttribute("aria-invalid", "false");
  }

  _reset() {
    for (const field of FIELDS) this.values[field.key] = Math.min(field.usual, field.to);
    Object.assign(this.values, { seed: null, system: "" });
    this._set("seed", null);
    this._show();
    this.showSystem("");
    this._systemChanged("");
  }
}

function within(field, value) {
  if (!Number.isFinite(value)) return Math.min(field.usual, field.to);
  return Math.min(field.to, Math.max(field.from, value));
}
