// A prompt set's page: gets missing answers, and shows them when all are stored.

import { readLines } from "./answer_lines.js";

const form = document.getElementById("prompt-set");
const choices = document.getElementById("playground-models");

function follow() {
  const state = document.getElementById("prompt-set-state");
  const button = form.querySelector("[type=submit]");
  const show = (text, isError = false) => {
    state.textContent = text;
    state.classList.toggle("text-danger", isError);
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    let failure = "";
    try {
      const response = await fetch(form.action, { method: "POST", body: new FormData(form), redirect: "manual" });
      if (response.status === 422) failure = (await response.json()).text;
      else if (!response.ok) failure = form.dataset.broken;
      else
        await readLines(response, (line) => {
          failure ||= line.failure ?? (line.error ? line.text : "");
          if (line.of) show(`${form.dataset.progress} ${line.answered} / ${line.of}`);
          else if (line.state) show(line.state === "ready" ? "" : line.text);
        });
    } catch {
      failure = form.dataset.broken;
    }
    if (!failure) return location.reload();
    show(failure, true);
    button.disabled = false;
  });
}

if (form) follow();
choices?.addEventListener("change", () => choices.requestSubmit());
