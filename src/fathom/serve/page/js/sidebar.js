// The conversations at the side: choose, rename, export, delete.

import { $, el, iconButton } from "./dom.js";
import { exported } from "./talk.js";

const DAY_MS = 86_400_000;

/** `acts`: open(talk), rename(talk, title), remove(talk), say(sentence). */
export class Sidebar {
  constructor(acts) {
    this._acts = acts;
    this._renaming = "";
  }

  show(talks, currentId, goingIds) {
    const groups = new Map();
    for (const talk of talks) {
      const when = whenOf(talk.updated);
      groups.set(when, [...(groups.get(when) ?? []), talk]);
    }
    const lists = [...groups].map(([when, some]) => [el("h2", {}, when), el("ul", {}, ...some.map((talk) => this._item(talk, talk.id === currentId, goingIds.has(talk.id))))]);
    $("talks").replaceChildren(...lists.flat());
    if (!talks.length) $("talks").append(el("p", { class: "muted" }, "Conversations stay in this browser. None yet."));
    $("talks").querySelector("input")?.select();
  }

  _item(talk, isCurrent, isGoing) {
    if (talk.id === this._renaming) return el("li", {}, this._renameField(talk));
    const name = talk.title || "New conversation";
    const open = el("button", { type: "button", class: "open", title: name, onclick: () => this._acts.open(talk) }, name);
    if (isCurrent) open.setAttribute("aria-current", "true");
    if (isGoing) open.classList.add("going");
    const more = iconButton("dots", `More about “${name}”`, () => this._menu(talk, more), { "aria-haspopup": "true", "aria-expanded": "false" });
    return el("li", {}, open, more);
  }

  _menu(talk, button) {
    const wasOpen = button.getAttribute("aria-expanded") === "true";
    closeMenus();
    if (wasOpen) return;
    button.setAttribute("aria-expanded", "true");
    const entry = (name, run) => el("button", { type: "button", role: "menuitem", onclick: () => (closeMenus(), run()) }, name);
    const menu = el(
      "div",
      { class: "menu", role: "menu" },
      entry("Rename", () => this.rename(talk)),
      entry("Export as .jsonl", () => this._export(talk)),
      entry("Delete", () => this._acts.remove(talk)),
    );
    menu.onkeydown = (event) => menuKey(event, menu, button);
    button.after(menu);
    menu.firstChild.focus();
  }

  rename(talk) {
    this._renaming = talk.id;
    this._acts.redraw();
  }

  _renameField(talk) {
    const field = el("input", { value: talk.title, "aria-label": "The conversation's name", maxLength: 200 });
    const end = (isKept) => {
      if (!this._renaming) return;
      this._renaming = "";
      if (isKept && field.value.trim()) this._acts.rename(talk, field.value.trim());
      this._acts.redraw();
    };
    field.onblur = () => end(true);
    field.onkeydown = (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        end(false);
      }
    };
    return field;
  }

  _export(talk) {
    const line = exported(talk);
    if (!line) return this._acts.say("There is no answer in it yet to export.");
    const address = URL.createObjectURL(new Blob([line], { type: "application/jsonl" }));
    const name = (talk.title || "conversation").toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 40);
    el("a", { href: address, download: `${name || "conversation"}.jsonl` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10_000);
  }
}

export function closeMenus() {
  document.querySelectorAll(".menu").forEach((menu) => menu.remove());
  document.querySelectorAll("#talks [aria-expanded=true]").forEach((button) => button.setAttribute("aria-expanded", "false"));
}

function menuKey(event, menu, button) {
  const entries = [...menu.children];
  const at = entries.indexOf(document.activeElement);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
  if (to !== undefined) {
    event.preventDefault();
    entries.at(to % entries.length).focus();
  } else if (event.key === "Escape" || event.key === "Tab") {
    event.stopPropagation();
    closeMenus();
    button.focus();
  }
}

function whenOf(time) {
  const today = new Date().setHours(0, 0, 0, 0);
  if (time >= today) return "Today";
  if (time >= today - DAY_MS) return "Yesterday";
  return time >= today - 7 * DAY_MS ? "This week" : "Earlier";
}
