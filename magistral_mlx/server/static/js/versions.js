// "2 of 3": the versions that editing and retrying have left of a message.
import { h, iconButton } from "./dom.js";

/** A switch between `all` messages, of which `all[index]` is shown; null if there is but one. */
export function versionSwitch({ all, index }, choose) {
  if (all.length < 2) return null;
  const step = (by) => () => choose(all[index + by]);
  return h(
    "span",
    { class: "versions", role: "group", label: "versions" },
    iconButton("left", "versions.earlier", step(-1), { disabled: index === 0 }),
    h("span", {}, `${index + 1}/${all.length}`),
    iconButton("right", "versions.later", step(1), { disabled: index === all.length - 1 }),
  );
}
