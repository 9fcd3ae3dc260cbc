// The server's API: requests with the key, and failures that the page can put in words.
import * as session from "./session.js";
import { settings } from "./settings.js";
import { events } from "./sse.js";

const KEY = "magistral.key";
const url = (path) => new URL(path, document.baseURI);

/**
 * What went wrong: `kind` is a key of the strings below "error.", `detail` the server's own words,
 * `wait` the seconds after which the server may be asked again.
 */
export class Failure extends Error {
  constructor(kind, detail = "", wait = null) {
    super(detail || kind);
    Object.assign(this, { kind, detail, wait });
  }
}

export const key = {
  get: () => session.get(KEY),
  set: (value) => session.set(KEY, value),
  forget: () => session.set(KEY, null),
};

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  try {
    new Headers(headers);
  } catch {
    throw new Failure("key"); // one with letters that no request can carry
  }
  let response;
  try {
    response = await fetch(url(path), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("unreachable");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const body = await response.json().catch(() => null);
  const detail = body?.error?.message ?? "";
  const wait = Number(response.headers.get("Retry-After")) || null;
  const kinds = { 401: "key", 413: "large", 429: "busy", 503: "unavailable" };
  return new Failure(
    kinds[response.status] ?? (response.status < 500 ? "refused" : "server"),
    detail,
    wait,
  );
}

/** The models that the server offers, and its limits, as /v1/models lists them. */
export async function models() {
  return (await request("v1/models")).json();
}

const post = (path, body, options = {}) =>
  request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    ...options,
  });

// What the prompt of the next message would be made with.
const promptOptions = () => ({
  ...(settings.model === null ? {} : { model: settings.model }),
  ...(settings.imageTokens === null ? {} : { image_tokens: settings.imageTokens }),
});

/**
 * Tokens that images take, with the text before them if there is one. Throws Failure if the server
 * does not read one.
 */
export async function imageTokens(urls, heading = null) {
  const images = urls.map((url) => {
    const [, media_type, data] = /^data:([^;,]*);base64,(.*)$/s.exec(url) ?? [];
    return { type: "image", source: { type: "base64", media_type, data } };
  });
  const count = async (content) => {
    const body = { messages: [{ role: "user", content }], ...promptOptions() };
    return (await (await post("v1/messages/count_tokens", body)).json()).input_tokens;
  };
  const text = { type: "text", text: "." };
  const before = heading === null ? [] : [{ type: "text", text: heading }];
  const [whole, bare] = await Promise.all([count([...before, ...images, text]), count([text])]);
  return whole - bare;
}

/** A file, { name, data, pdf }, as { parts, tokens }. Throws Failure if the server does not read it. */
export const readDocument = async (file) =>
  (await post("v1/documents", { ...file, ...promptOptions() })).json();

/** The tools of MCP servers that this server has. */
export const tools = async () => (await request("v1/mcp/tools")).json();

/** Call one of them: { content, is_error }. Throws Failure, or AbortError. */
export const callTool = async (name, values, signal) =>
  (await post("v1/mcp/calls", { name, arguments: values }, { signal })).json();

/** The server's figures as Prometheus text. */
export const metrics = async () => (await request("metrics")).text();

/** POST a chat; yields the chunks of the answer as objects. Throws Failure, or AbortError. */
export async function* chat(body, signal) {
  const response = await post("v1/chat/completions", body, { signal });
  try {
    for await (const { data } of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Failure("server", chunk.error.message ?? "");
      yield chunk;
    }
  } catch (error) {
    if (signal.aborted || error instanceof Failure) throw error;
    throw new Failure("cut");
  }
  throw new Failure("cut");
}
