// Work that is worth doing at most once a frame.

const SHARE = 4; // a call that took t is followed by at least this many t of rest

/**
 * A function that calls `work` in the next frame, once, however often it is called before. Slow
 * work is done less often, so that it never takes more than a part of the time.
 */
export function onceAFrame(work) {
  let asked = false;
  let rested = 0; // the time before which slow work is not done again
  const run = (now) => {
    if (now < rested) {
      requestAnimationFrame(run);
      return;
    }
    asked = false;
    const begun = performance.now();
    work();
    const ended = performance.now();
    rested = ended + (ended - begun) * (SHARE - 1);
  };
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(run);
  };
}
