// Conversations, their messages and drafts in IndexedDB. Other tabs hear of each change.
import { tell } from "./sync.js";

let opening;

// What each version of the database adds to the one before it.
const MIGRATIONS = [
  ({ database }) => {
    database.createObjectStore("conversations", { keyPath: "id" });
    database
      .createObjectStore("messages", { keyPath: "id" })
      .createIndex("conversation", "conversation");
    // Apart, so that a search need not read them.
    database
      .createObjectStore("pictures", { keyPath: "message" })
      .createIndex("conversation", "conversation");
  },
  // Pictures are attachments, as other files are.
  ({ transaction }) => becomeAttachments(transaction, "pictures"),
  // What is attached to what is being typed.
  ({ database }) => database.createObjectStore("drafts", { keyPath: "id" }),
  // Images were a store of their own.
  ({ database, transaction }) => {
    if (database.objectStoreNames.contains("images")) becomeAttachments(transaction, "images");
  },
];

// Rename a store and the field of its entries, which have the same name.
function becomeAttachments(transaction, name) {
  const attachments = transaction.objectStore(name);
  attachments.name = "attachments";
  attachments.openCursor().onsuccess = ({ target: { result: cursor } }) => {
    if (!cursor) return;
    const { [name]: items, ...entry } = cursor.value;
    cursor.update({ ...entry, attachments: items });
    cursor.continue();
  };
}

function open() {
  opening ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("magistral", MIGRATIONS.length);
    request.onupgradeneeded = ({ oldVersion }) => {
      const { result: database, transaction } = request;
      for (const migrate of MIGRATIONS.slice(oldVersion)) migrate({ database, transaction });
    };
    request.onsuccess = () => {
      request.result.onversionchange = () => request.result.close();
      resolve(request.result);
    };
    request.onerror = () => reject(request.error);
  });
  return opening;
}

const result = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

async function read(store, use) {
  return result(use((await open()).transaction(store).objectStore(store)));
}

// Call `use` with the three stores, and wait until all of it is on the disk, or none.
async function write(use, names = ["conversations", "messages", "attachments"]) {
  const transaction = (await open()).transaction(names, "readwrite");
  const done = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error ?? new DOMException("", "AbortError"));
  });
  try {
    use(...names.map((name) => transaction.objectStore(name)));
  } catch (error) {
    transaction.abort();
    await done.catch(() => {});
    throw error;
  }
  await done;
}

/** All conversations, the one used last first. */
export const conversations = async () =>
  (await read("conversations", (store) => store.getAll())).sort((a, b) => b.updated - a.updated);

export const conversation = (id) => read("conversations", (store) => store.get(id));

/** All messages of a conversation, oldest first; a question comes before its answer. */
export async function messages(id) {
  const [found, shown] = await Promise.all([ofConversation("messages", id), attachmentsOf(id)]);
  return found
    .map((message) => withAttachments(message, shown.get(message.id)))
    .sort((a, b) => a.created - b.created || (a.role === "user" ? -1 : 1));
}

const ofConversation = (store, id) =>
  read(store, (store) => store.index("conversation").getAll(id));

const attachmentsOf = async (id) =>
  new Map(
    (await ofConversation("attachments", id)).map((entry) => [entry.message, entry.attachments]),
  );

const withAttachments = (message, attachments) =>
  message.role === "user"
    ? { ...message, attachments: attachments ?? [] }
    : { rounds: [], ...message };

/** One message, without its attachments. */
export const message = (id) => read("messages", (store) => store.get(id));

/**
 * Save messages of a conversation, and `fields` of itself, in one go. What other tabs have changed
 * of it stays. Where it is stored no more, all of it is saved: itself, and what `whole()` gives.
 */
