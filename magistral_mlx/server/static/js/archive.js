// Conversations as a JSON file, out and in.
import { Failure } from "./api.js";
import * as store from "./store.js";

const FORMAT = "magistral-mlx conversations";

/** A file with these conversations, pictures included. */
export async function exported(conversations) {
  const full = await Promise.all(
    conversations.map(async (conversation) => ({
      ...conversation,
      messages: await store.messages(conversation.id),
    })),
  );
  return new Blob([JSON.stringify({ format: FORMAT, version: 1, conversations: full }, null, 1)], {
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
    await store.save(conversation, messages);
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
    messages.every((message) => validMessage(message, id))
  );
}

function validMessage(message, conversation) {
  const { id, role, created, pictures = [] } = message ?? {};
  return (
    text(id) &&
    message.conversation === conversation &&
    text(message.text) &&
    (role === "user" || role === "assistant") &&
    Number.isFinite(created) &&
    (message.parent === null || text(message.parent)) &&
    Array.isArray(pictures) &&
    pictures.every((picture) => text(picture?.name) && /^data:image\//.test(picture.url))
  );
}
