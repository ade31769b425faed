// How a turn looks: what a person said, or an answer with its calls, its tokens and what became of it.

import { copyText, el, icon, iconButton } from "./dom.js";
import { Prose } from "./markdown.js";
import { textOf, versions } from "./talk.js";
import { TokenStrip } from "./tokens.js";

/** The turn's element with `update()`; `acts` has what its buttons do. */
export function turnView(talk, node, acts) {
  return node.role === "user" ? new UserView(talk, node, acts) : new AnswerView(talk, node, acts);
}

class UserView {
  constructor(talk, node, acts) {
    this._talk = talk;
    this._node = node;
    this._acts = acts;
    this.element = el("article", { class: "turn user", "aria-label": "You" });
    this.update();
  }

  update() {
    const { _node: node, _acts: acts } = this;
    const said = el("div", { class: "said", dir: "auto" }, node.text);
    const edit = iconButton("pen", "Edit this message", () => this.edit());
    this.element.replaceChildren(said, el("div", { class: "acts" }, ...switcher(this._talk, node, acts), copier(node), edit));
  }

  edit() {
    const field = el("textarea", { class: "edit", value: this._node.text, "aria-label": "Edit your message", dir: "auto", rows: 1 });
    const send = () => {
      const text = field.value;
      if (!text.trim()) return;
      this.update();
      if (text !== this._node.text) this._acts.edit(this._node, text);
      else this._acts.focus();
    };
    const leave = () => {
      this.update();
      this._acts.focus();
    };
    field.onkeydown = (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        send();
      }
    };
    field.oninput = () => fit(field);
    const cancel = el("button", { type: "button", class: "text-button", onclick: leave }, "Cancel");
    const save = el("button", { type: "button", class: "button", onclick: send }, "Send");
    this.element.replaceChildren(el("div", { class: "editing" }, field, el("div", { class: "row" }, cancel, save)));
    fit(field);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }
}

/** As high as its text. */
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

class AnswerView {
  constructor(talk, node, acts) {
    this._talk = talk;
    this._node = node;
    this._acts = acts;
    this._views = [];
    this._said = el("div", { class: "said", dir: "auto" });
    this._note = el("p", { class: "note" });
    this._foot = el("div", { class: "acts" });
    this.element = el("article", { class: "turn answer", "aria-label": "The model" }, this._said, this._note, this._foot);
    this._state = "";
    this.update();
  }

  update() {
    const { _node: node, _said: said } = this;
    const isGoing = node.state === "going";
    this.element.classList.toggle("going", isGoing);
    this.element.setAttribute("aria-busy", String(isGoing));
    if (this._acts.showsTokens() !== Boolean(this._strip)) this._restart();
    if (isGoing && isEmpty(node)) said.replaceChildren(el("p", { class: "waiting", "aria-label": "Waiting for the answer", role: "img" }, el("i"), el("i"), el("i")));
    else said.querySelector(".waiting")?.remove();
    if (this._strip) this._showTokens();
    else this._showParts(!isGoing);
    if (this._state !== node.state || isGoing) this._showState();
    if (this._state !== node.state) this._showFoot();
    this._state = node.state;
  }

  /** Its buttons anew: another version came, or another turn is now the last. */
  refresh() {
    this._showFoot();
  }

  _restart() {
    this._said.replaceChildren();
    this._views = [];
    this._strip = this._acts.showsTokens() ? new TokenStrip() : null;
    this._untold = null;
    if (this._strip) this._said.append(this._strip.element);
  }

  _showTokens() {
    if (!this._strip.element.isConnected && !this._said.contains(this._strip.element)) this._said.append(this._strip.element);
    const isTold = this._strip.show(this._node.parts);
    if (isTold === Boolean(this._untold)) {
      this._untold?.remove();
      this._untold = isTold ? null : this._said.appendChild(el("p", { class: "note" }, "The probabilities of this answer were not kept."));
    }
  }

