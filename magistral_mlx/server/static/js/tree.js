// A conversation is a tree: editing or retrying adds a branch, so nothing is ever lost. Messages
// know their parent; the conversation knows the leaf that is on the screen.

/** What an answer has besides what every message has, before its first token. */
export const blankAnswer = {
  state: "running", // or done, stopped, failed
  thinking: "",
  thinkingTokens: 0,
  thinkingSeconds: null, // once the trace has ended
  answerTokens: 0,
  promptTokens: null,
  reason: null, // as the server names the end
  rounds: [], // of calls to tools; see rounds.js
  notes: [], // what the server had to say, in sentences
  usage: null,
  timings: null,
  error: null, // { kind, detail, wait } if it failed; see Failure
  model: null,
  open: false, // whether the fold of its trace is
};

/** Whether an answer has begun: there is something to go on from. */
export const begun = ({ text, thinking, rounds }) => Boolean(text || thinking || rounds?.length);

const byAge = (a, b) => a.created - b.created || (a.id < b.id ? -1 : 1);

const children = (messages, parent) =>
  messages.filter((message) => message.parent === parent).sort(byAge);

/** From the first message to `leaf`. */
export function path(messages, leaf) {
  const byId = new Map(messages.map((message) => [message.id, message]));
  const found = new Set(); // a damaged one might go round in circles
  for (let at = byId.get(leaf); at && !found.has(at); at = byId.get(at.parent)) found.add(at);
  return [...found].reverse();
}

/** The versions of a message, itself among them, oldest first. */
export const versions = (messages, message) => children(messages, message.parent);

/** The leaf that is reached from `message` by taking the newest branch each time. */
export function newestLeaf(messages, message) {
  let at = message;
  for (let next = [at]; next.length; next = children(messages, at.id)) at = next.at(-1);
  return at.id;
}

/**
 * The leaf that a message goes after which waited for the answer `answered`, and was written with
 * the question `after` on the screen: that of its branch, whichever `leaf` is shown by now.
 */
export function leafOfBranch(messages, leaf, { after, answered }) {
  const leadsOver = (id, wanted) => path(messages, id).some((message) => message.id === wanted);
  const branch = leadsOver(answered, after) ? answered : after;
  const message = messages.find(({ id }) => id === branch);
  return !message || leadsOver(leaf, branch) ? leaf : newestLeaf(messages, message);
}

/** A message and all that follows it, on every branch. */
export function subtree(messages, message) {
  const found = [message];
  for (const { id } of found) found.push(...children(messages, id));
  return found;
}
