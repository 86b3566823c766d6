// Pauses the live refresh of a region while a dialog is open, a control has the focus, or the tab is hidden.

export function pauseWhileInUse(id) {
  document.body.addEventListener("htmx:beforeRequest", (event) => {
    const region = event.detail.elt;
    if (region.id !== id) return;
    const inUse = document.querySelector("dialog[open]") || region.querySelector(":focus-visible");
    if (document.hidden || inUse) event.preventDefault();
  });
}
