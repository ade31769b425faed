// Making elements. Strings become text, never markup.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; `aria-…` and `data-…` are set as attributes, `on…` as listeners. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (value == null || value === false) continue;
    if (key === "class") made.className = value;
    else if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

// Strokes on a field of 24 by 24.
const STROKES = {
  up: "M12 19V5M6 11l6-6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  left: "M14.5 6l-6 6 6 6",
  right: "M9.5 6l6 6-6 6",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12.5l4.5 4.5L19 7.5",
  again: "M19.5 12a7.5 7.5 0 1 1-2.2-5.3M19.5 3.5v4h-4",
  pen: "M4 20l1-4.5L16.5 4 20 7.5 8.5 19zM14 6.5l3.5 3.5",
  bin: "M4.5 7h15M10 7V4.5h4V7M6.5 7l1 12.5h9l1-12.5",
  save: "M12 4v11M7 10.5l5 5 5-5M4.5 20h15",
  cross: "M6 6l12 12M18 6L6 18",
  dots: "M6 12h.01M12 12h.01M18 12h.01",
  tool: "M8 8l-4 4 4 4M16 8l4 4-4 4M13.5 5.5l-3 13",
  plus: "M12 5v14M5 12h14",
};
const SVG = "http://www.w3.org/2000/svg";

export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 24 24");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", STROKES[name]);
  drawing.append(path);
  return drawing;
}

/** A button that shows an icon; its label is what it is called, and its tooltip. */
export function iconButton(name, label, onclick, properties = {}) {
  return el("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...properties }, icon(name));
}

/** Call `work` at most once a frame, and less often where one call takes long: a third of the time at most. */
export function paced(work) {
  let waiting = false;
  let free = 0;
  const step = () => {
    const now = performance.now();
    if (now < free) {
      requestAnimationFrame(step);
      return;
    }
    waiting = false;
    work();
    const took = performance.now() - now;
    free = now + took + (took > 5 ? 2 * took : 0);
  };
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(step);
  };
}

export async function copyText(text, button) {
  const before = [...button.childNodes];
  let ok = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    ok = copyBySelection(text); // no permission, or a page that was not served securely
  }
  button.replaceChildren(icon(ok ? "check" : "cross"));
  setTimeout(() => button.replaceChildren(...before), 1500);
}

function copyBySelection(text) {
  const field = el("textarea", { value: text, class: "offstage", "aria-hidden": "true" });
  document.body.append(field);
  field.select();
  const ok = document.execCommand("copy");
  field.remove();
  return ok;
}
