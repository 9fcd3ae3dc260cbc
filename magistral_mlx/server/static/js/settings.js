// What the user has chosen; kept in this browser.
const KEY = "magistral.settings";
const DEFAULTS = {
  theme: "system", // or light, dark
  language: "auto", // or en, de
  sidebar: true, // shown, where there is room
  thinkingOpen: true, // a trace that is being written is shown
  thinking: "on", // or budget, off
  budget: 2000, // tokens, for thinking "budget"
  temperature: null, // null: as the server has it; likewise below
  maxTokens: null,
  seed: null,
  topP: null,
  minP: null,
  topK: null,
  repetitionPenalty: null,
  presencePenalty: null,
  frequencyPenalty: null,
  imageTokens: null,
  stop: "", // a text a line
  schema: "", // JSON
  keepThinking: true, // earlier traces are part of the prompt
  notify: false, // when an answer ends out of sight
  system: "",
  toolsOff: [], // names of MCP servers
  toolsAllowed: {}, // fingerprints of tools that are called without a question, by name
  foldersClosed: [], // names of folders of conversations
  presets: [], // system prompts as { name, text }
  model: null,
};

const listeners = [];
let values = { ...DEFAULTS, ...read() };

function read() {
  try {
    return JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch {
    return {}; // no storage, or a damaged entry
  }
}

export const settings = new Proxy(
  {},
  {
    get: (_, name) => values[name],
    set: (_, name, value) => {
      values = { ...values, [name]: value };
      for (const listener of listeners) listener(name);
      try {
        localStorage.setItem(KEY, JSON.stringify(values));
      } catch {
        // Full, or not allowed: it holds until the page is closed.
      }
      return true;
    },
  },
);

/** Call `listener(name)` when a setting is changed, here or in another tab. */
export const onSetting = (listener) => listeners.push(listener);

/** Call `show()` when this one is. */
export const onChange = (name, show) => onSetting((changed) => changed === name && show());

// Another tab has changed them.
addEventListener("storage", (event) => {
  if (event.key !== KEY) return;
  const before = values;
  values = { ...DEFAULTS, ...read() };
  for (const name of Object.keys(DEFAULTS)) {
    if (JSON.stringify(values[name]) === JSON.stringify(before[name])) continue;
    for (const listener of listeners) listener(name);
  }
});
