// Which model answers: its name, or a choice where the server has several.
import * as api from "./api.js";
import { $, h } from "./dom.js";
import { onChange, settings } from "./settings.js";
import { findTools } from "./tools.js";

// As the server has them, unless it tells others.
const LIMITS = {
  images: 32,
  image_pixels: 50_000_000,
  prompt_pixels: 100_000_000,
  body_bytes: 64 * 2 ** 20,
};
let found = [];
let told = {};

/** What a request may hold: images, pixels of one and of all, bytes. */
export const limits = () => ({ ...LIMITS, ...told });

const answering = () => found.find(({ id }) => id === settings.model) ?? found[0];

/** The own system prompt of the model that answers; null for none, or before the server tells. */
export const ownPrompt = () => answering()?.system_prompt ?? null;

/** Whether the model that answers can be shown images; so it is until the server tells. */
export const sees = () => answering()?.vision ?? true;

// Another tab may have chosen one.
onChange("model", () => {
  if (found.length) $("#model").value = answering().id;
});

/** Ask the server for its models and show them. Throws Failure. */
export async function showModels() {
  const asking = api.models();
  await findTools(asking);
  const list = await asking;
  found = list.data;
  told = list.limits ?? {};
  if (!found.some(({ id }) => id === settings.model)) settings.model = null;
  const several = found.length > 1;
  $("#model-choice").hidden = !several;
  $("#model-name").textContent = several ? "" : found[0].id;
  $("#model-name").title = found[0].id;
  $("#model").replaceChildren(...found.map(({ id }) => h("option", { value: id }, id)));
  $("#model").value = answering().id;
  $("#model").onchange = ({ target }) => {
    settings.model = target.value;
  };
}
