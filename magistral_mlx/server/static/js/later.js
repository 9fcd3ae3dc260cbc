// Work that can wait: done in slices between frames, what came last first.

const SLICE = 8; // milliseconds of a frame
const waiting = new Set();
let running = false;

/** Do `work` soon. Returns a function that has it left undone. */
export function later(work) {
  waiting.add(work);
  if (!running) requestAnimationFrame(slice);
  running = true;
  return () => waiting.delete(work);
}

function slice() {
  work(performance.now() + SLICE);
  running = waiting.size > 0;
  if (running) requestAnimationFrame(slice);
}

function work(until) {
  const due = [...waiting].reverse();
  for (const one of due) {
    waiting.delete(one);
    one();
    if (performance.now() > until) return;
  }
}

// On paper there is no later.
addEventListener("beforeprint", () => work(Infinity));
