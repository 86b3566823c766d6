// Typing or selecting in one selection method chooses that method.

const form = document.getElementById("choose-layers");

if (form) {
  const choose = (name, value) => {
    form.querySelector(`input[name="${name}"][value="${value}"]`).checked = true;
  };
  form.addEventListener("input", (event) => {
    const way = event.target.closest("[data-how]");
    if (way) choose("how", way.dataset.how);
    if (event.target.name === "range") choose("layers", "range");
  });
  document.getElementById("tree-model")?.addEventListener("change", (event) => event.target.form.submit());
}
