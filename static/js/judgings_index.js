// The judge's page: what it has said is not renewed under the keyboard's focus, nor in a tab that nobody sees.

document.body.addEventListener("htmx:beforeRequest", (event) => {
  const judged = event.detail.elt;
  if (judged.id !== "judged") return;
  if (document.hidden || judged.querySelector(":focus-visible")) event.preventDefault();
});
