// Files that are dropped anywhere on the page, or pasted.
import { $ } from "./dom.js";

const hasFiles = (transfer) => [...(transfer?.types ?? [])].includes("Files");

/** Call `take(files)` for each drop and paste of files. */
export function onFiles(take) {
  let depth = 0; // entering a child comes before leaving its parent
  const show = (by) => {
    depth = Math.max(0, depth + by);
    $("#drop").hidden = depth === 0;
  };
  addEventListener("dragenter", (event) => hasFiles(event.dataTransfer) && show(1));
  addEventListener("dragleave", (event) => hasFiles(event.dataTransfer) && show(-1));
  addEventListener("dragover", (event) => hasFiles(event.dataTransfer) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFiles(event.dataTransfer)) return;
    event.preventDefault();
    show(-depth);
    take([...event.dataTransfer.files]);
  });
  addEventListener("paste", (event) => {
    // Some programs put an image of the text beside the text: text is text then.
    if (!hasFiles(event.clipboardData) || event.clipboardData.getData("text/plain")) return;
    event.preventDefault();
    take([...event.clipboardData.files]);
  });
}
