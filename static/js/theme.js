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
  const show = (dark) => {
    root.dataset.bsTheme = dark ? "dark" : "light";
    root.dispatchEvent(new CustomEvent("graftworks:theme"));
  };
  const apply = () => {
    const choice = stored();
    root.dataset.themeChoice = choice;
    show(choice === "dark" || (choice === "auto" && system.matches));
  };
  root.classList.add("js");
  system.addEventListener("change", apply);
  root.addEventListener("graftworks:theme-choice", apply);
  // Paper is white, and pictures keep the colours with which they were drawn.
  window.addEventListener("beforeprint", () => show(false));
  window.addEventListener("afterprint", apply);
  apply();
})();
