// Watching the server: what it serves, and whether it is there. While it is not, it is asked again and again.

import { about } from "./api.js";
import { $ } from "./dom.js";

const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 8000;

export class Server {
  /** `found(facts)` hears what the server serves, `needsKey(sentence)` asks for a key and says whether one was given. */
  constructor(found, needsKey) {
    this._found = found;
    this._needsKey = needsKey;
    this._watching = false;
    $("retry-now").onclick = () => this._wake?.();
  }

  /** Ask until it answers. */
  async watch() {
    if (this._watching) return;
    this._watching = true;
    for (let wait = FIRST_WAIT_MS; !(await this._isThere()); wait = Math.min(wait * 1.6, LONGEST_WAIT_MS)) {
      await new Promise((wake) => {
        this._wake = wake;
        setTimeout(wake, wait);
      });
    }
    this._watching = false;
  }

  async _isThere() {
    try {
      const facts = await about();
      this._say("", "ready");
      this._found(facts);
      return true;
    } catch (error) {
      if (error.kind === "key" && (await this._needsKey(error.message))) return this._isThere();
      const words = { offline: "Asking again until it does.", busy: "This page goes on by itself." }[error.kind] ?? "";
      this._say(`${error.message} ${words}`, error.kind === "busy" ? "loading" : "lost");
      return false;
    }
  }

  _say(sentence, state) {
    $("banner").hidden = !sentence;
    $("banner-text").textContent = sentence;
    $("where").dataset.state = state;
  }
}
