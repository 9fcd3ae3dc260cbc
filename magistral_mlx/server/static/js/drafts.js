// What is typed and attached but not sent yet: it survives a reload, in this tab.
import { newId } from "./dom.js";
import * as session from "./session.js";
import * as store from "./store.js";

const TEXT = "magistral.draft.";
const TAB = "magistral.tab";
const WEEK = 7 * 86_400_000;

if (!session.get(TAB)) session.set(TAB, newId());
const key = (id) => `${session.get(TAB)}.${id}`;

export const text = (id) => session.get(TEXT + id) ?? "";
export const setText = (id, value) => session.set(TEXT + id, value || null);

/** The attachments of the draft of a conversation ("" for a new one); none where nothing is stored. */
export const attachments = (id) => store.draft(key(id)).catch(() => []);
export const setAttachments = (id, attachments) =>
  store.saveDraft(key(id), attachments).catch(() => {});

/** The messages that wait in a conversation. */
export const queue = (id) => store.draft(`${key(id)}.queue`).catch(() => []);
export const setQueue = (id, entries) =>
  store.saveDraft(`${key(id)}.queue`, entries).catch(() => {});

/** Forget the attachments of tabs that were closed long ago. */
export const clear = () => store.clearDrafts(Date.now() - WEEK).catch(() => {});
