// What the browser keeps: conversations, one entry each, and settings. It can be blocked, full or broken; the page
// then goes on from memory and says so.

import { revived, withoutTokens } from "./talk.js";

const TALK = "fathom.talk.";
export const MOST_CHARACTERS = 3_000_000; // browsers allow about five million

export class Store {
  /** `say(sentence)` tells the person what could not be kept. */
  constructor(say) {
    this._say = (sentence) => this._said.has(sentence) || (this._said.add(sentence), say(sentence));
    this._said = new Set();
    this._broken = new Set(); // keys of entries that cannot be read: the first to go when room is needed
    this._sizes = new Map(); // key -> characters
    this.talks = new Map();
    try {
      this._box = window.localStorage;
      this._box.setItem("fathom.trial", "");
      this._box.removeItem("fathom.trial");
    } catch (error) {
      if (!this._box || error.name !== "QuotaExceededError") {
        this._box = null;
        this._say("This browser keeps nothing for this page: conversations end with the visit.");
      }
    }
    this._read();
  }

  _read() {
    for (const key of this._keys()) this._take(key, this._box.getItem(key));
    if (this._broken.size) this._say(`${this._broken.size === 1 ? "One conversation" : `${this._broken.size} conversations`} could not be read and was left out.`);
  }

  _keys() {
    return this._box ? Array.from({ length: this._box.length }, (_, i) => this._box.key(i)).filter((key) => key.startsWith(TALK)) : [];
  }

  _take(key, text) {
    let talk = null;
    try {
      talk = revived(JSON.parse(text));
    } catch {
      // not JSON
    }
    this._sizes.set(key, text.length);
    if (talk && key === TALK + talk.id) this.talks.set(talk.id, talk);
    else this._broken.add(key);
  }

  /** What another tab wrote; returns the conversation's id, or "" where it is none of ours. */
  heard({ key, newValue }) {
    if (!key?.startsWith(TALK)) return "";
    const id = key.slice(TALK.length);
    this.talks.delete(id);
    this._sizes.delete(key);
    if (newValue !== null) this._take(key, newValue);
    return id;
  }

  /** Newest first. */
  listing() {
    return [...this.talks.values()].sort((a, b) => b.updated - a.updated);
  }

  save(talk) {
    this.talks.set(talk.id, talk);
    if (!this._box) return;
    if (this._put(TALK + talk.id, JSON.stringify(talk))) return;
    for (const kept of [talk, withoutTokens(talk)]) {
      const text = JSON.stringify(kept);
      while (!this._put(TALK + talk.id, text)) if (!this._makeRoom(talk, kept === talk)) break;
      if (this._sizes.get(TALK + talk.id) === text.length) return;
    }
    this._say("The browser has no room for this conversation: export it if you want to keep it.");
  }

  _put(key, text) {
    const others = [...this._sizes].reduce((sum, [other, size]) => sum + (other === key ? 0 : size), 0);
    if (others + text.length > MOST_CHARACTERS) return false;
    try {
      this._box.setItem(key, text);
      this._sizes.set(key, text.length);
      return true;
    } catch {
      return false; // full, though by our count it is not
    }
  }

  /** Give up something, the least first; false where nothing is left to give. `gently`: no conversation but its tokens. */
  _makeRoom(except, gently) {
    for (const key of this._broken) return this._broken.delete(key), this._drop(key);
    const oldest = this.listing().reverse().filter((talk) => talk.id !== except.id && this._sizes.has(TALK + talk.id));
    for (const talk of oldest) {
      const bare = withoutTokens(talk);
      const text = JSON.stringify(bare);
      if (text.length >= this._sizes.get(TALK + talk.id)) continue;
      this.talks.set(talk.id, bare);
      this._drop(TALK + talk.id);
      return this._put(TALK + talk.id, text) || true;
    }
    if (gently || !oldest.length) return false;
    this.talks.delete(oldest[0].id);
    this._say("The browser's room for conversations is full: the oldest are being dropped. Export what you want to keep.");
    return this._drop(TALK + oldest[0].id);
  }

  _drop(key) {
    this._box.removeItem(key);
    this._sizes.delete(key);
    return true;
  }

  remove(id) {
    this.talks.delete(id);
    if (this._box) this._drop(TALK + id);
  }

  /** A small value, or what stands for it where there is none. */
  recall(name, otherwise) {
    try {
      return JSON.parse(this._box?.getItem(`fathom.${name}`)) ?? otherwise;
    } catch {
      return otherwise;
    }
  }

  remember(name, value) {
    try {
      this._box?.setItem(`fathom.${name}`, JSON.stringify(value));
    } catch {
      // it holds for this visit then
    }
  }
}
