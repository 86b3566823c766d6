// The queue page: its board is not renewed under an open question, nor in a tab that nobody sees.

const board = document.getElementById("board");

board.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden || board.querySelector("dialog[open]") || board.querySelector(":focus-visible")) event.preventDefault();
});
