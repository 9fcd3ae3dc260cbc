// What the server is asked, and what its chunks mean.
import { urlsOf } from "./attach.js";
import { settings } from "./settings.js";
import { offered } from "./tools.js";
import { begun } from "./tree.js";

// Options under their names in the API.
const NAMES = {
  model: "model",
  temperature: "temperature",
  topP: "top_p",
  minP: "min_p",
  topK: "top_k",
  repetitionPenalty: "repetition_penalty",
  presencePenalty: "presence_penalty",
  frequencyPenalty: "frequency_penalty",
  maxTokens: "max_tokens",
  imageTokens: "image_tokens",
  seed: "seed",
};

/**
 * The request for an answer to `messages`, a path of the conversation that ends with the user, or
 * with an answer that is to go on. `system` is the conversation's own system prompt, null for the
 * one of the options.
 */
export function requestBody(messages, system = null) {
  const prompt = systemPrompt(system);
  const body = {
    messages: [
      ...(prompt ? [{ role: "system", content: prompt }] : []),
      ...messages.filter(says).flatMap((message) => wire(message, message === messages.at(-1))),
    ],
    stream: true,
    stream_options: { include_usage: true },
    thinking: settings.thinking === "budget" ? settings.budget : settings.thinking,
  };
  for (const [option, name] of Object.entries(NAMES)) {
    if (settings[option] !== null) body[name] = settings[option];
  }
  const stop = settings.stop.split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  if (settings.schema) {
    const schema = JSON.parse(settings.schema);
    body.response_format = { type: "json_schema", json_schema: { name: "answer", schema } };
  }
  if (!settings.keepThinking) body.keep_thinking = false;
  const tools = offered();
  if (tools.length) body.tools = tools;
  return body;
}

const systemPrompt = (own) => (own ?? settings.system).trim();

// An answer that failed before its first word is no part of what the model reads.
const says = (message) => message.role === "user" || begun(message);

/**
 * What the server said of a request with `messages`, with names for the places in its JSON:
 * "messages[0].content[0].image_url: The image is empty" is "circle.png is empty".
 */
export function named(detail, messages, system = null) {
  const sent = [
    ...(systemPrompt(system) ? [{}] : []),
    ...messages.filter(says).flatMap((message) => wire(message, false).map(() => message)),
  ];
  const nameOf = (message, part) =>
    sent[message]?.attachments?.flatMap((one) => partsOf(one).map(() => one.name))[part];
  return detail.replace(
    /\bmessages\[(\d+)\](?:\.content\[(\d+)\])?[\w.[\]]*:?\s*([Tt]he image\b)?/g,
    (_, message, part, subject = "") => nameOf(message, part) ?? subject,
  );
}

// A message as the API has it; an answer that calls tools is several.
function wire({ role, text, thinking, attachments, rounds = [] }, last) {
  if (role === "assistant") {
    const before = rounds.flatMap((round) => [said(round), ...round.calls.map(resultOf)]);
    if (!text && !thinking) return before;
    return [...before, { ...said({ text, thinking }), ...(last ? { prefix: true } : {}) }];
  }
  if (!attachments?.length) return [{ role, content: text }];
  const parts = attachments.flatMap(partsOf);
  return [{ role, content: text ? [...parts, { type: "text", text }] : parts }];
}

const said = ({ text, thinking, calls = [] }) => ({
  role: "assistant",
  content: text,
  ...(thinking ? { reasoning_content: thinking } : {}),
  ...(calls.length ? { tool_calls: calls.map(callOf) } : {}),
});

const callOf = ({ id, name, arguments: written }) => ({
  id,
  type: "function",
  function: { name, arguments: written },
});

const resultOf = ({ id, result }) => ({
  role: "tool",
  tool_call_id: id,
  content: result ?? "This call was not made.",
});

/** What is sent for an attachment: its text, its images, or both. */
const partsOf = (attachment) => [
  ...(attachment.text ? [{ type: "text", text: attachment.text }] : []),
  ...urlsOf(attachment).map((url) => ({ type: "image_url", image_url: { url } })),
];

/**
 * What a chunk brings: any of model, progress ({ prompt_tokens, done_tokens, seconds_left }),
 * thinking, text, calls (pieces of calls to tools, by their index), reason, notes (what the server has to say), usage, timings.
 */
export function meaning(chunk) {
  const choice = chunk.choices?.[0];
  return {
    model: chunk.model,
    progress: chunk.progress ?? null,
    thinking: choice?.delta?.reasoning_content ?? "",
    text: choice?.delta?.content ?? "",
    calls: choice?.delta?.tool_calls ?? [],
    reason: choice?.finish_reason ?? null,
    notes: choice?.notes ?? null,
    usage: chunk.usage ?? null,
    timings: choice?.timings ?? null,
  };
}
