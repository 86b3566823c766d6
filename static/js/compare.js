// Home and the compare page: draw the curves that the page brings along, or fetches later with their points.

import { draw } from "./line_chart.js";

function drawAll(within) {
  for (const element of within.querySelectorAll("[data-curves]")) {
    draw(element, JSON.parse(document.getElementById(element.dataset.curves).textContent).series);
  }
  // What is fetched later may hold no script, not even one with data.
  for (const element of within.querySelectorAll("[data-series]")) draw(element, JSON.parse(element.dataset.series));
}

drawAll(document);
document.body.addEventListener("htmx:load", (event) => drawAll(event.detail.elt));
