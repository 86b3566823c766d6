// The upload page: drop zone, name from the file, checks before the upload, and a progress bar.
// The form also works without this script.

const region = document.getElementById("upload-region");
let typed = false;

const size = (bytes) =>
  bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`;

const nameFrom = (filename) =>
  filename
    .replace(/\.gz$/i, "")
    .replace(/\.(jsonl|ndjson|json|csv|tsv|parquet)$/i, "")
    .replace(/[\s_]+/g, " ")
    .trim()
    .slice(0, 120);

function parts() {
  const form = document.getElementById("upload");
  return {
    form,
    file: form.elements.file,
    name: form.elements.name,
    zone: form.querySelector("[data-drop-zone]"),
    progress: form.querySelector("[data-progress]"),
    text: form.querySelector("[data-progress-text]"),
    bar: form.querySelector("progress"),
    problem: form.querySelector("[data-problem]"),
    send: form.querySelector("[data-send]"),
  };
}

function refusal({ form, file }) {
  const chosen = file.files[0];
  if (!chosen) return "";
  if (chosen.size === 0) return form.dataset.empty;
  return chosen.size > Number(form.dataset.limit) ? form.dataset.tooLarge : "";
}

function chosen() {
  const page = parts();
  if (page.file.files[0] && !typed) page.name.value = nameFrom(page.file.files[0].name);
  page.problem.textContent = refusal(page);
}

function busy(page, on) {
  page.progress.hidden = !on;
  page.send.disabled = on;
}

function failed(page, text) {
  busy(page, false);
  delete page.form.dataset.sent;
  page.problem.textContent = text;
}

// Shows the messages of a refused form and keeps the chosen file.
function showRefusal(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html").getElementById("upload-region");
  if (!fresh) return false;
  const before = document.getElementById("id_file");
  const after = fresh.querySelector("#id_file");
  for (const name of ["class", "aria-invalid", "aria-describedby"]) {
    if (after.hasAttribute(name)) before.setAttribute(name, after.getAttribute(name));
    else before.removeAttribute(name);
  }
  after.replaceWith(before);
  region.replaceChildren(...fresh.childNodes);
  connect();
  region.querySelector("[data-focus]")?.focus();
  return true;
}

function send(event) {
  const page = parts();
  event.preventDefault();
  const reason = refusal(page);
  if (reason) {
    failed(page, reason);
    return;
  }
  page.problem.textContent = "";
  const request = new XMLHttpRequest();
  request.open("POST", page.form.action);
  request.upload.addEventListener("progress", (moment) => {
    const share = moment.total ? moment.loaded / moment.total : 0;
    page.bar.value = 100 * share;
    page.text.textContent =
      share < 1
        ? page.text.dataset.sending.replace("{done}", size(moment.loaded)).replace("{total}", size(moment.total))
        : page.text.dataset.saving;
  });
  request.addEventListener("load", () => {
    if (new URL(request.responseURL || location.href).pathname === page.form.dataset.signIn) failed(page, page.form.dataset.expired);
    else if (request.status < 300) location.assign(request.responseURL);
    else if (request.status === 413) failed(page, page.form.dataset.tooLarge);
    else if (request.status !== 422 || !showRefusal(request.responseText)) failed(page, page.form.dataset.refused);
  });
  request.addEventListener("error", () => failed(page, page.form.dataset.unreachable));
  request.addEventListener("abort", () => failed(page, page.form.dataset.stopped));
  page.form.querySelector("[data-stop]").onclick = () => request.abort();
  busy(page, true);
  request.send(new FormData(page.form));
}

function connect() {
  const { form, file, name, zone } = parts();
  form.addEventListener("submit", send);
  file.addEventListener("change", chosen);
  name.addEventListener("input", () => (typed = name.value !== ""));
  for (const kind of ["dragenter", "dragover"]) {
    zone.addEventListener(kind, (event) => {
      event.preventDefault();
      zone.classList.add("is-over");
    });
  }
  zone.addEventListener("dragleave", (event) => {
    if (!zone.contains(event.relatedTarget)) zone.classList.remove("is-over");
  });
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    zone.classList.remove("is-over");
    if (!event.dataTransfer.files.length) return;
    file.files = event.dataTransfer.files;
    chosen();
  });
}

typed = parts().name.value !== "";
connect();
