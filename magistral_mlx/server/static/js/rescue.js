// The last words of answers that are being written when the page goes away. IndexedDB may not get
// to its end then; localStorage does.
import * as store from "./store.js";

const PREFIX = "magistral.rescue.";

const written = new Set(); // messages of answers

/** Keep `message` if the page goes away before `unwatch`. */
export const watch = (message) => written.add(message);
export const unwatch = (message) => written.delete(message);

// All at once and before other listeners: after each of them answers may end, as their streams have.
addEventListener("pagehide", () => written.forEach(keep), true);

// Until the page is opened again. Synchronous.
function keep(message) {
  try {
    localStorage.setItem(PREFIX + message.id, JSON.stringify(message));
  } catch {
    // Full: what IndexedDB got a moment ago is what remains.
  }
}

/** Forget it: the store has it all. */
export function drop(message) {
  try {
    localStorage.removeItem(PREFIX + message.id);
  } catch {
    // Then it was not kept either.
  }
}

/** Move what was kept into the store, and mark answers that nobody writes any more as stopped. */
export async function recover() {
  for (const name of Object.keys(localStorage).filter((name) => name.startsWith(PREFIX))) {
    const kept = JSON.parse(localStorage.getItem(name));
    if (!kept) continue; // another tab was faster
    const stored = await store.message(kept.id);
    const longer =
      stored &&
      kept.text.length + kept.thinking.length >= stored.text.length + stored.thinking.length;
    if (longer) await store.patchMessage(kept.id, { ...kept, state: "stopped" });
    localStorage.removeItem(name);
  }
}