  _showParts(isWhole) {
    const { parts } = this._node;
    parts.forEach((part, i) => {
      const isLast = i === parts.length - 1;
      if (part.type === "python_output" && parts[i - 1]?.type === "python") return this._views[i - 1].show(parts[i - 1].text, true, part.text);
      const view = (this._views[i] ??= this._partView(part));
      view.show(part.text, isWhole || !isLast, part.type === "python" && !isLast && parts[i + 1].type !== "python_output" ? "" : null);
    });
  }

  _partView(part) {
    const view = part.type === "text" ? new Prose() : new CallCard(part.type);
    this._said.append(view.element);
    return view;
  }

  _showState() {
    const { _node: node } = this;
    const words = el("span", {}, stateOf(node));
    this._note.replaceChildren(words);
    this._note.className = `note ${node.state}`;
    this._note.hidden = !words.textContent;
    if (node.state === "failed") this._note.append(el("button", { type: "button", class: "button", onclick: () => this._acts.again(node) }, "Try again"));
  }

  _showFoot() {
    const { _node: node, _foot: foot, _acts: acts } = this;
    if (node.state === "going") return foot.replaceChildren();
    const again = iconButton("again", "Answer again", () => acts.again(node));
    const usual = isEmpty(node) && node.state === "failed" ? [] : [...(isEmpty(node) ? [] : [copier(node)]), again]; // it has a button to try again
    foot.replaceChildren(...switcher(this._talk, node, acts), ...usual, el("span", { class: "pace" }, paceOf(node.pace)));
  }
}

/** A call of the tool and what came back. */
class CallCard {
  constructor(type) {
    this._code = el("code");
    this._result = el("output");
    this.element = el("div", { class: "call", role: "group", "aria-label": "A call of the calculator" }, icon("tool"), this._code, el("span", { class: "arrow", "aria-label": "gives" }, "→"), this._result);
    this._isOrphan = type === "python_output"; // a result that nobody asked for
    if (this._isOrphan) this._code.hidden = true;
  }

  show(text, isWhole, result) {
    if (this._isOrphan) this._result.textContent = text;
    else this._code.textContent = text;
    if (this._isOrphan || result) this._result.textContent = this._isOrphan ? text : result;
    else if (isWhole) this._result.textContent = "no result";
    else this._result.textContent = "…";
    this._result.className = !this._isOrphan && isWhole && !result ? "nothing" : "";
  }
}

const isEmpty = (node) => !node.parts.some((part) => part.text);

function stateOf(node) {
  if (node.trouble) return node.trouble;
  if (node.state === "stopped") return "Stopped.";
  if (node.state === "done" && node.finish === "length") return "Cut at the longest answer that the settings or the context allow.";
  if (node.state === "done" && isEmpty(node)) return "The model said nothing.";
  return "";
}

function paceOf(pace) {
  if (!pace?.tokens) return "";
  const told = [`${pace.tokens.toLocaleString("en-US")} token${pace.tokens === 1 ? "" : "s"}`];
  if (pace.rate) told.push(`${pace.rate < 10 ? pace.rate.toFixed(1) : Math.round(pace.rate).toLocaleString("en-US")} tokens/s`);
  if (pace.first_s !== null) told.push(`first after ${pace.first_s.toFixed(2)} s`);
  return told.join(" · ");
}

function copier(node) {
  const button = iconButton("copy", "Copy", () => copyText(textOf(node), button));
  return button;
}

/** ‹ 2/3 › where a turn has several versions. */
function switcher(talk, node, acts) {
  const all = versions(talk, node);
  if (all.length < 2) return [];
  const at = all.indexOf(node);
  const to = (step) => () => acts.choose(all[at + step], step);
  const earlier = iconButton("left", "Earlier version", to(-1), { disabled: at === 0 });
  const later = iconButton("right", "Later version", to(1), { disabled: at === all.length - 1 });
  return [el("span", { class: "versions", role: "group", "aria-label": "Versions of this turn" }, earlier, el("span", {}, `${at + 1}/${all.length}`), later)];
}
