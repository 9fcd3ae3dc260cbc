// Tools of MCP servers: which the model may call, and what the user has allowed.
import * as api from "./api.js";
import * as session from "./session.js";
import { settings } from "./settings.js";

const ALL = "magistral.tools"; // all calls are allowed, in this tab

let found = []; // { name, server, title, description, parameters, fingerprint }
const listeners = [];

/** The names of the servers that have tools. */
export const servers = () => [...new Set(found.map(({ server }) => server))];

/** Call `listener()` when the tools of the server are known. */
export const onTools = (listener) => listeners.push(listener);

let settle;
/** Settled once it is known whether there are tools, which the first question waits for, or that
 * their servers are still being connected, which it does not. */
export const ready = new Promise((resolve) => (settle = resolve));

/** Take the tools of the server, if `list`, a promise of its models, says that it has any. */
export async function findTools(list) {
  try {
    found = (await list).mcp ? (await api.tools()).tools : [];
    for (const listener of listeners) listener();
  } catch (error) {
    if (error.kind !== "unavailable") throw error;
    // The servers are being connected; meanwhile questions are asked without tools.
    setTimeout(() => findTools(list).catch(() => {}), (error.wait ?? 1) * 1000);
  } finally {
    settle();
  }
}

const known = (name) => found.find((tool) => tool.name === name);

/** What a tool is called on the page. */
export const titleOf = (name) => {
  const tool = known(name);
  return tool ? `${tool.title} · ${tool.server}` : name;
};

/** The tools that are on, as the API takes them. */
export const offered = () =>
  found
    .filter(({ server }) => !settings.toolsOff.includes(server))
    .map(({ name, description, parameters }) => ({
      type: "function",
      function: { name, description, parameters },
    }));

/** Whether a call needs no question. A tool that has changed since is asked for again. */
export const allowed = ({ name }) =>
  session.get(ALL) !== null || settings.toolsAllowed[name] === (known(name)?.fingerprint ?? null);

/** Keep what the user has chosen: "once" and "no" are for one call. */
export function allow({ name }, choice) {
  if (choice === "all") session.set(ALL, "1");
  if (choice !== "tool" || !known(name)) return;
  settings.toolsAllowed = { ...settings.toolsAllowed, [name]: known(name).fingerprint };
}

/** Ask for every call again. */
export function forget() {
  session.set(ALL, null);
  settings.toolsAllowed = {};
}

/** Make a call; resolves to { state, result }. Throws an AbortError alone. */
export async function make({ name, arguments: written }, signal) {
  let values;
  try {
    values = JSON.parse(written || "{}");
  } catch {
    return { state: "failed", result: "The arguments are no JSON object." };
  }
  try {
    const { content, is_error } = await api.callTool(name, values, signal);
    return { state: is_error ? "failed" : "done", result: content };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return { state: "failed", result: error.detail || error.message };
  }
}
