// What is typed and attached but not sent yet: it survives a reload, in this tab.
import { newId } from "./dom.js";
import * as session from "./session.js";
import * as store from "./store.js";
import * as sync from "./sync.js";

const TEXT = "magistral.draft.";
const TAB = "magistral.tab";
const OPEN = "magistral.open"; // while a page of the tab is
const WEEK = 7 * 86_400_000;

const tab = identify();
addEventListener("pagehide", () => session.set(OPEN, null));
addEventListener("pageshow", () => session.set(OPEN, "1"));

// A duplicated tab begins with all that the other keeps, its name and that its page is open too. It
// is a tab of its own: what is attached is copied, what waits is sent by the other.
async function identify() {
  const known = session.get(TAB);
  const copied = session.get(OPEN) && known && (await sync.isTab(known).catch(() => false));
  const own = copied || !known ? newId() : known;
  session.set(TAB, own);
  sync.beTab(own);
  if (copied) await store.copyDrafts(`${known}.`, `${own}.`).catch(() => {});
  return own;
}

const key = async (id) => `${await tab}.${id}`;
const queueKey = async (id) => `${await tab}/queue.${id}`;
const draft = async (key) => store.draft(await key).catch(() => []);
const saveDraft = async (key, items) => store.saveDraft(await key, items).catch(() => {});

export const text = (id) => session.get(TEXT + id) ?? "";
export const setText = (id, value) => session.set(TEXT + id, value || null);

/** The attachments of the draft of a conversation ("" for a new one); none where nothing is stored. */
export const attachments = (id) => draft(key(id));
export const setAttachments = (id, attachments) => saveDraft(key(id), attachments);

/** The messages that wait in a conversation. */
export const queue = (id) => draft(queueKey(id));
export const setQueue = (id, entries) => saveDraft(queueKey(id), entries);

/** Forget the attachments of tabs that were closed long ago. */
export const clear = () => store.clearDrafts(Date.now() - WEEK).catch(() => {});
