// What the server is asked, and what its chunks mean.
import { settings } from "./settings.js";

/**
 * The request for an answer to `messages`, a path of the conversation that ends with the user, or
 * with an answer that is to go on.
 */
export function requestBody(messages) {
  const body = {
    messages: [
      ...(settings.system.trim() ? [{ role: "system", content: settings.system }] : []),
      ...messages.filter(says).map((message) => wire(message, message === messages.at(-1))),
    ],
    stream: true,
    stream_options: { include_usage: true },
    thinking: settings.thinking === "budget" ? settings.budget : settings.thinking,
  };
  const chosen = {
    model: settings.model,
    temperature: settings.temperature,
    max_tokens: settings.maxTokens,
    seed: settings.seed,
  };
  for (const [name, value] of Object.entries(chosen)) if (value !== null) body[name] = value;
  return body;
}

// An answer that failed before its first word is no part of what the model reads.
const says = (message) => message.role === "user" || message.text || message.thinking;

/**
 * What the server said of a request with `messages`, with names for the places in its JSON:
 * "messages[0].content[0].image_url: The image is empty" is "circle.png is empty".
 */
export function named(detail, messages) {
  const sent = [...(settings.system.trim() ? [{}] : []), ...messages.filter(says)];
  return detail.replace(
    /\bmessages\[(\d+)\](?:\.content\[(\d+)\])?[\w.[\]]*:?\s*(The image\b)?/g,
    (_, message, part, subject = "") => sent[message]?.images?.[part]?.name ?? subject,
  );
}

function wire({ role, text, thinking, images }, last) {
  if (role === "assistant") {
    const reasoning = thinking ? { reasoning_content: thinking } : {};
    return { role, content: text, ...reasoning, ...(last ? { prefix: true } : {}) };
  }
  if (!images?.length) return { role, content: text };
  const shown = images.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return { role, content: text ? [...shown, { type: "text", text }] : shown };
}

/**
 * What a chunk brings: any of model, progress ({ prompt_tokens, done_tokens, seconds_left }),
 * thinking, text, reason, notes (what the server has to say), usage, timings.
 */
export function meaning(chunk) {
  const choice = chunk.choices?.[0];
  return {
    model: chunk.model,
    progress: chunk.progress ?? null,
    thinking: choice?.delta?.reasoning_content ?? "",
    text: choice?.delta?.content ?? "",
    reason: choice?.finish_reason ?? null,
    notes: choice?.notes ?? null,
    usage: chunk.usage ?? null,
    timings: choice?.timings ?? null,
  };
}
