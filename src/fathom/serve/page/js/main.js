// The chat page: what is shown, and what follows from what a hand does.

import { setKey } from "./api.js";
import { Answering } from "./answering.js";
import { $ } from "./dom.js";
import { hearKeys } from "./keys.js";
import { Log } from "./log.js";
import { Server } from "./server.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";
import { addAnswer, addUser, choose, newTalk, path, ROOT, textOf } from "./talk.js";
import { hideTip } from "./tokens.js";
import { announce, Reader, toast } from "./toast.js";
import { fit } from "./turn.js";
import { showWelcome } from "./welcome.js";

const SAVE_MS = 1500;

const store = new Store(toast);
const readers = new Map(); // an answer's node -> what reads it out
let server = null;
let talk = null;
let showsTokens = store.recall("tokens", false) === true;
let saving = 0;

const settings = new Settings(store, (text) => {
  talk.system = text;
  if (path(talk).length) store.save(talk);
});

const answering = new Answering(settings, { changed: grown, ended, needsKey, lost: () => watcher.watch() });
const log = new Log({
  showsTokens: () => showsTokens,
  edit: (node, text) => say(text, node.parent),
  again: (node) => answer(talk.nodes[node.parent]),
  choose: (node) => (choose(talk, node), keep(), show()),
  focus: () => $("message").focus(),
});
const sidebar = new Sidebar({ open, redraw: showList, remove, say: toast, rename: (named, title) => ((named.title = title), store.save(named)) });
const watcher = new Server((facts) => {
  server = answering.server = facts;
  settings.limit(facts.limits?.max_tokens);
  document.title = `${facts.run} · fathom`;
  $("run-name").textContent = facts.run;
  $("message").placeholder = facts.can_chat === false ? "Begin a text …" : `Message ${facts.run}`;
  showState();
}, needsKey);

// ---- conversations

function open(wanted) {
  talk = wanted;
  store.remember("current", talk.id);
  settings.showSystem(talk.system);
  $("app").classList.remove("drawn");
  location.hash = "";
  show();
  log.toEnd();
  if (matchMedia("(hover: hover)").matches) $("message").focus(); // a phone would bring up its keyboard
}

function fresh() {
  if (path(talk).length || talk.title) open(newTalk(settings.values.system));
  else open(talk);
  $("message").focus();
}

function remove(gone) {
  answering.stop(gone);
  store.remove(gone.id);
  const back = () => {
    store.save(gone);
    open(gone);
  };
  toast(`“${gone.title || "New conversation"}” was deleted.`, { name: "Undo", run: back });
  if (gone === talk) open(store.listing()[0] ?? newTalk(settings.values.system));
  else showList();
}

function keep() {
  clearTimeout(saving);
  saving = 0;
  if (path(talk).length) store.save(talk);
}

// ---- saying and answering

function say(text, parent = path(talk).at(-1)?.id ?? ROOT) {
  answering.stop(talk);
  answer(addUser(talk, parent, text));
}

function answer(asked) {
  if (!server) return toast("The model is not there yet.");
  answering.stop(talk);
  const node = addAnswer(talk, asked.id);
  store.remember("current", talk.id);
  readers.set(node, new Reader());
  answering.run(talk, node);
  keep();
  show();
  log.toEnd();
}

function grown(whose, node) {
  readers.get(node)?.tell(textOf(node), false);
  if (whose === talk) log.changed(node);
  saving ||= setTimeout(() => ((saving = 0), isKept(whose) && store.save(whose)), SAVE_MS);
}

function ended(whose, node) {
  readers.get(node)?.tell(textOf(node), true);
  readers.delete(node);
  if (node.trouble) announce(node.trouble);
  if (isKept(whose)) store.save(whose);
  if (whose === talk) log.changed(node);
  showState();
}

const isKept = (whose) => store.talks.has(whose.id); // and was not deleted while it was answered

function send() {
  const text = $("message").value;
  if (!text.trim()) return;
  if (!server) return toast("The model is not there yet; your message stays here until it is.");
  $("message").value = "";
  fit($("message"));
  say(text);
}

