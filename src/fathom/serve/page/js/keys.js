// Keys that hold anywhere on the page.

import { hideTip } from "./tokens.js";
import { closeMenus } from "./sidebar.js";

export function hearKeys(acts) {
  document.addEventListener("click", ({ target }) => target.closest?.(".menu, [aria-haspopup]") || closeMenus());
  document.addEventListener("keydown", (event) => {
    const { key, ctrlKey, metaKey, altKey } = event;
    const isDialogOpen = document.querySelector("dialog[open]") !== null;
    const isTyping = event.target.matches?.("input, textarea");
    if ((ctrlKey || metaKey) && !altKey && key.toLowerCase() === "k" && !isDialogOpen) {
      event.preventDefault();
      acts.fresh();
    } else if (key === "Escape" && !isDialogOpen) {
      hideTip();
      acts.closeDrawer();
      acts.stop();
    } else if (key === "?" && !isTyping && !isDialogOpen && !ctrlKey && !metaKey) {
      event.preventDefault();
      acts.help();
    }
  });
}
