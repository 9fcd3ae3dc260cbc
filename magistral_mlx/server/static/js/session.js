// What is kept until the tab is closed; where the browser forbids that, until the page is.
const memory = new Map();

export function get(name) {
  try {
    return sessionStorage.getItem(name) ?? memory.get(name) ?? null;
  } catch {
    return memory.get(name) ?? null;
  }
}

/** Keep a string; null forgets it. */
export function set(name, value) {
  memory.delete(name);
  try {
    if (value === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, value);
  } catch {
    if (value !== null) memory.set(name, value);
  }
}
