// Pauses the live refresh of the board while a dialog is open, a control has the focus, or the tab is hidden.

const board = document.getElementById("board");

board.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.elt !== board) return;
  const inUse = board.querySelector("dialog[open]") || board.querySelector(":focus-visible");
  if (document.hidden || inUse) event.preventDefault();
});
