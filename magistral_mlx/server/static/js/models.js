// Which model answers: its name, or a choice where the server has several.
import * as api from "./api.js";
import { $, h } from "./dom.js";
import { settings } from "./settings.js";

/** Ask the server for its models and show them. Throws Failure. */
export async function showModels() {
  const found = (await api.models()).map(({ id }) => id);
  if (!found.includes(settings.model)) settings.model = null;
  const several = found.length > 1;
  $("#model-choice").hidden = !several;
  $("#model-name").textContent = several ? "" : (found[0] ?? "");
  $("#model-name").title = found[0] ?? "";
  $("#model").replaceChildren(...found.map((id) => h("option", { value: id }, id)));
  $("#model").value = settings.model ?? found[0];
  $("#model").onchange = ({ target }) => { settings.model = target.value; };
}
