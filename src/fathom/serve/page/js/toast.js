// Short notes at the foot of the page, with at most one thing to do about them.

import { $, el } from "./dom.js";

const SHOWN_MS = 10_000;

export function toast(sentence, action = null) {
  const note = el("div", { class: "toast" }, el("span", {}, sentence));
  let timer = 0;
  const leave = () => (clearTimeout(timer), note.remove());
  const wait = () => (clearTimeout(timer), (timer = setTimeout(leave, SHOWN_MS)));
  if (action) note.append(el("button", { type: "button", class: "text-button", onclick: () => (leave(), action.run()) }, action.name));
  note.addEventListener("pointerenter", () => clearTimeout(timer));
  note.addEventListener("pointerleave", wait);
  note.addEventListener("focusin", () => clearTimeout(timer));
  note.addEventListener("focusout", wait);
  $("toasts").append(note);
  while ($("toasts").children.length > 3) $("toasts").firstChild.remove();
  wait();
}

/** For those who listen: what is said is read out as it comes, a sentence at a time. */
export class Reader {
  constructor() {
    this._told = 0;
  }

  tell(text, isWhole) {
    const rest = text.slice(this._told);
    const end = isWhole ? rest.length : Math.max(...[...rest.matchAll(/[.!?:]\s|\n/g)].map((match) => match.index + 1), 0);
    const piece = rest.slice(0, end).trim();
    this._told += end;
    if (piece) announce(piece);
  }
}

export function announce(sentence) {
  const box = $("read-out");
  box.append(el("p", {}, sentence));
  while (box.children.length > 20) box.firstChild.remove();
}
