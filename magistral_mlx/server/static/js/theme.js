// Runs before the page is painted, so that a chosen theme never flashes.
try {
  const { theme } = JSON.parse(localStorage.getItem("magistral.settings") ?? "{}");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // No storage, or a damaged entry: the system's theme it is.
}
