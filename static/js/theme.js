// Sets the colour theme before the first paint, so it is a classic script in the head. `auto` follows the system.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const stored = () => {
    try {
      return localStorage.getItem("graftworks-theme") || "auto";
    } catch {
      return "auto";
    }
  };
  const apply = () => {
    const choice = stored();
    const dark = choice === "dark" || (choice === "auto" && system.matches);
    root.dataset.bsTheme = dark ? "dark" : "light";
    root.dataset.themeChoice = choice;
    root.dispatchEvent(new CustomEvent("graftworks:theme"));
  };
  root.classList.add("js");
  system.addEventListener("change", apply);
  root.addEventListener("graftworks:theme-choice", apply);
  apply();
})();
