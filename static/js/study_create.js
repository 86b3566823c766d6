// The study form: rates to try for the chosen model, the rate that a dataset suggests, the length typed into, and
// as many test rows as the plan asks for.

const form = document.getElementById("study");

if (form) {
  const known = JSON.parse(document.getElementById("suggestions").textContent);
  const rate = form.elements.learning_rate;
  const suggested = () => String(known.samples.includes(Number(form.elements.dataset_version.value)) ? known.sampleRate : known.usualRate);
  let last = rate.value;

  // A rate that somebody typed stays; only the suggestion before is replaced.
  form.elements.dataset_version.addEventListener("change", () => {
    if (Number(rate.value) === Number(last)) rate.value = suggested();
    last = suggested();
  });
  form.querySelector("[data-rates]").addEventListener("click", () => {
    const field = form.elements.learning_rates;
    field.value = (known.rates[form.elements.base_model.value] ?? []).join(", ");
    field.dispatchEvent(new Event("change", { bubbles: true }));
    field.focus();
  });
  // The plan around this button is renewed all the time.
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-test-rows]");
    if (!button) return;
    const field = form.elements.test_rows;
    field.value = button.dataset.testRows;
    field.dispatchEvent(new Event("change", { bubbles: true }));
    field.focus();
  });
  // A number typed into a length chooses that length.
  for (const choice of form.querySelectorAll(".length-choice")) {
    choice.querySelector("input[type=number]").addEventListener("input", () => (choice.querySelector("input[type=radio]").checked = true));
  }
}
