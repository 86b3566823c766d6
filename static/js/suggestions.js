// Behaviour that the fine-tune form and the study form share: a typed length, and a field that a button sets.

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
