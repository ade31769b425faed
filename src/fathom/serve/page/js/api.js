// Asking the server: who it is, and answers that stream. Every failure becomes a Trouble, in words.

const KEY = "fathom.key"; // of this tab and session alone; the dashboard in its tab reads it too
let key = recalledKey();

function recalledKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export function setKey(value) {
  key = value;
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // it is asked for again after a reload then
  }
}

/** kind: offline, busy (429, 503: worth waiting for), key (401), refused (the request is at fault), failed, broken. */
export class Trouble extends Error {
  constructor(kind, message, waitS = 0) {
    super(message);
    this.kind = kind;
    this.waitS = waitS;
  }
}

const OFFLINE = "The server does not answer. Is `fathom serve` still running?";
const BROKEN = "The connection broke off in the middle of the answer.";

/** What the server serves: {run, step, stage, seq_len, parameters, limits, can_chat, …}. */
export async function about(signal) {
  const answer = await ask("v1/fathom/run", { signal, cache: "no-store" });
  try {
    return await answer.json();
  } catch {
    throw new Trouble("failed", "The server answers, but not as `fathom serve` does.");
  }
}

async function ask(url, options) {
  let answer;
  try {
    answer = await fetch(url, { ...options, headers: { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Trouble("offline", OFFLINE);
  }
  if (!answer.ok) throw await troubleOf(answer);
  return answer;
}

async function troubleOf(answer) {
  const { message, code } = await errorOf(answer);
  const said = message ? sentence(message) : "";
  const wait = Math.min(Math.max(Number(answer.headers.get("Retry-After")) || 1, 0.5), 30);
  if (answer.status === 401) return new Trouble("key", said || "This server asks for a key.");
  if (answer.status === 429) return new Trouble("busy", "The server is busy with others.", wait);
  if (answer.status === 503 && (!code || code === "loading")) return new Trouble("busy", "The model is being loaded.", wait);
  if (answer.status < 500) return new Trouble("refused", said || `The server refused this (${answer.status}).`);
  return new Trouble("failed", said || `The server failed (${answer.status}).`);
}

async function errorOf(answer) {
  try {
    return (await answer.json()).error ?? {};
  } catch {
    return {}; // an answer without words
  }
}

const sentence = (words) => `${words[0].toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;

/**
 * An answer as it comes: {type, text, tokens} a piece, {finish}, {usage}.
 * Ends after the last; throws Trouble, or AbortError where `signal` said stop.
 */
export async function* reply(path, body, signal) {
  const answer = await ask(path, {
    method: "POST",
    signal,
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify(body),
  });
  let finished = false;
  for await (const event of events(answer.body)) {
    if (event.error) throw new Trouble("failed", event.error.message ? sentence(event.error.message) : "The server failed in the middle of the answer.");
    if (event.usage) yield { usage: event.usage };
    const choice = event.choices?.[0];
    if (!choice) continue;
    const piece = pieceOf(choice);
    if (piece.text || piece.tokens.length) yield piece;
    if (choice.finish_reason) {
      finished = true;
      yield { finish: choice.finish_reason };
    }
  }
  if (!finished) throw new Trouble("broken", BROKEN);
}

function pieceOf(choice) {
  const delta = choice.delta ?? { content: choice.text };
  const type = delta.part?.type ?? "text";
  return { type, text: delta.part?.text ?? delta.content ?? "", tokens: tokensOf(choice.logprobs) };
}

/** Both of OpenAI's forms of log-probabilities as [text, log-probability, alternatives]; a token's bytes go before its text. */
function tokensOf(logprobs) {
  if (logprobs?.content) return logprobs.content.map((token) => [written(token), rounded(token.logprob), (token.top_logprobs ?? []).map((other) => [written(other), rounded(other.logprob)])]);
  return (logprobs?.tokens ?? []).map((text, i) => [text, rounded(logprobs.token_logprobs[i]), Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([other, value]) => [other, rounded(value)])]);
}

const rounded = (value) => (Number.isFinite(value) ? Math.round(value * 1000) / 1000 : null);

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** A token as text; one that is a part of a character is written as its bytes. */
function written({ token, bytes }) {
  if (!Array.isArray(bytes) || !bytes.length) return token ?? "";
  try {
    return strict.decode(new Uint8Array(bytes));
  } catch {
    return bytes.map((byte) => `‹${byte.toString(16).padStart(2, "0")}›`).join("");
  }
}

/** Server-sent events as JSON, up to [DONE]. */
async function* events(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let held = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      held += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const lines = held.split("\n");
      held = done ? "" : lines.pop();
      for (const line of lines) {
        const data = /^data: ?(.*?)\r?$/s.exec(line)?.[1];
        if (data === undefined) continue;
        if (data === "[DONE]") return;
        yield parsed(data);
      }
      if (done) return;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Trouble) throw error;
    throw new Trouble("broken", BROKEN);
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new Trouble("failed", "The server's answer cannot be read.");
  }
}
