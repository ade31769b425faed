// The token view: every token with a shade by how unlikely it was; at hover, focus or tap its probability and the
// alternatives. One stop of the Tab key for a whole answer, arrows go from token to token.

import { $, el } from "./dom.js";

const BOUNDS = [0.9, 0.7, 0.5, 0.3, 0.1, 0.02]; // at least this likely: shade 0, 1, …

const probability = (logprob) => (logprob === null || logprob === undefined ? null : Math.min(1, Math.exp(logprob)));
const shade = (p) => (BOUNDS.findIndex((bound) => p >= bound) + BOUNDS.length + 1) % (BOUNDS.length + 1);

export function percent(p) {
  if (p === null) return "not told";
  if (p >= 0.9995) return "100 %";
  return p < 0.001 ? "under 0.1 %" : `${(100 * p).toFixed(1)} %`;
}

/** A token as it can be seen: blanks and line ends get a mark. */
export const visible = (text) => (text === "" ? "(end)" : text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ | $/g, "␣"));

export class TokenStrip {
  constructor() {
    this.element = el("div", { class: "tokens", role: "group", "aria-label": "The answer's tokens; arrow keys go from one to the next" });
    this.element.addEventListener("pointerover", ({ target, pointerType }) => pointerType !== "touch" && this._show(target));
    this.element.addEventListener("pointerleave", hideTip);
    this.element.addEventListener("focusin", ({ target }) => this._show(target));
    this.element.addEventListener("focusout", hideTip);
    this.element.addEventListener("click", ({ target }) => target.token && target.focus());
    this.element.addEventListener("keydown", (event) => this._key(event));
    this._counts = []; // tokens drawn, by part
  }

  show(parts) {
    let unknown = false;
    parts.forEach((part, i) => {
      const run = this.element.children[i] ?? this.element.appendChild(el("span", { class: `run ${part.type}` }));
      if (!part.tokens?.length) {
        if (run.textContent !== part.text) run.textContent = part.text;
        unknown ||= part.type === "text" && part.text !== "";
        return;
      }
      const from = this._counts[i] ?? 0;
      run.append(...part.tokens.slice(from).map((token) => this._token(token)));
      this._counts[i] = part.tokens.length;
    });
    const first = this.element.querySelector(".token");
    if (first && !this.element.querySelector("[tabindex='0']")) first.tabIndex = 0;
    return !unknown;
  }

  _token(token) {
    const p = probability(token[1]);
    const text = token[0].replace(/\n/g, "↵\n") || "⏹";
    const made = el("span", { class: p === null ? "token" : `token shade-${shade(p)}`, tabIndex: -1, role: "button" }, text);
    made.token = token;
    return made;
  }

  _key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (!step || !event.target.token) return;
    event.preventDefault();
    const all = [...this.element.querySelectorAll(".token")];
    const next = all[Math.min(all.length - 1, Math.max(0, all.indexOf(event.target) + step))];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  }

  _show(target) {
    if (!target.token) return;
    const [text, logprob, others] = target.token;
    target.setAttribute("aria-label", `${visible(text)}, ${percent(probability(logprob))}; likely here: ${others.map(([other, value]) => `${visible(other)} ${percent(probability(value))}`).join(", ")}`);
    const seen = others.some(([other]) => other === text);
    const rows = (seen ? others : [[text, logprob], ...others]).map(([other, value]) => row(other, probability(value), other === text));
    const tip = $("token-tip");
    tip.replaceChildren(el("p", {}, el("b", {}, visible(text)), ` ${percent(probability(logprob))}`), el("ul", {}, ...rows));
    tip.hidden = false;
    place(tip, target);
  }
}

function row(text, p, isChosen) {
  const bar = el("i");
  bar.style.setProperty("--share", p ?? 0);
  return el("li", { class: isChosen ? "chosen" : "" }, bar, el("span", {}, visible(text)), el("small", {}, percent(p)));
}

function place(tip, target) {
  const at = target.getClientRects()[0];
  const { offsetWidth: width, offsetHeight: height } = tip;
  const left = Math.max(8, Math.min(innerWidth - width - 8, at.left + at.width / 2 - width / 2));
  const above = at.top - height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 56 ? above : at.bottom + 8}px`;
}

export function hideTip() {
  $("token-tip").hidden = true;
}