export async function save(
  conversation,
  messages,
  { fields = conversation, whole = () => messages } = {},
) {
  await write((conversations, all, attachments) => {
    conversations.get(conversation.id).onsuccess = ({ target: { result: stored } }) => {
      conversations.put({ ...(stored ?? conversation), ...fields });
      for (const { attachments: shown, ...message } of stored ? messages : whole()) {
        all.put(message);
        if (shown?.length) {
          attachments.put({
            message: message.id,
            conversation: conversation.id,
            attachments: shown,
          });
        }
      }
    };
  });
  changed(conversation.id);
}

/** Change `fields` of a conversation, if it is stored. */
export async function patch(id, fields) {
  await write((conversations) => {
    conversations.get(id).onsuccess = ({ target: { result: stored } }) => {
      if (stored) conversations.put({ ...stored, ...fields });
    };
  });
  changed(id);
}

/** Tell other tabs that a conversation has changed. */
export const changed = (conversation) => tell({ type: "changed", conversation });

/**
 * Save an answer as it is now. Its conversation may be gone meanwhile, or its question may not be
 * stored: then it is not either.
 */
export const saveMessage = (message) =>
  write((conversations, all) => {
    conversations.getKey(message.conversation).onsuccess = ({ target: { result: there } }) => {
      if (there === undefined) return;
      all.getKey(message.parent).onsuccess = ({ target: { result: asked } }) => {
        if (asked !== undefined) all.put(message);
      };
    };
  });

/** Change `fields` of a message, if it is stored. */
export const patchMessage = (id, fields) =>
  write((_, all) => {
    all.get(id).onsuccess = ({ target: { result: stored } }) => {
      if (stored) all.put({ ...stored, ...fields });
    };
  });

/** Delete messages of a conversation, and change `fields` of itself. */
export async function removeMessages(conversation, ids, fields) {
  await write((conversations, all, attachments) => {
    conversations.get(conversation).onsuccess = ({ target: { result: stored } }) => {
      if (stored) conversations.put({ ...stored, ...fields });
      for (const id of ids) {
        all.delete(id);
        attachments.delete(id);
      }
    };
  });
  changed(conversation);
}

/** What is kept of a draft: its attachments, or messages that wait. */
export const draft = async (id) => (await read("drafts", (store) => store.get(id)))?.items ?? [];

/** Keep them; none forgets the draft. */
export const saveDraft = (id, items) =>
  write(
    (drafts) => (items.length ? drafts.put({ id, items, at: Date.now() }) : drafts.delete(id)),
    ["drafts"],
  );

/** Keep the drafts whose ids begin with `from` once more, as ids that begin with `to`. */
export async function copyDrafts(from, to) {
  for (const { id, items } of await read("drafts", (store) => store.getAll())) {
    if (id.startsWith(from)) await saveDraft(to + id.slice(from.length), items);
  }
}

/** Forget drafts of before `time`: their tabs are closed. */
export async function clearDrafts(time) {
  for (const { id, at } of await read("drafts", (store) => store.getAll())) {
    if (at < time) await saveDraft(id, []);
  }
}

/** Delete a conversation; resolves to its messages, for whoever wants them back. */
export async function remove(id) {
  const lost = await messages(id);
  await write((conversations, all, attachments) => {
    conversations.delete(id);
    for (const message of lost) {
      all.delete(message.id);
      attachments.delete(message.id);
    }
  });
  changed(id);
  return lost;
}

/** Ids of the conversations with `needle` in a message's text or its thinking. */
export async function containing(needle) {
  const wanted = needle.toLocaleLowerCase();
  const found = new Set();
  const store = (await open()).transaction("messages").objectStore("messages");
  await new Promise((resolve, reject) => {
    const request = store.openCursor();
    request.onerror = () => reject(request.error);
    request.onsuccess = () => {
      const cursor = request.result;
      if (!cursor) return resolve();
      const { conversation, text, thinking = "" } = cursor.value;
      if (`${text}\n${thinking}`.toLocaleLowerCase().includes(wanted)) found.add(conversation);
      return cursor.continue();
    };
  });
  return found;
}
