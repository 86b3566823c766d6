// A run's page: draws its curves, follows it live, and renews the parts that the server renders.

import { draw } from "./line_chart.js";
import { fetchJson, fetchText } from "./line.js";
import { follow } from "./live_stream.js";

const POINTS_KEPT = 2000;
const ANNOUNCE_MILLISECONDS = 10000;
const region = document.getElementById("run-progress");
const chart = document.getElementById("loss-chart");
const announcement = document.getElementById("run-announcement");
const curves = { "train/loss": [], "validation/loss": [] };
let state = region.querySelector("[data-state]").dataset.state;
let announced = 0;
let told = "";
let logged = 0;

function show() {
  const [train, validation] = [curves["train/loss"], curves["validation/loss"]];
  if (!train.length && !validation.length) {
    chart.replaceChildren(Object.assign(document.createElement("p"), { className: "chart-empty", textContent: chart.dataset.empty }));
    return;
  }
  const colour = Number(chart.dataset.colour);
  const series = [{ label: chart.dataset.train, points: train, colour, dash: 0, smooth: true }];
  if (validation.length) series.push({ label: chart.dataset.validation, points: validation, colour: colour + 1, dash: 1 });
  // Before the first step the adapter changes nothing, so that loss is the base model's.
  const ends = train.at(-1)?.[0];
  if (validation[0]?.[0] === 0 && ends) {
    series.push({ label: chart.dataset.base, points: [[0, validation[0][1]], [ends, validation[0][1]]], base: true });
  }
  draw(chart, series);
}

function take({ replace, curves: fresh }) {
  for (const [name, points] of Object.entries(fresh ?? {})) {
    curves[name] = replace ? points : [...curves[name], ...points];
  }
  show();
  if (curves["train/loss"].length > POINTS_KEPT) load();
}

async function load() {
  const facts = await fetchJson(region.dataset.metrics);
  if (facts) take({ ...facts, replace: true });
  return facts;
}

// Another state is told at once, how far the same one is only now and then.
function announce() {
  const { work, announcement: sentence } = region.querySelector("[data-announcement]").dataset;
  if (work === told && Date.now() - announced < ANNOUNCE_MILLISECONDS) return;
  told = work;
  announced = Date.now();
  if (announcement.textContent !== sentence) announcement.textContent = sentence;
}

// Renews the progress; returns true once the page shows what the server says.
async function renewProgress() {
  const text = await fetchText(region.dataset.url);
  if (text === null) return false;
  const open = region.querySelector("details.events")?.open;
  region.replaceChildren(...new DOMParser().parseFromString(text, "text/html").body.childNodes);
  if (open) region.querySelector("details.events").open = true;
  announce();
  const now = region.querySelector("[data-state]").dataset.state;
  if (document.getElementById("run-log").open && Date.now() - logged > 4000) renewLog();
  if (now !== state && (await renewPage())) state = now;
  return now === state;
}

// The other parts change only with the state; an open dialog or table is left as it is.
async function renewPage() {
  const text = await fetchText(location.href);
  if (text === null) return false;
  const page = new DOMParser().parseFromString(text, "text/html");
  for (const part of document.querySelectorAll("[data-refresh]")) {
    const fresh = page.getElementById(part.id);
    if (!fresh || part.contains(document.activeElement)) continue;
    part.replaceChildren(...fresh.childNodes);
    window.htmx?.process(part);
  }
  return true;
}

async function renewLog() {
  logged = Date.now();
  const text = await fetchText(region.dataset.log);
  if (text !== null) document.querySelector("[data-log-text]").textContent = text;
}

document.getElementById("run-log").addEventListener("toggle", (event) => event.target.open && renewLog());

const facts = await load();
// A run that ended since the page was rendered is over for the server, but not on the page.
if (region.dataset.settled === "no") {
  follow({
    streamUrl: region.dataset.stream,
    pollUrl: region.dataset.metrics,
    cursor: facts?.cursor ?? "",
    onPoints: take,
    onProgress: renewProgress,
    onEnd: async () => (await renewProgress()) && renewPage(),
  });
}
