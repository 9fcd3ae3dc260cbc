// What the tabs of this browser tell each other, and which of them is writing an answer.
//
// Messages: { type: "changed", conversation }, { type: "grow", message, ... } while an answer is
// written, { type: "end", conversation, message: id }, { type: "stop" | "who", conversation }.

const channel = new BroadcastChannel("magistral");
const name = (conversation) => `magistral.answer.${conversation}`;
const tabName = (tab) => `magistral.tab.${tab}`;

export const tell = (message) => channel.postMessage(message);
export const hear = (listener) =>
  channel.addEventListener("message", (event) => listener(event.data));

// Browsers have locks on pages of this machine and of https alone. Elsewhere tabs still tell each
// other what they write, but not that one was closed over it.
const { locks } = navigator;

/** Do `work` while no other tab answers in the conversation. */
export const alone = (conversation, work) =>
  locks ? locks.request(name(conversation), work) : work();

/** Do `work` while no other tab takes what waits in the conversation. */
export const inTurn = (conversation, work) =>
  locks ? locks.request(`magistral.queue.${conversation}`, work) : work();

/** Resolves once no tab answers in the conversation. */
export const free = (conversation) =>
  locks ? locks.request(name(conversation), { mode: "shared" }, () => {}) : new Promise(() => {});

/** Whether a tab answers in the conversation, or is about to. */
export const taken = (conversation) => asked(name(conversation));

/** Be the tab of this name until the page is gone. */
export const beTab = (tab) => locks?.request(tabName(tab), () => new Promise(() => {}));

/** Whether there is such a tab. */
export const isTab = (tab) => asked(tabName(tab));

async function asked(wanted) {
  const { held = [], pending = [] } = (await locks?.query()) ?? {};
  return [...held, ...pending].some(({ name, mode }) => name === wanted && mode === "exclusive");
}
