// Signs, drawn on a square of 24.
const PATHS = {
  panel: "M5 4.5h14a2 2 0 0 1 2 2v11a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2v-11a2 2 0 0 1 2-2zM9.5 4.5v15",
  plus: "M12 5v14M5 12h14",
  sliders:
    "M3.5 7.5H13m5 0h2.5M3.5 16.5H6m5 0h9.5M13 7.5a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0M6 16.5a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0",
  down: "M12 5v14m-6-6 6 6 6-6",
  image:
    "M5 4h14a2 2 0 0 1 2 2v12a2 2 0 0 1-2 2H5a2 2 0 0 1-2-2V6a2 2 0 0 1 2-2zM3 16.5l5-5 5 5 3.5-3.5 4.5 4.5M14.5 8.5a1.25 1.25 0 1 0 2.5 0a1.25 1.25 0 1 0-2.5 0",
  file: "M6 3.5h8l4.5 4.5v11a1.5 1.5 0 0 1-1.5 1.5H6A1.5 1.5 0 0 1 4.5 19V5A1.5 1.5 0 0 1 6 3.5zM13.5 3.5V8.5h5",
  clip: "M20 11.5l-8 8a5 5 0 0 1-7-7l8.5-8.5a3.3 3.3 0 0 1 4.7 4.7L10 17a1.7 1.7 0 0 1-2.4-2.4L15 7.5",
  send: "M12 19V5m-6 6 6-6 6 6",
  stop: "M8.5 7h7A1.5 1.5 0 0 1 17 8.5v7a1.5 1.5 0 0 1-1.5 1.5h-7A1.5 1.5 0 0 1 7 15.5v-7A1.5 1.5 0 0 1 8.5 7z",
  copy: "M10.5 9h8A1.5 1.5 0 0 1 20 10.5v8a1.5 1.5 0 0 1-1.5 1.5h-8A1.5 1.5 0 0 1 9 18.5v-8A1.5 1.5 0 0 1 10.5 9zM5.5 15A1.5 1.5 0 0 1 4 13.5v-8A1.5 1.5 0 0 1 5.5 4h8A1.5 1.5 0 0 1 15 5.5",
  check: "m5 13 4 4L19 7",
  edit: "m4 20 1-4L16 5l3 3L8 19z",
  retry: "M19 12a7 7 0 1 1-2-5l2 2m0-4v4h-4",
  trash: "M5 7h14M10 7V4h4v3m3 0-1 13H8L7 7",
  export: "M12 4v11m-4-4 4 4 4-4M5 20h14",
  more: "M6 12h.01M12 12h.01M18 12h.01",
  close: "m6 6 12 12M18 6 6 18",
  left: "m14 6-6 6 6 6",
  right: "m10 6 6 6-6 6",
  chevron: "m9 6 6 6-6 6",
};

/** A drawn sign; buttons that carry nothing else have a label. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  for (const [key, value] of Object.entries({
    viewBox: "0 0 24 24",
    "aria-hidden": "true",
    class: "icon",
  }))
    svg.setAttribute(key, value);
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}
