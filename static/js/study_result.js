// Saves the SVG figures of a study as PNG, with their computed styles, and prints the report.

import { downloadPng } from "./png.js";

const STYLES = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "paint-order", "opacity", "font-size", "font-weight", "font-family", "display"];
const SCALE = 2;

// An image has no style sheet, so every element gets its computed styles as attributes.
function withComputedStyles(plot, width, height) {
  const copy = plot.cloneNode(true);
  const originals = [plot, ...plot.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((element, place) => {
    const style = getComputedStyle(originals[place]);
    for (const name of STYLES) element.setAttribute(name, style.getPropertyValue(name));
  });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  return copy;
}

function save(button) {
  const plot = document.getElementById(button.dataset.plot);
  const { width, height } = plot.getBoundingClientRect();
  const picture = new Image();
  picture.addEventListener("load", () => {
    const margin = 16;
    downloadPng(button.dataset.filename, SCALE * (width + 2 * margin), SCALE * (height + 2 * margin), (ctx) => {
      ctx.scale(SCALE, SCALE);
      ctx.drawImage(picture, margin, margin, width, height);
    });
  });
  const text = new XMLSerializer().serializeToString(withComputedStyles(plot, width, height));
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-plot]");
  if (button) save(button);
  if (event.target.closest("[data-print]")) window.print();
});
