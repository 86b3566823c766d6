// The queue page: its board is not renewed under an open question or a drag, nor in a tab that nobody sees.
// Dragging is a second way to do what the buttons in each row do; it works with mouse, pen and finger.

const board = document.getElementById("board");
let drag = null;

board.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.elt !== board) return;
  const used = drag || board.querySelector("dialog[open]") || board.querySelector(":focus-visible");
  if (document.hidden || used) event.preventDefault();
});

// A row may be dropped on rows with which it may change places: the chain that the server has marked.
const rows = () => [...drag.row.parentElement.querySelectorAll(`tr[data-group="${drag.row.dataset.group}"]`)];

function clear() {
  for (const row of board.querySelectorAll(".drop-before, .drop-after")) row.classList.remove("drop-before", "drop-after");
}

function end(event) {
  if (!drag) return;
  const { row, grip, target, after } = drag;
  clear();
  row.classList.remove("is-dragged");
  grip.releasePointerCapture(event.pointerId);
  drag = null;
  if (event.type !== "pointerup" || !target) return;
  const form = grip.closest("form");
  const place = document.createElement("input");
  place.type = "hidden";
  place.name = after ? "after" : "before";
  place.value = target.dataset.job;
  form.append(place);
  form.requestSubmit();
}

board.addEventListener("pointerdown", (event) => {
  const grip = event.target.closest(".queue-grip");
  if (!grip || event.button !== 0) return;
  event.preventDefault();
  grip.setPointerCapture(event.pointerId);
  drag = { grip, row: grip.closest("tr"), target: null, after: false };
  drag.row.classList.add("is-dragged");
});

board.addEventListener("pointermove", (event) => {
  if (!drag) return;
  clear();
  drag.target = null;
  for (const row of rows()) {
    const box = row.getBoundingClientRect();
    if (row === drag.row || event.clientY < box.top || event.clientY > box.bottom) continue;
    drag.target = row;
    drag.after = event.clientY > box.top + box.height / 2;
    row.classList.add(drag.after ? "drop-after" : "drop-before");
  }
});

board.addEventListener("pointerup", end);
board.addEventListener("pointercancel", end);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || !drag) return;
  drag.target = null;
  clear();
});
