// The table of runs: ticking all rows, ranges with Shift, keys while a row has the focus, and the order of columns.

const form = document.querySelector("[data-selection]");

function selectionOf(table) {
  const boxes = [...table.querySelectorAll("input[name=runs]")];
  const all = table.querySelector("[data-select-all]");
  const count = table.querySelector("[data-selection-count]");
  const hint = count.textContent;
  let last = null;

  const show = () => {
    const ticked = boxes.filter((box) => box.checked).length;
    all.checked = ticked === boxes.length;
    all.indeterminate = ticked > 0 && ticked < boxes.length;
    count.textContent = ticked ? count.dataset.words.replace("0", ticked) : hint;
    for (const box of boxes) box.closest("tr").classList.toggle("is-selected", box.checked);
  };
  const tickRange = (box) => {
    const [from, to] = [boxes.indexOf(last), boxes.indexOf(box)].sort((one, other) => one - other);
    for (const other of boxes.slice(from, to + 1)) other.checked = box.checked;
  };

  all.hidden = false;
  all.addEventListener("change", () => {
    for (const box of boxes) box.checked = all.checked;
    show();
  });
  table.addEventListener("click", (event) => {
    const box = boxes.includes(event.target) ? event.target : null;
    if (!box) return;
    if (event.shiftKey && last) tickRange(box);
    last = box;
    show();
  });
  // Single keys only while a tick box of a row has the focus: they must not act elsewhere.
  table.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.name === "tag") {
      // The browser would press the first button of the form.
      event.preventDefault();
      table.querySelector("button[value=tag]").click();
      return;
    }
    const place = boxes.indexOf(event.target);
    if (place < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (step) {
      event.preventDefault();
      boxes[place + step]?.focus();
    } else if (event.key === "Enter") {
      event.preventDefault();
      boxes[place].closest("tr").querySelector("a").click();
    }
  });
  window.addEventListener("pageshow", show);
  show();
}

// Each button moves its column one place forward; the form sends the columns in the order of the list.
function orderColumns(list) {
  for (const button of list.querySelectorAll("[data-up]")) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const item = button.closest("li");
      const before = item.previousElementSibling;
      if (!before?.querySelector("[data-up]")) return;
      before.before(item);
      button.focus();
    });
  }
}

if (form) selectionOf(form);
document.querySelectorAll("[data-columns]").forEach(orderColumns);
