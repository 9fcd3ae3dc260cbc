// Puts the page together.
import { Failure } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import * as drafts from "./drafts.js";
import { $, h, iconButton } from "./dom.js";
import { onceAFrame } from "./frames.js";
import { adopt, say as sayAt, setLanguage, t } from "./i18n.js";
import { icon } from "./icons.js";
import { askForKey } from "./key.js";
import "./mathcopy.js";
import { Messages } from "./messages.js";
import { showModels } from "./models.js";
import { buildOptions } from "./options.js";
import { recover } from "./rescue.js";
import { settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { answerEnded, mark } from "./notify.js";
import { keysOf, onShortcuts } from "./shortcuts.js";
import * as store from "./store.js";
import { Strip } from "./strip.js";
import { hear } from "./sync.js";
import { toast } from "./toast.js";
import { begun } from "./tree.js";

const EXAMPLES = ["sum", "proof", "code"];

for (const element of document.querySelectorAll("[data-icon]")) {
  element.prepend(icon(element.dataset.icon));
}
adopt();
$("#new-chat kbd").textContent = keysOf("new");
setLanguage(settings.language);
if (matchMedia("(hover: none)").matches) {
  sayAt($("#message"), "placeholder", "composer.placeholder.touch");
}
// Whether the focus was moved by keys.
addEventListener("pointerdown", () => delete document.body.dataset.keys, true);
addEventListener(
  "keydown",
  ({ key }) => {
    if (key === "Tab") document.body.dataset.keys = "";
  },
  true,
);
new ResizeObserver(([{ target }]) =>
  document.documentElement.style.setProperty("--foot", `${target.offsetHeight}px`),
).observe($(".foot"));

const chat = new Chat();
const strip = new Strip(chat);
const composer = new Composer({
  send: (text, attachments) => say(text, attachments),
  stop: () => chat.answer?.stop(),
  sendIn: (...waited) => attempt(() => chat.sendIn(...waited)),
  answering: (id) => chat.answering(id),
  beside: () => chat.path.flatMap(({ attachments = [] }) => attachments),
  after: () => chat.path.findLast(({ role }) => role === "user")?.id,
});
const messages = new Messages(chat, {
  retry: (message) => again("retry", message),
  resume: (message) => again("resume", message),
  edit: (message, text, attachments) => say(text, attachments, message.parent),
  choose: (message) => attempt(() => chat.choose(message)),
  rewrite: (message, text) => attempt(() => chat.rewrite(message, text)),
  remove,
  fold: (message) => attempt(() => store.patchMessage(message.id, { open: message.open })),
});
const sidebar = new Sidebar(chat, async (id) => {
  await go(id);
  const needle = $("#search").value.trim();
  if (id && needle) messages.find(needle);
});

async function say(text, attachments, parent) {
  navigator.storage?.persist?.().catch(() => {}); // ask the browser not to clear this away
  messages.atEnd = true;
  await attempt(() => chat.send(text, attachments, parent));
}

// The last message takes its conversation along.
async function remove(message) {
  if (!message.parent && chat.versionsOf(message).all.length === 1) {
    return sidebar.delete(chat.conversation);
  }
  await attempt(async () => {
    const { count, undo } = await chat.remove(message);
    composer.focus(); // the button that had the focus is gone
    toast("messages.deleted", { args: [count], undo: () => attempt(undo) });
  });
}

async function again(how, message) {
  await attempt(() => chat[how](message));
  composer.focus(); // the button that had the focus is gone
}

/** Do what may fail, and put a failure in words. */
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    if (error instanceof Failure) banner([`error.${error.kind}`]);
    else unstored(error);
  }
}

// `words`: a key of the strings and its arguments; null for nothing to say. `about` is what has to
// succeed for it to go away.
function banner(words, { again = null, about = "" } = {}) {
  $("#banner").hidden = !words;
  $("#banner").dataset.about = about;
  if (!words) return;
  $("#banner").replaceChildren(
    h("span", { t: words }),
    again ? h("button", { type: "button", t: "retry", on: { click: again } }) : "",
    iconButton("close", "close", () => {
      banner(null);
      composer.focus();
    }),
  );
}

