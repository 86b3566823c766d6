// A study's figures as pictures: the SVG on the page, with the look it has there, drawn onto a canvas.

const LOOK = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "paint-order", "opacity", "font-size", "font-weight", "font-family", "display"];
const SCALE = 2;

// A picture knows no style sheet, so every element carries its present look along.
function dressed(plot, width, height) {
  const copy = plot.cloneNode(true);
  const originals = [plot, ...plot.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((element, place) => {
    const style = getComputedStyle(originals[place]);
    for (const name of LOOK) element.setAttribute(name, style.getPropertyValue(name));
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
    const sheet = document.createElement("canvas");
    sheet.width = SCALE * (width + 2 * margin);
    sheet.height = SCALE * (height + 2 * margin);
    const ctx = sheet.getContext("2d");
    ctx.scale(SCALE, SCALE);
    ctx.fillStyle = document.documentElement.dataset.bsTheme === "dark" ? "#182433" : "#ffffff";
    ctx.fillRect(0, 0, sheet.width, sheet.height);
    ctx.drawImage(picture, margin, margin, width, height);
    const link = document.createElement("a");
    link.href = sheet.toDataURL("image/png");
    link.download = button.dataset.filename;
    link.click();
  });
  const text = new XMLSerializer().serializeToString(dressed(plot, width, height));
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-plot]");
  if (button) save(button);
  if (event.target.closest("[data-print]")) window.print();
});
