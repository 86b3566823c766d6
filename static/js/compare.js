// The compare page and home: draw the curves that the page brings along.

import { draw } from "./line_chart.js";

for (const element of document.querySelectorAll("[data-curves]")) {
  draw(element, JSON.parse(document.getElementById(element.dataset.curves).textContent).series);
}
