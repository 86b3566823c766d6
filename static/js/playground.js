// The playground: sends a prompt to all columns at once and shows their answers while they are written.

import { readLines } from "./answer_lines.js";

const form = document.getElementById("playground");
const choices = document.getElementById("playground-models");
const KEPT = ["prompt", "system", "temperature", "max_tokens", "seed", "wait"].filter((name) => form?.elements[name]);
const STORE = "graftworks-playground";

class Column {
  constructor(section, words) {
    this.words = words;
    this.answer = section.querySelector("[data-answer]");
    this.note = section.querySelector("[data-note]");
    this.facts = section.querySelector("dl"); // null in a blind column
    this.name = section.querySelector("[data-name]");
    this.parts = Object.fromEntries(["first", "speed", "tokens"].map((name) => [name, section.querySelector(`[data-${name}]`)]));
  }

  begin() {
    this.answer.textContent = "";
    if (this.facts) this.facts.hidden = true;
    if (this.name) this.name.replaceChildren();
    this.over = false;
    this.say("");
  }

  say(text, isError = false) {
    this.note.textContent = text;
    this.note.classList.toggle("text-danger", isError);
  }

  take(event) {
    if (event.error) return this.end(event.text, true);
    if (event.text) {
      this.answer.append(event.text);
      this.answer.scrollTop = this.answer.scrollHeight;
      this.say("");
    }
    if (!event.end) return;
    if (this.facts) this.measure(event);
    if (!this.answer.textContent) this.answer.textContent = this.words.empty;
    this.end(event.end === "length" ? this.words.length : "");
  }

  measure(event) {
    this.facts.hidden = false;
    this.parts.first.textContent = `${event.first_ms.toLocaleString()} ms`;
    this.parts.speed.textContent = event.tokens_per_second?.toLocaleString() ?? "–";
    this.parts.tokens.textContent = event.tokens.toLocaleString();
  }

  // Shows the name of the model after the vote.
  reveal({ label, url }) {
    const shown = url ? Object.assign(document.createElement("a"), { href: url }) : document.createElement("span");
    shown.textContent = label;
    this.name.replaceChildren(": ", shown);
  }

  end(text, isError = false) {
    this.over = true;
    this.say(text, isError);
  }
}

function keep() {
  const values = Object.fromEntries(KEPT.map((name) => [name, form.elements[name].value]));
  try {
    sessionStorage.setItem(STORE, JSON.stringify(values));
  } catch {
    // Without storage a prompt is lost when other models are chosen.
  }
}

function restore() {
  try {
    const values = JSON.parse(sessionStorage.getItem(STORE)) ?? {};
    for (const name of KEPT) if (name in values) form.elements[name].value = values[name];
  } catch {
    // The form keeps its own values.
  }
}

// The vote on two blind answers: offered when both have ended, final once it is stored.
class Vote {
  constructor(columns, words) {
    this.columns = columns;
    this.words = words;
    this.section = document.getElementById("playground-vote");
    this.state = document.getElementById("vote-state");
    this.buttons = [...this.section.querySelectorAll("[data-choice]")];
    for (const button of this.buttons) button.addEventListener("click", () => this.cast(button));
  }

  hide() {
    this.section.hidden = true;
  }

  offer(comparison) {
    this.comparison = comparison;
    this.section.hidden = false;
    this.state.textContent = "";
    for (const button of this.buttons) {
      button.disabled = false;
      button.classList.remove("active");
    }
  }

  async cast(chosen) {
    for (const button of this.buttons) button.disabled = true;
    const body = new FormData();
    body.set("csrfmiddlewaretoken", form.elements.csrfmiddlewaretoken.value);
    body.set("comparison", this.comparison);
    body.set("vote", chosen.dataset.choice);
    try {
      const response = await fetch(this.words.vote, { method: "POST", body, redirect: "manual" });
      if (!response.ok) throw new Error("refused");
      const { columns } = await response.json();
      columns.forEach((column, place) => this.columns[place].reveal(column));
      chosen.classList.add("active");
      this.state.textContent = `${this.words.voted} ${chosen.textContent}.`;
    } catch {
      this.state.textContent = this.words.failedVote;
    }
  }
}

