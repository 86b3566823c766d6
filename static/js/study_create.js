// The study form: learning rates to search, the test rows and seeds that the plan offers, and further arms.

import { selectTypedLength, setField } from "./suggestions.js";

const form = document.getElementById("study");

if (form) {
  const known = JSON.parse(document.getElementById("suggestions").textContent);
  selectTypedLength(form);
  form.querySelector("[data-rates]").addEventListener("click", () => {
    setField(form.elements.learning_rates, (known.rates[form.elements.base_model.value] ?? []).join(", "));
  });
  // On the form, because the plan around the button is replaced with each change.
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-field]");
    if (button) setField(form.elements[button.dataset.field], button.value);
  });

  // Each further arm is a row and an option of the reference arm.
  const rows = form.querySelector("[data-further]");
  const total = form.elements["more-TOTAL_FORMS"];
  const references = form.elements.compared_with;
  const changed = () => form.dispatchEvent(new Event("change", { bubbles: true }));
  const add = form.querySelector("[data-add]");
  add.addEventListener("click", () => {
    const place = Number(total.value);
    const numbered = (text) => text.replaceAll("__prefix__", place).replaceAll("__number__", place + 1);
    const row = form.querySelector("template[data-blank]").content.firstElementChild.cloneNode(true);
    for (const part of [row, ...row.querySelectorAll("*")]) {
      for (const attribute of part.attributes) attribute.value = numbered(attribute.value);
    }
    const title = row.querySelector("strong");
    title.textContent = numbered(title.textContent);
    rows.append(row);
    total.value = place + 1;
    references.append(new Option(row.getAttribute("aria-label"), `more-${place}`));
    add.hidden = total.value >= Number(form.elements["more-MAX_NUM_FORMS"].value);
    row.querySelector("select").focus();
    changed();
  });
  // A removed row is emptied and hidden, so that the others keep their numbers.
  rows.addEventListener("click", (event) => {
    if (!event.target.closest("[data-remove]")) return;
    const row = event.target.closest(".study-further-row");
    for (const field of row.querySelectorAll("input, select")) field.value = "";
    const option = references.querySelector(`option[value="${row.querySelector("select").name.replace(/-config$/, "")}"]`);
    if (option?.selected) references.selectedIndex = 0;
    option?.remove();
    row.hidden = true;
    add.focus();
    changed();
  });
}
