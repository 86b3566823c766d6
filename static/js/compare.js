// The compare page and home: draw the curves that the page brings along, or fetches later.

import { draw } from "./line_chart.js";

function drawAll(within) {
  for (const element of within.querySelectorAll("[data-curves]")) {
    draw(element, JSON.parse(document.getElementById(element.dataset.curves).textContent).series);
  }
}

drawAll(document);
document.body.addEventListener("htmx:load", (event) => drawAll(event.detail.elt));