// The browser has not stored something.
function unstored({ name, message }) {
  const full = name === "QuotaExceededError" || /quota|disk/i.test(message);
  banner(full ? "error.full" : ["error.storage", message], { about: "storage" });
}

// Where we are stands in the address, so that reloading and going back work.
const place = () => location.hash.replace(/^#\/?/, "");

async function go(id) {
  sidebar.makeRoom();
  if (id !== place()) history.pushState(null, "", id ? `#/${id}` : location.pathname);
  await arrive();
  composer.focus();
}

async function arrive() {
  const id = place();
  messages.atEnd = true;
  if (id && (await chat.open(id).catch(() => false))) return;
  if (id) history.replaceState(null, "", location.pathname);
  chat.startNew();
}

function showTitle() {
  const title = chat.conversation?.title ?? "";
  $("#title").textContent = title || t("chat.new");
  document.title = title ? `${title} · Magistral` : "Magistral";
  mark();
}

let shown = null; // the answer whose progress the strip follows
const drawStrip = onceAFrame(() => strip.draw());

chat.addEventListener("show", () => {
  const id = chat.conversation?.id ?? "";
  if (id !== place()) history.pushState(null, "", id ? `#/${id}` : location.pathname);
  if (composer.id !== id) composer.open(id);
  messages.show();
  if (messages.atEnd) messages.toEnd();
  showTitle();
  composer.setBusy(chat.answer);
  if (chat.answer && chat.answer !== shown) {
    shown = chat.answer;
    shown.addEventListener("grow", drawStrip);
    shown.addEventListener("end", () => setTimeout(() => strip.refresh()));
    strip.refresh();
  }
  strip.draw();
  sidebar.draw();
});
chat.addEventListener("title", showTitle);
chat.addEventListener("list", () => {
  composer.setBusy(chat.answer);
  sidebar.refresh();
});
chat.addEventListener("ended", ({ detail: { conversation, message, elsewhere } }) => {
  if (message.state === "done") composer.queue.next(conversation.id, message.id);
  if (message.state === "stopped" || elsewhere) return;
  const { title } = conversation;
  const { text, state } = message;
  answerEnded({ title, text, failed: state === "failed" }, () => go(conversation.id));
});
// A key is missing or wrong: ask for it, then ask the model again.
chat.addEventListener("key", async ({ detail: message }) => {
  if (!(await askForKey())) return;
  connect();
  const how = begun(message) ? "resume" : "retry";
  if (chat.path.includes(message)) await again(how, message);
});
chat.addEventListener("unstored", ({ detail }) => unstored(detail));
chat.addEventListener("stored", () => {
  if ($("#banner").dataset.about === "storage") banner(null);
});
chat.addEventListener("begun", () => composer.become(chat.conversation.id));
addEventListener("language", showTitle);
addEventListener("popstate", arrive);
chat.addEventListener("gone", () => go(""));
hear(({ type }) => type === "changed" && sidebar.refresh());

for (const id of ["#new-chat", "#new-chat-top"]) $(id).addEventListener("click", () => go(""));
onShortcuts({
  new: () => go(""),
  search: () => sidebar.search(),
  sidebar: () => sidebar.toggle(),
  rename: () => chat.conversation && sidebar.rename(chat.conversation.id),
  delete: () => chat.conversation && sidebar.delete(chat.conversation),
  stop: () => chat.answer?.stop(),
});

async function connect() {
  try {
    await showModels();
    if ($("#banner").dataset.about === "server") banner(null);
    strip.refresh();
  } catch (error) {
    if (error.kind === "key") {
      if (await askForKey()) connect();
    } else {
      const words = [`error.${error.kind ?? "page"}`, error.wait];
      banner(words, { again: connect, about: "server" });
    }
  }
}

$("#examples").append(
  ...EXAMPLES.map((name) =>
    h("button", {
      type: "button",
      t: `example.${name}`,
      on: {
        click: () => {
          composer.write(t(`example.${name}`));
          composer.focus();
        },
      },
    }),
  ),
);
buildOptions(chat, () => {
  sidebar.refresh();
  chat.refresh();
});
connect();
await attempt(recover);
await attempt(() => sidebar.refresh());
await arrive();
composer.focus();
drafts.clear();
document.body.dataset.ready = "";
