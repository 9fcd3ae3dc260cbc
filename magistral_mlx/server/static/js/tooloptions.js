// Tools of MCP servers among the options: which servers' tools are on, and what is allowed.
import { h } from "./dom.js";
import { onChange, settings } from "./settings.js";
import { toast } from "./toast.js";
import { forget, onTools, servers } from "./tools.js";

/** The section; hidden where the server has no tools. */
export function toolOptions() {
  const list = h("div", {});
  const section = h(
    "section",
    { class: "tool-options", hidden: true },
    h("h3", { t: "options.tools" }),
    h("p", { class: "hint", t: "options.tools.hint" }),
    list,
    h("button", {
      type: "button",
      t: "options.tools.forget",
      on: {
        click: () => {
          forget();
          toast("options.tools.forgotten");
        },
      },
    }),
  );
  const show = () => {
    section.hidden = !servers().length;
    list.replaceChildren(...servers().map(box));
  };
  onTools(show);
  show();
  onChange("toolsOff", () => {
    servers().forEach((server, index) => {
      list.querySelectorAll("input")[index].checked = on(server);
    });
  });
  return section;
}

const on = (server) => !settings.toolsOff.includes(server);

function box(server) {
  const input = h("input", { type: "checkbox", checked: on(server) });
  input.addEventListener("change", () => {
    const others = settings.toolsOff.filter((name) => name !== server);
    settings.toolsOff = input.checked ? others : [...others, server];
  });
  return h("label", { class: "check" }, input, h("span", { dir: "auto" }, server));
}
