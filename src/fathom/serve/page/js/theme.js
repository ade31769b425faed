"use strict";

// Light or dark, set before anything is drawn: as the system has it, until someone chooses otherwise.
{
  const system = matchMedia("(prefers-color-scheme: dark)");
  const KEY = "fathom.theme";

  function chosen() {
    try {
      const found = localStorage.getItem(KEY);
      return found === "light" || found === "dark" ? found : null;
    } catch {
      return null; // storage is blocked
    }
  }

  let theme = chosen();
  const shown = () => theme ?? (system.matches ? "dark" : "light");

  function apply() {
    document.documentElement.dataset.theme = shown();
    dispatchEvent(new Event("fathom-theme"));
  }

  /** The other one; where that is the system's own, the page follows the system again. */
  function turn() {
    const wanted = shown() === "dark" ? "light" : "dark";
    theme = wanted === (system.matches ? "dark" : "light") ? null : wanted;
    try {
      if (theme) localStorage.setItem(KEY, theme);
      else localStorage.removeItem(KEY);
    } catch {
      // it holds for this visit then
    }
    apply();
  }

  system.addEventListener("change", apply);
  window.fathomTheme = { turn, shown };
  apply();
}