function follow() {
  const words = form.dataset;
  const send = form.querySelector("[type=submit]");
  const stop = document.getElementById("playground-stop");
  const state = document.getElementById("playground-state");
  const columns = [...document.querySelectorAll("[data-column]")].map((section) => new Column(section, words));
  const vote = document.getElementById("playground-vote") ? new Vote(columns, words) : null;
  let controller = null;

  const show = (text, isError = false) => {
    // A state that is repeated is not read out again.
    if (state.textContent !== text) state.textContent = text;
    state.classList.toggle("text-danger", isError);
  };

  // An event of one column, or of all of them.
  const take = (event) => {
    if (event.column !== undefined) return columns[event.column].take(event);
    if (event.error) return fail(event.text);
    if (event.comparison) return vote.offer(event.comparison);
    show(event.state === "ready" ? "" : event.text);
    if (event.state === "ready") for (const column of columns) column.say(words.waiting);
  };

  const fail = (text) => {
    show(text, true);
    for (const column of columns) if (!column.over) column.end("");
  };

  async function ask() {
    controller = new AbortController();
    const response = await fetch(form.action, {
      method: "POST",
      body: new FormData(form),
      redirect: "manual",
      signal: controller.signal,
    });
    if (response.type === "opaqueredirect") return fail(words.expired);
    if (response.status === 422 || response.status === 429) return fail((await response.json()).text);
    if (!response.ok) return fail(words.offline);
    await readLines(response, take);
    if (columns.some((column) => !column.over)) fail(words.broken);
  }

  form.addEventListener("submit", async (event) => {
    keep();
    // Another button sends the same settings elsewhere.
    if (event.submitter?.hasAttribute("formaction")) return;
    event.preventDefault();
    show("");
    for (const column of columns) column.begin();
    vote?.hide();
    send.disabled = true;
    stop.hidden = false;
    try {
      await ask();
    } catch (error) {
      if (error.name === "AbortError") for (const column of columns) column.over || column.end(words.stopped);
      else fail(words.broken);
      if (error.name === "AbortError") show("");
    }
    stop.hidden = true;
    send.disabled = false;
  });
  stop.addEventListener("click", () => controller?.abort());
  // Ctrl+Enter sends, as in other chats.
  form.elements.prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !send.disabled) form.requestSubmit();
  });
}

function offerRows() {
  const rows = document.getElementById("example-row");
  const expected = document.getElementById("expected");
  rows?.addEventListener("change", () => {
    const row = rows.selectedOptions[0];
    expected.hidden = !row.dataset.expected;
    document.getElementById("expected-text").textContent = row.dataset.expected ?? "";
    if (row.value) form.elements.prompt.value = row.value;
    if (row.dataset.system !== undefined) form.elements.system.value = row.dataset.system;
  });
}

// Saves the prompt without leaving the page, so that answers stay on it.
function offerSaving() {
  const button = document.getElementById("prompt-save");
  const state = document.getElementById("prompt-saved");
  const show = (text, url) => {
    const link = url ? Object.assign(document.createElement("a"), { href: url }) : document.createElement("span");
    link.textContent = text;
    state.replaceChildren(link);
  };
  button?.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const response = await fetch(button.dataset.url, { method: "POST", body: new FormData(form), redirect: "manual" });
      if (response.type === "opaqueredirect") show(form.dataset.expired);
      else if (!response.ok && response.status !== 422) show(form.dataset.offline);
      else {
        const { text, url } = await response.json();
        show(text, url);
      }
    } catch {
      show(form.dataset.offline);
    }
    button.disabled = false;
  });
}

if (form) {
  restore();
  follow();
  offerRows();
  offerSaving();
  choices?.addEventListener("change", () => {
    keep();
    choices.requestSubmit();
  });
  // The model loads while the user types.
  if (form.dataset.start) fetch(form.dataset.start, { method: "POST", body: new FormData(form), redirect: "manual" }).catch(() => {});
}
