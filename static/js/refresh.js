// Pauses the live refresh of a region while a dialog is open or a control has the focus.

export function pauseWhileInUse(id) {
  document.body.addEventListener("htmx:beforeRequest", (event) => {
    const region = event.detail.elt;
    if (region.id !== id) return;
    if (document.querySelector("dialog[open]") || region.querySelector(":focus-visible")) event.preventDefault();
  });
}