// ---- showing

function show() {
  log.show(talk);
  showState();
}

function showState() {
  const isEmpty = !path(talk).length;
  $("app").classList.toggle("empty", isEmpty);
  if (isEmpty) showWelcome(server, (text) => say(text));
  const isGoing = answering.isGoing(talk);
  $("send").hidden = isGoing;
  $("stop").hidden = !isGoing;
  $("send").disabled = !$("message").value.trim();
  showList();
}

function showList() {
  sidebar.show(store.listing(), talk.id, answering.ids());
}

function showView() {
  const isRuns = location.hash === "#runs";
  $("chat").hidden = isRuns;
  $("runs").hidden = !isRuns;
  $("app").classList.toggle("at-runs", isRuns);
  for (const link of document.querySelectorAll("#tabs a")) {
    if ((link.hash === "#runs") === isRuns) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (isRuns && !$("runs").hasAttribute("src")) $("runs").src = "runs/";
}

function showTheme() {
  const isDark = window.fathomTheme.shown() === "dark";
  $("theme").setAttribute("aria-label", isDark ? "Switch to light" : "Switch to dark");
  $("theme").title = $("theme").getAttribute("aria-label");
}

function turnTokens() {
  showsTokens = !showsTokens;
  store.remember("tokens", showsTokens);
  $("tokens").setAttribute("aria-pressed", String(showsTokens));
  hideTip();
  log.redraw();
}

let keyAsked = null;

/** Ask for the server's key; resolves to whether one was given. Who asks meanwhile waits for the same answer. */
function needsKey(sentence) {
  keyAsked ??= new Promise((tell) => {
    const dialog = $("key-dialog");
    $("key-why").textContent = sentence;
    $("key").value = "";
    dialog.returnValue = "";
    dialog.onclose = () => {
      keyAsked = null;
      const given = dialog.returnValue === "given" && $("key").value.trim();
      if (given) setKey(given);
      tell(Boolean(given));
    };
    dialog.showModal();
  });
  return keyAsked;
}

function listen() {
  $("message").oninput = () => {
    fit($("message"));
    $("send").disabled = !$("message").value.trim();
  };
  $("message").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
    if (event.key === "ArrowUp" && !$("message").value) {
      event.preventDefault();
      log.lastUser()?.edit();
    }
  };
  $("send").onclick = send;
  $("stop").onclick = () => (answering.stop(talk), $("message").focus());
  $("new").onclick = fresh;
  $("tokens").onclick = turnTokens;
  $("theme").onclick = () => window.fathomTheme.turn();
  $("open-settings").onclick = () => $("settings").showModal();
  $("open-keys").onclick = () => $("keys").showModal();
  $("menu").onclick = () => {
    $("app").classList.toggle("drawn");
    if ($("app").classList.contains("drawn")) $("new").focus();
  };
  $("shade").onclick = () => $("app").classList.remove("drawn");
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    $("key-dialog").close("given");
  };
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", ({ target }) => (target === dialog || target.closest("[data-close]")) && dialog.close());
  }
  addEventListener("hashchange", showView);
  addEventListener("fathom-theme", showTheme);
  addEventListener("pagehide", () => answering.isGoing(talk) && isKept(talk) && store.save(talk));
  addEventListener("storage", (event) => {
    const id = store.heard(event);
    if (id === talk.id && !answering.isGoing(talk)) {
      talk = store.talks.get(id) ?? newTalk(settings.values.system);
      show();
    } else if (id) showList();
  });
  hearKeys({
    fresh,
    help: () => $("keys").showModal(),
    stop: () => answering.isGoing(talk) && answering.stop(talk),
    closeDrawer: () => $("app").classList.remove("drawn"),
  });
}

function start() {
  $("tokens").setAttribute("aria-pressed", String(showsTokens));
  talk = store.talks.get(store.recall("current", "")) ?? newTalk(settings.values.system);
  settings.showSystem(talk.system);
  listen();
  showTheme();
  showView();
  show();
  log.toEnd();
  watcher.watch();
  if (matchMedia("(hover: hover)").matches) $("message").focus();
}

start();
