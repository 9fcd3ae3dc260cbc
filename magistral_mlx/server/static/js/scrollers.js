// Wide code, tables and formulas scroll sideways: then, and only then, Tab reaches them.
export function reachScrollers(root) {
  for (const element of root.querySelectorAll(".code pre, .table, [data-math=display]")) {
    if (element.scrollWidth > element.clientWidth) element.tabIndex = 0;
    else element.removeAttribute("tabindex");
  }
}
