// The first screen: which model this is, in words, and things to ask it.

import { $, el, icon } from "./dom.js";

const QUESTIONS = [
  ["What is the capital of France?", "a fact"],
  ["What is 12*3?", "the calculator"],
  ["How many r are in strawberry?", "counting letters"],
  ["How do you spell butterfly?", "spelling"],
  ["What is the opposite of hot?", "a word"],
  ["Tell me a story.", "a story"],
];
const BEGINNINGS = [
  ["The capital of France is", "a fact"],
  ["The opposite of hot is", "a word"],
  ["The planets of the solar system are:", "a list"],
  ["One morning Anna and Ben went to the", "a story"],
];
const STAGES = { sft: "taught to chat", pretrain: "pretrained, not yet taught to chat" };

/** 1234567 as "1.2 million". */
export function inWords(count) {
  for (const [size, name] of [[1e9, "billion"], [1e6, "million"]]) if (count >= size) return `${(count / size).toFixed(count / size < 10 ? 1 : 0)} ${name}`;
  return count.toLocaleString("en-US");
}

export function showWelcome(server, ask) {
  $("welcome-name").textContent = server?.run ?? "fathom";
  $("welcome-facts").replaceChildren(...(server ? facts(server).map((fact) => el("li", {}, fact)) : []));
  const canChat = server?.can_chat !== false;
  $("welcome-lead").textContent = !server
    ? "Waiting for the model …"
    : canChat
      ? "A language model that was trained from nothing, on a machine like yours. Ask it something."
      : "This model has not been taught to chat: it goes on with what you begin. Teach it with `fathom sft`.";
  const chips = (canChat ? QUESTIONS : BEGINNINGS).map(([text, kind]) => el("button", { type: "button", class: "chip", onclick: () => ask(text) }, el("span", {}, text), el("small", {}, kind), icon("up")));
  $("examples").replaceChildren(...(server ? chips : []));
}

function facts({ depth, n_layer, parameters, step, seq_len, stage }) {
  const layers = depth ?? n_layer;
  return [
    layers && `depth ${layers}`,
    parameters && `${inWords(parameters)} parameters`,
    step != null && `step ${step.toLocaleString("en-US")}`,
    STAGES[stage],
    seq_len && `reads ${seq_len.toLocaleString("en-US")} tokens at once`,
  ].filter(Boolean);
}
