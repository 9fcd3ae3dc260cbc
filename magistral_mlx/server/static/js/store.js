// Conversations and their messages in IndexedDB. Other tabs hear of each change.

const channel = new BroadcastChannel("magistral");
let opening;

/** Call `listener(conversationId)` when another tab has changed a conversation. */
export const onForeignChange = (listener) =>
  channel.addEventListener("message", (event) => listener(event.data));

/** Let other tabs know that a conversation has changed. */
export const tell = (id) => channel.postMessage(id);

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
  // Pictures are called images.
  ({ transaction }) => {
    const images = transaction.objectStore("pictures");
    images.name = "images";
    images.openCursor().onsuccess = ({ target: { result: cursor } }) => {
      if (!cursor) return;
      const { pictures, ...entry } = cursor.value;
      cursor.update({ ...entry, images: pictures });
      cursor.continue();
    };
  },
];

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
async function write(use) {
  const names = ["conversations", "messages", "images"];
  const transaction = (await open()).transaction(names, "readwrite");
  use(...names.map((name) => transaction.objectStore(name)));
  await new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = transaction.onerror = () => reject(transaction.error);
  });
}

/** All conversations, the one used last first. */
export const conversations = async () =>
  (await read("conversations", (store) => store.getAll())).sort((a, b) => b.updated - a.updated);

export const conversation = (id) => read("conversations", (store) => store.get(id));

/** All messages of a conversation, oldest first; a question comes before its answer. */
export async function messages(id) {
  const [found, shown] = await Promise.all([ofConversation("messages", id), imagesOf(id)]);
  return found
    .map((message) => withImages(message, shown.get(message.id)))
    .sort((a, b) => a.created - b.created || (a.role === "user" ? -1 : 1));
}

const ofConversation = (store, id) =>
  read(store, (store) => store.index("conversation").getAll(id));

const imagesOf = async (id) =>
  new Map((await ofConversation("images", id)).map((entry) => [entry.message, entry.images]));

const withImages = (message, images) =>
  message.role === "user" ? { ...message, images: images ?? [] } : message;

/** One message, without its images. */
export const message = (id) => read("messages", (store) => store.get(id));

/** Save a conversation, and messages of it, in one go. */
export async function save(conversation, messages = []) {
  await write((conversations, all, images) => {
    conversations.put(conversation);
    for (const { images: shown, ...message } of messages) {
      all.put(message);
      if (shown?.length) {
        images.put({ message: message.id, conversation: conversation.id, images: shown });
      }
    }
  });
  tell(conversation.id);
}

/** Save an answer as it is now. Its conversation may be gone meanwhile: then it goes too. */
export async function saveMessage(message) {
  await write((conversations, all) => {
    conversations.getKey(message.conversation).onsuccess = (event) => {
      if (event.target.result !== undefined) all.put(message);
    };
  });
}

export const removeMessage = (id) => write((_, all) => all.delete(id));

/** Delete a conversation; resolves to its messages, for whoever wants them back. */
export async function remove(id) {
  const lost = await messages(id);
  await write((conversations, all, images) => {
    conversations.delete(id);
    for (const message of lost) {
      all.delete(message.id);
      images.delete(message.id);
    }
  });
  tell(id);
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
