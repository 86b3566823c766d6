// The study form: suggested rates and test rows, the chosen length, and rows for further arms.

const form = document.getElementById("study");

if (form) {
  const suggestions = JSON.parse(document.getElementById("suggestions").textContent);
  const rate = form.elements.learning_rate;
  const suggestedRate = () => String(suggestions.samples.includes(Number(form.elements.dataset_version.value)) ? suggestions.sampleRate : suggestions.usualRate);
  let last = rate.value;

  // Replaces the previous suggestion only; a typed rate stays.
  form.elements.dataset_version.addEventListener("change", () => {
    if (Number(rate.value) === Number(last)) rate.value = suggested();
    last = suggestedRate();
  });
  form.querySelector("[data-rates]").addEventListener("click", () => {
    const field = form.elements.learning_rates;
    field.value = (suggestions.rates[form.elements.base_model.value] ?? []).join(", ");
    field.dispatchEvent(new Event("change", { bubbles: true }));
    field.focus();
  });
  // Delegated, as the plan around this button is replaced.
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-test-rows]");
    if (!button) return;
    const field = form.elements.test_rows;
    field.value = button.dataset.testRows;
    field.dispatchEvent(new Event("change", { bubbles: true }));
    field.focus();
  });
  // Typing a number selects its kind of length.
  for (const choice of form.querySelectorAll(".length-choice")) {
    choice.querySelector("input[type=number]").addEventListener("input", () => (choice.querySelector("input[type=radio]").checked = true));
  }

  // Each further arm is a row and an option of the reference.
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
  // A removed row stays empty and hidden, so that the others keep their numbers.
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
