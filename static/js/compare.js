// Home and the compare page: draw the curves that the page brings along, or fetches later with their points.

import { draw } from "./line_chart.js";

/* global htmx */

function drawAll(within) {
  for (const element of within.querySelectorAll("[data-curves]")) {
    draw(element, JSON.parse(document.getElementById(element.dataset.curves).textContent).series);
  }
  // What is fetched later may hold no script, not even one with data.
  for (const element of within.querySelectorAll("[data-series]")) draw(element, JSON.parse(element.dataset.series));
}

drawAll(document);
document.body.addEventListener("htmx:load", (event) => drawAll(event.detail.elt));

// The browser prints what the page holds when this event ends, so it waits for what is fetched on scrolling.
window.addEventListener("beforeprint", () => {
  for (const element of document.querySelectorAll("[hx-trigger=revealed]")) {
    htmx.trigger(element, "htmx:abort");
    const request = new XMLHttpRequest();
    request.open("GET", element.getAttribute("hx-get"), false);
    request.send();
    const page = new DOMParser().parseFromString(request.responseText, "text/html");
    if (request.status === 200) element.replaceWith(...page.body.childNodes);
  }
  drawAll(document);
});
