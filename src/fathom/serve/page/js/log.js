// The conversation that is shown: its turns, and following the answer as it grows.

import { $, paced } from "./dom.js";
import { path } from "./talk.js";
import { hideTip } from "./tokens.js";
import { turnView } from "./turn.js";

const NEAR_PX = 64;

export class Log {
  constructor(acts) {
    this._acts = acts;
    this._views = [];
    this._dirty = new Set();
    this._draw = paced(() => this._update());
    this._follows = true;
    this._room = $("room");
    this._room.addEventListener("scroll", () => this._scrolled(), { passive: true });
    $("to-end").onclick = () => this.toEnd(true);
    new ResizeObserver(() => this._follows && this.toEnd()).observe(this._room);
  }

  show(talk) {
    hideTip();
    const turns = path(talk);
    const kept = this._talk === talk ? this._views.filter((view, i) => view.node === turns[i] && this._views.slice(0, i).every((before, j) => before.node === turns[j])) : [];
    this._talk = talk;
    this._views.slice(kept.length).forEach((view) => view.element.remove());
    this._views = [...kept];
    for (const node of turns.slice(kept.length)) {
      const view = turnView(talk, node, this._acts);
      view.node = node;
      this._views.push(view);
      $("log").append(view.element);
    }
  }

  /** Draw a turn that has grown, at the next frame. */
  changed(node) {
    this._dirty.add(node.id);
    this._draw();
  }

  /** Draw all turns, as when the token view is turned on or off. */
  redraw() {
    this._views.forEach((view) => view.update());
    if (this._follows) this.toEnd();
  }

  view(node) {
    return this._views.find((view) => view.node === node);
  }

  lastUser() {
    return this._views.findLast((view) => view.node.role === "user");
  }

  toEnd(smoothly = false) {
    this._follows = true;
    $("to-end").hidden = true;
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this._room.scrollTo({ top: this._room.scrollHeight, behavior: smoothly && !isCalm ? "smooth" : "instant" });
  }

  _update() {
    for (const view of this._views) if (this._dirty.has(view.node.id)) view.update();
    this._dirty.clear();
    if (this._follows) this.toEnd();
    else this._scrolled();
  }

  _scrolled() {
    hideTip();
    const { scrollTop, scrollHeight, clientHeight } = this._room;
    const left = scrollHeight - scrollTop - clientHeight;
    const wentUp = scrollTop < (this._top ?? 0);
    if (left < NEAR_PX) this._follows = true;
    else if (wentUp) this._follows = false;
    this._top = scrollTop;
    $("to-end").hidden = left < NEAR_PX || this._follows;
  }
}
