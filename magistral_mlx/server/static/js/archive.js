// Conversations as a JSON file, out and in.
import { Failure } from "./api.js";
import * as store from "./store.js";
import { blankAnswer, path } from "./tree.js";

const FORMAT = "magistral-mlx conversations";

/** A file with these conversations, images included. */
export async function exported(conversations) {
  const full = await Promise.all(
    conversations.map(async (conversation) => ({
      ...conversation,
      messages: await store.messages(conversation.id),
    })),
  );
  return new Blob([JSON.stringify({ format: FORMAT, version: 2, conversations: full }, null, 1)], {
    type: "application/json",
  });
}

/** Let the browser save a file. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Take the conversations of an exported file in; one that is here in a newer state is kept. */
export async function importFrom(file) {
  let content;
  try {
    content = JSON.parse(await file.text());
  } catch {
    throw new Failure("import", file.name);
  }
  if (content?.format !== FORMAT || !content.conversations?.every?.(valid)) {
    throw new Failure("import", file.name);
  }
  let taken = 0;
  for (const { messages, ...conversation } of content.conversations) {
    const here = await store.conversation(conversation.id);
    if (here && here.updated >= conversation.updated) continue;
    await store.save(conversation, messages.map(completed));
    taken += 1;
  }
  return taken;
}

const text = (value) => typeof value === "string";

function valid(conversation) {
  const { id, title, updated, leaf, messages } = conversation ?? {};
  return (
    text(id) &&
    text(title) &&
    text(leaf) &&
    Number.isFinite(updated) &&
    Array.isArray(messages) &&
    messages.every((message) => validMessage(message, id)) &&
    // No message comes before itself.
    messages.every(({ id }) => path(messages, id)[0]?.parent === null)
  );
}

function validMessage(message, conversation) {
  const { id, role, created } = message ?? {};
  const images = imagesOf(message);
  return (
    text(id) &&
    message.conversation === conversation &&
    text(message.text) &&
    (role === "user" || role === "assistant") &&
    Number.isFinite(created) &&
    (message.parent === null || text(message.parent)) &&
    Array.isArray(images) &&
    images.every((image) => text(image?.name) && /^data:image\//.test(image.url))
  );
}

// Files of version 1 call them pictures.
const imagesOf = (message) => message?.images ?? message?.pictures ?? [];

// A message with every field that it needs, and none that is of another type. Why an answer failed
// is left out: what is left to do is to go on with it.
function completed({ pictures = [], ...message }) {
  if (message.role === "user") return { images: pictures, ...message };
  const fields = Object.entries(blankAnswer).map(([name, blank]) => [
    name,
    blank !== null && typeof message[name] === typeof blank ? message[name] : blank,
  ]);
  return {
    ...message,
    ...Object.fromEntries(fields),
    thinkingSeconds: figure(message.thinkingSeconds),
    notes: [],
    usage: figures(message.usage),
    timings: figures(message.timings),
    model: text(message.model) ? message.model : null,
    reason: message.reason === "length" ? "length" : null,
    state: message.state === "done" ? "done" : "stopped",
  };
}

const figure = (value) => (Number.isFinite(value) ? value : null);

const figures = (object) =>
  object &&
  Object.fromEntries(Object.entries(object).filter(([, value]) => Number.isFinite(value)));
