// Getting an answer: the request, what comes of it into the conversation, stopping, waiting for a busy server.

import { reply, Trouble } from "./api.js";
import { messages, textOf } from "./talk.js";

const MOST_WAITS = 20; // for a server that is busy or loads a model, before it is called a failure
const ALTERNATIVES = 5;

export class Answering {
  /** `hears`: changed(talk, node) as an answer grows, ended(talk, node), needsKey() → whether one was given, lost(). */
  constructor(settings, hears) {
    this._settings = settings;
    this._hears = hears;
    this._going = new Map(); // id of a conversation -> what stops its answer
    this.server = null;
  }

  ids() {
    return new Set(this._going.keys());
  }

  isGoing(talk) {
    return this._going.has(talk.id);
  }

  stop(talk) {
    this._going.get(talk.id)?.abort();
  }

  async run(talk, node) {
    const stopper = new AbortController();
    this._going.set(talk.id, stopper);
    try {
      await this._patiently(talk, node, stopper.signal);
      node.state = "done";
    } catch (error) {
      this._failed(node, error);
    }
    this._going.delete(talk.id);
    talk.updated = Date.now();
    this._hears.ended(talk, node);
  }

  _failed(node, error) {
    node.state = error.name === "AbortError" ? "stopped" : "failed";
    node.trouble = node.state === "stopped" ? "" : error instanceof Trouble ? error.message : `The page failed: ${error.message}`;
    if (error.kind === "offline") this._hears.lost();
    if (node.state === "failed" && !(error instanceof Trouble)) console.error(error);
  }

  async _patiently(talk, node, signal) {
    for (let waits = 0; ; waits++) {
      try {
        return await this._stream(talk, node, signal);
      } catch (error) {
        if (error.kind === "key" && (await this._hears.needsKey(error.message))) continue;
        if (error.kind !== "busy" || waits >= MOST_WAITS) throw error;
        await this._wait(talk, node, error, signal);
      }
    }
  }

  async _wait(talk, node, { message, waitS }, signal) {
    for (let left = Math.ceil(waitS); left > 0; left--) {
      node.trouble = `${message} Trying again in ${left} s.`;
      this._hears.changed(talk, node);
      await pause(Math.min(1, waitS) * 1000, signal);
    }
    node.trouble = "";
  }

  async _stream(talk, node, signal) {
    const began = performance.now();
    let first = null;
    let last = null;
    let seen = 0;
    for await (const piece of reply(...this._request(talk, node), signal)) {
      if (piece.usage) seen = piece.usage.completion_tokens ?? seen;
      else if (piece.finish) node.finish = piece.finish;
      else {
        last = performance.now();
        first ??= last;
        seen += piece.tokens.length || 1;
        addPiece(node, piece);
      }
      if (first !== null) node.pace = paceOf(began, first, last, seen);
      this._hears.changed(talk, node);
    }
  }

  _request(talk, node) {
    const { run, can_chat: canChat } = this.server;
    const asked = talk.nodes[node.parent];
    const common = { model: run, stream: true, stream_options: { include_usage: true }, ...this._settings.request() };
    if (canChat === false) return ["v1/completions", { ...common, prompt: textOf(asked), logprobs: ALTERNATIVES }];
    return ["v1/chat/completions", { ...common, messages: messages(talk, asked), logprobs: true, top_logprobs: ALTERNATIVES, truncate: true }];
  }
}

function addPiece(node, { type, text, tokens }) {
  let part = node.parts.at(-1);
  if (part?.type !== type) node.parts.push((part = { type, text: "", tokens: [] }));
  part.text += text;
  part.tokens.push(...tokens);
}

function paceOf(began, first, last, tokens) {
  const lasted = (last - first) / 1000;
  return { first_s: (first - began) / 1000, rate: tokens > 1 && lasted > 0.05 ? (tokens - 1) / lasted : null, tokens };
}

function pause(ms, signal) {
  return new Promise((wake, refuse) => {
    const abort = () => (clearTimeout(timer), refuse(signal.reason));
    const timer = setTimeout(() => (signal.removeEventListener("abort", abort), wake()), ms);
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort, { once: true });
  });
}
