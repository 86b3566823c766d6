// A study's page: pauses the refresh of its grid while the grid is in use, and keeps the grid's scroll position.

import { pauseWhileInUse } from "./refresh.js";

let scrolled = 0;
pauseWhileInUse("study-grid");

document.body.addEventListener("htmx:beforeSwap", (event) => {
  if (event.detail.target.id === "study-grid") scrolled = event.detail.target.querySelector(".table-responsive").scrollLeft;
});

document.body.addEventListener("htmx:afterSwap", () => {
  const table = document.querySelector("#study-grid .table-responsive");
  if (table) table.scrollLeft = scrolled;
});
