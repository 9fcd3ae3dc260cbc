// Conversations as a JSON file, out and in.
import { Failure } from "./api.js";
import { t } from "./i18n.js";
import * as store from "./store.js";
import { blankAnswer, path } from "./tree.js";

const FORMAT = "magistral-mlx conversations";

/** A file with these conversations, attachments included. */
export async function exported(conversations) {
  const full = await Promise.all(
    conversations.map(async (conversation) => ({
      ...conversation,
      messages: await store.messages(conversation.id),
    })),
  );
  return new Blob([JSON.stringify({ format: FORMAT, version: 3, conversations: full }, null, 1)], {
    type: "application/json",
  });
}

/** A conversation as Markdown: what is on its path, thinking folded, attachments by their names. */
export async function markdown(conversation) {
  const messages = path(await store.messages(conversation.id), conversation.leaf);
  const parts = messages.map(({ role, text, thinking, rounds = [], attachments = [] }) => {
    if (role === "user") {
      const names = attachments.map(({ name }) => `*${name}*`);
      return [`## ${t("message.user")}`, ...names, text];
    }
    const summary = `<details><summary>${t("thinking.done")}</summary>`;
    const trace = thinking ? [summary, thinking, "</details>"] : [];
    const calls = rounds.flatMap((round) => [
      round.text,
      ...round.calls.map(({ name, arguments: written }) => `*${name}* \`${written}\``),
    ]);
    return [`## ${t("message.assistant")}`, ...calls, ...trace, text];
  });
  const whole = [`# ${conversation.title}`, ...parts.flat()].filter(Boolean).join("\n\n");
  return new Blob([`${whole}\n`], { type: "text/markdown" });
}

/** Let the browser save a file. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/**
 * Take the conversations of an exported file in. What is here already stays; of two states of the
 * same message the one of the conversation used last is kept. Resolves to { taken, mended, left }:
 * conversations, messages that lacked something, and entries that are no messages at all.
 */
export async function importFrom(file) {
  const content = await parsed(file);
  if (content?.format !== FORMAT || !Array.isArray(content.conversations)) {
    throw new Failure("import", file.name);
  }
  const total = { taken: 0, mended: 0, left: 0 };
  for (const entry of content.conversations) {
    const found = sound(entry ?? {});
    if (!found) {
      total.left += 1;
      continue;
    }
    const { conversation, messages, mended, left } = found;
    total.mended += mended;
    total.left += left;
    if (await take(conversation, messages)) total.taken += 1;
  }
  if (!total.taken && total.left) throw new Failure("import", file.name);
  return total;
}

async function parsed(file) {
  try {
    return JSON.parse(await file.text());
  } catch {
    return null;
  }
}

// False if all of it is here already.
async function take(conversation, messages) {
  const here = await store.conversation(conversation.id);
  const known = new Set((await store.messages(conversation.id)).map(({ id }) => id));
  const newer = !here || here.updated < conversation.updated;
  const wanted = newer ? messages : messages.filter(({ id }) => !known.has(id));
  if (!wanted.length) return false;
  await store.save(conversation, wanted, { fields: newer ? conversation : {} });
  return true;
}

const text = (value) => typeof value === "string";
const time = (value) => (Number.isFinite(value) ? value : Date.now());

// What can be used of an entry: { conversation, messages, mended, left }, or null for nothing.
function sound({ messages: entries, ...conversation }) {
  const { id } = conversation;
  if (!text(id) || !Array.isArray(entries)) return null;
  const ids = new Map(); // every entry's place, those that are left out too
  for (const entry of entries) if (text(entry?.id)) ids.set(entry.id, entry.parent ?? null);
  const good = entries.filter(isMessage);
  const kept = new Map(good.map((entry) => [entry.id, entry]));
  let mended = 0;
  const messages = [...kept.values()].map((entry) => {
    // A message whose parent is left out, or unknown, moves up.
    let { parent = null } = entry;
    const seen = new Set([entry.id]);
    while (parent !== null && !kept.has(parent)) {
      if (seen.has(parent) || !ids.has(parent)) parent = null;
      else seen.add(parent) && (parent = ids.get(parent));
    }
    const message = { ...completed(entry), conversation: id, parent };
    if (parent !== (entry.parent ?? null) || entry.conversation !== id) mended += 1;
    return message;
  });
  mended += unknot(messages);
  if (!messages.length) return null;
  const known = messages.some((message) => message.id === conversation.leaf);
  const leaf = known ? conversation.leaf : messages.reduce(later).id;
  return {
    conversation: {
      ...conversation,
      title: text(conversation.title) ? conversation.title : "",
      folder: text(conversation.folder) ? conversation.folder : "",
      created: time(conversation.created),
      updated: time(conversation.updated),
      leaf,
    },
    messages,
    mended,
    left: entries.length - messages.length,
  };
}

const later = (a, b) => (b.created >= a.created ? b : a);

// A message that comes before itself becomes a first one.
function unknot(messages) {
  let count = 0;
  for (const message of messages) {
    if (path(messages, message.id)[0].parent === null) continue;
    message.parent = null;
    count += 1;
  }
  return count;
}

const isMessage = (entry) =>
  text(entry?.id) && text(entry.text) && (entry.role === "user" || entry.role === "assistant");

const isImage = (url) => /^data:image\//.test(url);

const isAttachment = (one) =>
  text(one?.name) &&
  (text(one.text)
    ? Array.isArray(one.pages ?? []) && (one.pages ?? []).every(isImage)
    : isImage(one.url));

// A message with every field that it needs, and none that is of another type. Why an answer failed
// is left out: what is left to do is to go on with it. (Files of
// version 1 call attachments pictures, those of version 2 images.)
function completed({
  pictures = [],
  images = pictures,
  attachments = images,
  unstored,
  ...message
}) {
  const common = { ...message, created: time(message.created) };
  if (message.role === "user") {
    const names = Array.isArray(unstored) ? unstored.filter(text) : [];
    return {
      ...common,
      attachments: Array.isArray(attachments) ? attachments.filter(isAttachment) : [],
      ...(names.length ? { unstored: names } : {}),
    };
  }
  const fields = Object.entries(blankAnswer).map(([name, blank]) => [
    name,
    blank !== null && typeof message[name] === typeof blank ? message[name] : blank,
  ]);
  return {
    ...common,
    ...Object.fromEntries(fields),
    thinkingSeconds: figure(message.thinkingSeconds),
    rounds: Array.isArray(message.rounds) ? message.rounds.filter(isRound) : [],
    notes: [],
    usage: figures(message.usage),
    timings: figures(message.timings),
    model: text(message.model) ? message.model : null,
    reason: message.reason === "length" ? "length" : null,
    state: message.state === "done" ? "done" : "stopped",
  };
}

const isRound = ({ thinking, text: said, calls } = {}) =>
  text(thinking) && text(said) && Array.isArray(calls) && calls.every(isCall);

const isCall = (call) =>
  text(call?.id) && text(call.name) && text(call.arguments) && text(call.result ?? "");

const figure = (value) => (Number.isFinite(value) ? value : null);

const figures = (object) =>
  object && typeof object === "object"
    ? Object.fromEntries(Object.entries(object).filter(([, value]) => Number.isFinite(value)))
    : null;
