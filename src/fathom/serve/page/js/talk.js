// A conversation: a tree of turns, since an edited or repeated turn keeps its earlier versions. Draws nothing.
//
// talk: {id, title, created, updated, system, nodes: {id: node}, chosen: {id of a parent: id of the child shown}}
// node: {id, parent, role: "user", text} or
//       {id, parent, role: "assistant", parts: [{type, text, tokens}], state, finish, trouble, pace}
// A part's type is text, python or python_output; a token is [text, log-probability, [[text, log-probability], …]].
// state: going, done, stopped or failed.

export const ROOT = "root";
const TITLE_CHARACTERS = 60;

export function newTalk(system = "") {
  const now = Date.now();
  const id = [...crypto.getRandomValues(new Uint8Array(9))].map((byte) => byte.toString(36).padStart(2, "0")).join("");
  return { id, title: "", created: now, updated: now, system, nodes: {}, chosen: {} };
}

export function addUser(talk, parent, text) {
  if (!talk.title && parent === ROOT) talk.title = titleOf(text);
  return add(talk, { parent, role: "user", text });
}

export const addAnswer = (talk, parent) => add(talk, { parent, role: "assistant", parts: [], state: "going", finish: "", trouble: "", pace: null });

function add(talk, node) {
  const numbers = Object.keys(talk.nodes).map((id) => Number(id.slice(1)));
  node.id = `n${Math.max(0, ...numbers) + 1}`;
  talk.nodes[node.id] = node;
  talk.chosen[node.parent] = node.id;
  talk.updated = Date.now();
  return node;
}

function titleOf(text) {
  const line = text.trim().replace(/\s+/g, " ");
  return line.length > TITLE_CHARACTERS ? `${[...line].slice(0, TITLE_CHARACTERS).join("")}…` : line;
}

/** The turns that are shown, from the first on. */
export function path(talk) {
  const turns = [];
  let id = talk.chosen[ROOT];
  while (id && talk.nodes[id] && turns.length <= Object.keys(talk.nodes).length) {
    turns.push(talk.nodes[id]);
    id = talk.chosen[id];
  }
  return turns;
}

/** The versions of a turn, itself among them. */
export const versions = (talk, node) => Object.values(talk.nodes).filter((other) => other.parent === node.parent);

export function choose(talk, node) {
  talk.chosen[node.parent] = node.id;
}

/** What the person reads of an answer: its text, without calls and results. */
export const textOf = (node) => (node.role === "user" ? node.text : node.parts.filter((part) => part.type === "text").map((part) => part.text).join(""));

const isSilent = (node) => node.role === "assistant" && !node.parts.some((part) => part.text);

/** Messages up to and with a turn, as the API and `fathom sft --data` take them; questions without an answer are left out. */
export function messages(talk, last) {
  const turns = [];
  for (let node = last; node && turns.length <= Object.keys(talk.nodes).length; node = talk.nodes[node.parent]) turns.unshift(node);
  const told = talk.system.trim() ? [{ role: "system", content: talk.system }] : [];
  turns.forEach((node, i) => {
    const answer = node.role === "user" ? turns[i + 1] : node;
    if (answer && isSilent(answer)) return;
    told.push({ role: node.role, content: node.role === "user" ? node.text : contentOf(node) });
  });
  return told;
}

function contentOf(node) {
  const parts = node.parts.filter((part) => part.text || part.type !== "text").map(({ type, text }) => ({ type, text }));
  return parts.every((part) => part.type === "text") ? textOf(node) : parts;
}

/** One line of a .jsonl file that `fathom sft --data` reads, or "" where nothing was answered yet. */
export function exported(talk) {
  const turns = path(talk);
  while (turns.length && (turns.at(-1).role === "user" || isSilent(turns.at(-1)))) turns.pop();
  return turns.length ? `${JSON.stringify({ messages: messages(talk, turns.at(-1)) })}\n` : "";
}

/** A conversation as it was stored, with everything checked, or null where it is none. */
export function revived(value) {
  const isText = (text) => typeof text === "string";
  if (!value || !isText(value.id) || !value.nodes || typeof value.nodes !== "object" || typeof value.chosen !== "object") return null;
  const talk = { id: value.id, title: String(value.title ?? ""), created: Number(value.created) || 0, updated: Number(value.updated) || 0 };
  Object.assign(talk, { system: isText(value.system) ? value.system : "", nodes: {}, chosen: {} });
  for (const [id, node] of Object.entries(value.nodes)) {
    if (!/^n\d+$/.test(id) || !node || !isText(node.parent)) return null;
    if (node.role === "user" && isText(node.text)) talk.nodes[id] = { id, parent: node.parent, role: "user", text: node.text };
    else if (node.role === "assistant" && Array.isArray(node.parts)) talk.nodes[id] = revivedAnswer(id, node);
    else return null;
  }
  for (const [parent, child] of Object.entries(value.chosen ?? {})) if (talk.nodes[child]?.parent === parent) talk.chosen[parent] = child;
  return talk;
}

function revivedAnswer(id, node) {
  const parts = node.parts
    .filter((part) => part && typeof part.text === "string" && ["text", "python", "python_output"].includes(part.type))
    .map(({ type, text, tokens }) => ({ type, text, ...(Array.isArray(tokens) && tokens.every(isToken) ? { tokens } : {}) }));
  const state = ["done", "stopped", "failed"].includes(node.state) ? node.state : "stopped"; // the page was left in the middle
  const number = (value) => (Number.isFinite(value) ? value : null);
  const pace = node.pace && { first_s: number(node.pace.first_s), rate: number(node.pace.rate), tokens: number(node.pace.tokens) };
  return { id, parent: node.parent, role: "assistant", parts, state, finish: String(node.finish ?? ""), trouble: String(node.trouble ?? ""), pace };
}

const isToken = (token) =>
  Array.isArray(token) && typeof token[0] === "string" && Array.isArray(token[2]) && token[2].every((other) => Array.isArray(other) && typeof other[0] === "string");

/** The same without what the token view shows, which is most of its size. */
export function withoutTokens(talk) {
  const bare = (node) => (node.role === "user" ? node : { ...node, parts: node.parts.map(({ type, text }) => ({ type, text })) });
  return { ...talk, nodes: Object.fromEntries(Object.entries(talk.nodes).map(([id, node]) => [id, bare(node)])) };
}
