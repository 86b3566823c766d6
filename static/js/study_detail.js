// A study's page: its grid is not renewed under an open question or the keyboard's focus, nor in a tab that nobody
// sees, and it stays scrolled where it was.

let scrolled = 0;

document.body.addEventListener("htmx:beforeRequest", (event) => {
  const grid = event.detail.elt;
  if (grid.id !== "study-grid") return;
  const used = document.querySelector("dialog[open]") || grid.querySelector(":focus-visible");
  if (document.hidden || used) event.preventDefault();
});

document.body.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target.id === "study-grid") scrolled = event.detail.target.querySelector(".table-responsive").scrollLeft;
});

document.body.addEventListener("htmx:afterSwap", () => {
  const table = document.querySelector("#study-grid .table-responsive");
  if (table) table.scrollLeft = scrolled;
});
