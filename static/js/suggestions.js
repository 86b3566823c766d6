// Behaviour that the fine-tune form and the study form share: the suggested learning rate, and a typed length.

// Suggests a learning rate for the chosen dataset. Returns the suggestions and a function that applies the current one.
export function suggestLearningRate(form) {
  const known = JSON.parse(document.getElementById("suggestions").textContent);
  const field = form.elements.learning_rate;
  const suggestion = () => String(known.samples.includes(Number(form.elements.dataset_version.value)) ? known.sampleRate : known.usualRate);
  let last = field.value;
  // A rate that the user typed is kept; only the previous suggestion is replaced.
  form.elements.dataset_version.addEventListener("change", () => {
    if (Number(field.value) === Number(last)) field.value = suggestion();
    last = suggestion();
  });
  return { known, reset: () => (field.value = last = suggestion()) };
}

// Typing a number into a length selects that length.
export function selectTypedLength(form) {
  for (const choice of form.querySelectorAll(".length-choice")) {
    choice.querySelector("input[type=number]").addEventListener("input", () => (choice.querySelector("input[type=radio]").checked = true));
  }
}

// Sets a field's value and lets the page react as to typing.
export function setField(field, value) {
  field.value = value;
  field.dispatchEvent(new Event("change", { bubbles: true }));
  field.focus();
}
