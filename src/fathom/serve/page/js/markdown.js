// What a model says, as markdown, safely: HTML in it is shown as text, and what comes out of the parser is cleaned
// again by DOMPurify, by a list of what may stay. Nothing in it runs or loads anything from anywhere.

import { Marked } from "../lib/marked.esm.js";
import { copyText, el, icon } from "./dom.js";

const escape = (text) => text.replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);
const BREAK = /^<br\s*\/?>$/i;
const SAFE_ADDRESS = /^(?:https?:\/\/|mailto:)/i;

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text, block }) => (BREAK.test(text.trim()) ? "<br>" : block ? `<p>${escape(text)}</p>` : escape(text)),
    image: ({ href, text }) => `<a href="${escape(href ?? "")}">${escape(`image: ${text || href}`)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const RULES = {
  ALLOWED_TAGS: "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre strong table tbody td th thead tr ul #text".split(" "),
  ALLOWED_ATTR: ["href", "class", "align", "start"],
  ADD_URI_SAFE_ATTR: ["align", "start"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: SAFE_ADDRESS,
  RETURN_DOM_FRAGMENT: true,
};

const purify = window.DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.hasAttribute("class") && !(node.nodeName === "CODE" && /^language-[\w+#.-]{1,30}$/.test(node.className))) node.removeAttribute("class");
  if (node.nodeName !== "A") return;
  const address = node.getAttribute("href");
  if (!address || !SAFE_ADDRESS.test(address)) {
    node.removeAttribute("href");
    return;
  }
  node.setAttribute("title", address);
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

/** HTML from anywhere as a fragment in which nothing can run or load. */
export const sanitized = (html) => purify.sanitize(html, RULES);

function drawn(tokens) {
  const fragment = sanitized(marked.parser(tokens));
  for (const code of fragment.querySelectorAll("pre > code")) code.parentElement.replaceWith(codeBlock(code));
  for (const table of fragment.querySelectorAll("table")) {
    const frame = el("div", { class: "wide", tabIndex: 0, role: "group", "aria-label": "table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return [...fragment.childNodes];
}

function codeBlock(code) {
  const language = code.className.replace("language-", "");
  const copy = el("button", { type: "button", class: "icon-button", "aria-label": "Copy this code", title: "Copy this code" }, icon("copy"));
  copy.onclick = () => copyText(code.textContent, copy);
  return el("figure", { class: "code" }, el("figcaption", {}, el("span", {}, language), copy), el("pre", { tabIndex: 0 }, code));
}

/** A text that grows. Blocks that are whole are drawn once; only the last is drawn again as more of it comes. */
export class Prose {
  constructor() {
    this.element = el("div", { class: "prose" });
    this._reset();
  }

  _reset() {
    this._settled = ""; // the text whose blocks stand
    this._last = []; // the nodes of the block that may yet change
    this._openCode = null; // {code, lang} where that block is code
    this._refers = false; // whether a link is defined somewhere, which can change what came before
    this.element.replaceChildren();
  }

  show(text, isWhole) {
    const clean = text.replace(/\r\n?/g, "\n");
    if (!clean.startsWith(this._settled)) this._reset();
    if (isWhole && this._refers) this._reset();
    const rest = clean.slice(this._settled.length);
    const tokens = marked.lexer(rest);
    if (tokens.some((token) => token.type === "def")) this._refers = true;
    if (isWhole && this._refers && this._settled) return this.show(text, isWhole);
    const open = isWhole ? tokens.length : Math.max(0, tokens.findLastIndex((token) => token.type !== "space"));
    const settles = this._settle(tokens.slice(0, open), rest);
    this._drawLast(settles ? tokens.slice(open) : tokens);
  }

  _settle(tokens, rest) {
    const raw = tokens.map((token) => token.raw).join("");
    if (!rest.startsWith(raw)) return false;
    if (raw) {
      this._clearLast();
      this.element.append(...drawn(tokens));
      this._settled += raw;
    }
    return true;
  }

  _drawLast(tokens) {
    const [token] = tokens;
    const isOpenCode = token?.type === "code" && tokens.length === 1;
    if (isOpenCode && this._openCode && this._openCode.lang === token.lang) {
      this._openCode.code.textContent = token.text;
      return;
    }
    this._clearLast();
    if (!token) return;
    this._last = drawn(tokens);
    this.element.append(...this._last);
    const code = isOpenCode ? this.element.lastElementChild?.querySelector("pre > code") : null;
    this._openCode = code ? { code, lang: token.lang } : null;
  }

  _clearLast() {
    this._last.forEach((node) => node.remove());
    this._last = [];
    this._openCode = null;
  }
}
