// The fine-tune form: suggestions that make a run fit, and the reset to the defaults.

import { selectTypedLength } from "./suggestions.js";

const form = document.getElementById("fine-tune");
const fill = (field, value) => (field.type === "checkbox" ? (field.checked = Boolean(value)) : (field.value = value ?? ""));

if (form) {
  const known = JSON.parse(document.getElementById("suggestions").textContent);
  const expert = document.querySelector("details.expert");
  selectTypedLength(form);
  form.querySelector("[data-reset]").addEventListener("click", () => {
    for (const field of expert.querySelectorAll("input:enabled, select")) fill(field, known.defaults[field.name]);
    form.elements.r.dispatchEvent(new Event("change", { bubbles: true }));
  });
  // Buttons that make the run fit carry the fields that they change.
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-set]");
    if (!button) return;
    for (const [name, value] of Object.entries(JSON.parse(button.dataset.set))) {
      fill(form.elements[name], value);
    }
    expert.open = true;
    form.elements.r.dispatchEvent(new Event("change", { bubbles: true }));
  });
}
