// A study's page: keeps the grid's scroll position, and pauses its updates in hidden tabs, under an open
// dialog and while it has the keyboard's focus.

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
