// The fine-tune form: the learning rate that a dataset suggests, ways to make a run fit, back to the defaults.

const form = document.getElementById("fine-tune");
const fill = (field, value) => (field.type === "checkbox" ? (field.checked = Boolean(value)) : (field.value = value ?? ""));

if (form) {
  const known = JSON.parse(document.getElementById("suggestions").textContent);
  const rate = form.elements.learning_rate;
  const expert = document.querySelector("details.expert");
  const suggested = () => String(known.samples.includes(Number(form.elements.dataset_version.value)) ? known.sampleRate : known.usualRate);
  let last = rate.value;

  // A rate that somebody typed stays; only the suggestion before is replaced.
  form.elements.dataset_version.addEventListener("change", () => {
    if (Number(rate.value) === Number(last)) rate.value = suggested();
    last = suggested();
  });
  form.querySelector("[data-reset]").addEventListener("click", () => {
    const usual = known.defaults;
    for (const field of expert.querySelectorAll("input:enabled, select")) fill(field, usual[field.name]);
    rate.value = last = suggested();
    form.elements.r.dispatchEvent(new Event("change", { bubbles: true }));
  });
  // Ways to make the run fit: each button carries the fields that it changes.
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-set]");
    if (!button) return;
    for (const [name, value] of Object.entries(JSON.parse(button.dataset.set))) {
      fill(form.elements[name], value);
    }
    expert.open = true;
    form.elements.r.dispatchEvent(new Event("change", { bubbles: true }));
  });
  // A number typed into a length chooses that length.
  for (const choice of form.querySelectorAll(".length-choice")) {
    choice.querySelector("input[type=number]").addEventListener("input", () => (choice.querySelector("input[type=radio]").checked = true));
  }
}
