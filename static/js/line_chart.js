// Line charts over steps, on Chart.js: the colours of the pages, labels at line ends, dark mode, PNG.
// Data arrives as series {label, points: [[x, y], …], colour, dash, smooth, base}; runs are unknown here.

import { downloadPng } from "./png.js";

/* global Chart */

const root = document.documentElement;
// Okabe and Ito's colours, adapted to the background's contrast.
const LIGHT = ["#0072B2", "#D55E00", "#007a58", "#B0578D", "#1a1a1a"];
const DARK = ["#56B4E9", "#E69F00", "#2fc79a", "#E39AC6", "#f2f2f2"];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const BASE = { light: "#6b7280", dark: "#a3abb8" };
const SMOOTH_FROM = 40;
const charts = new Map();
const labelFont = () => `500 12px ${getComputedStyle(document.body).fontFamily}`;

// Pixels right of the lines for the labels at their ends; a longer label is squeezed.
function labelRoom({ ctx, data, width }) {
  ctx.save();
  ctx.font = labelFont();
  const widths = data.datasets.map((set) => ctx.measureText(set.endLabel).width);
  ctx.restore();
  return Math.min(180, width * 0.24, Math.max(0, ...widths) + 12);
}

const isDark = () => root.dataset.bsTheme === "dark";
const colourOf = (series) =>
  series.base ? BASE[isDark() ? "dark" : "light"] : (isDark() ? DARK : LIGHT)[(series.colour ?? 0) % LIGHT.length];

// A centred mean: unlike a trailing one it does not lag behind the points.
function smoothed(points) {
  const reach = Math.max(1, Math.round(points.length / 40));
  return points.map(([x], place) => {
    const near = points.slice(Math.max(0, place - reach), place + reach + 1).map(([, y]) => y).filter((y) => y !== null);
    return { x, y: near.length ? near.reduce((sum, y) => sum + y, 0) / near.length : null };
  });
}

function datasets(all) {
  return all.flatMap((series) => {
    const colour = colourOf(series);
    const raw = series.points.map(([x, y]) => ({ x, y }));
    const isSmoothed = series.smooth && raw.length >= SMOOTH_FROM;
    const line = {
      label: series.label,
      data: isSmoothed ? smoothed(series.points) : raw,
      borderColor: colour,
      backgroundColor: colour,
      borderDash: series.base ? [4, 4] : DASHES[(series.dash ?? 0) % DASHES.length],
      borderWidth: 2,
      pointRadius: !series.base && raw.length <= 15 ? 3 : 0,
      endLabel: series.label,
      stepped: series.stepped ?? false,
    };
    if (!isSmoothed) return [line];
    return [line, { label: series.label, data: raw, borderColor: `${colour}55`, borderWidth: 1, pointRadius: 0, endLabel: "" }];
  });
}

// Labels stand at the ends of their lines; one that would cover another moves towards the middle.
const LABEL_HEIGHT = 14;

function apart(labels, middle) {
  const placed = [];
  const outermost = (one, other) => Math.abs(other.y - middle) - Math.abs(one.y - middle);
  for (const label of [...labels].sort(outermost)) {
    const inwards = label.y > middle ? -1 : 1;
    // One pixel less than a move, against rounding errors.
    const covered = (other) =>
      label.left <= other.right && other.left <= label.right && Math.abs(label.y - other.y) < LABEL_HEIGHT - 1;
    for (let other = placed.find(covered); other; other = placed.find(covered)) label.y = other.y + inwards * LABEL_HEIGHT;
    placed.push(label);
  }
  return placed;
}

const endLabels = {
  id: "endLabels",
  afterDatasetsDraw(chart) {
    const { ctx, chartArea } = chart;
    const widest = labelRoom(chart) - 6;
    ctx.save();
    ctx.font = labelFont();
    ctx.textBaseline = "middle";
    const labels = chart.data.datasets
      .map((set, place) => ({ set, last: chart.getDatasetMeta(place).data.at(-1) }))
      .filter(({ set, last }) => set.endLabel && last)
      .map(({ set, last }) => ({
        text: set.endLabel,
        colour: set.borderColor,
        left: last.x + 6,
        right: last.x + 6 + Math.min(widest, ctx.measureText(set.endLabel).width),
        y: last.y,
      }));
    for (const label of apart(labels, (chartArea.top + chartArea.bottom) / 2)) {
      ctx.fillStyle = label.colour;
      ctx.fillText(label.text, label.left, label.y, widest);
    }
    ctx.restore();
  },
};

// An axis of days since 1970 shows dates.
const dateOf = (days) => new Date(days * 86400000).toLocaleDateString(root.lang, { month: "short", day: "numeric" });

// The axes of a line that has not moved yet: a week of days, and no share above all.
const DAYS = 7;
const atLeastDays = (scale) => (scale.min = Math.min(scale.min, scale.max - DAYS));

function options(element) {
  const isDates = element.dataset.dates !== undefined;
  const most = Number(element.dataset.most ?? Infinity);
  const ink = getComputedStyle(document.body).getPropertyValue("color");
  const grid = isDark() ? "#ffffff1f" : "#0000001a";
  const axis = (title) => ({ type: "linear", title: { display: true, text: title, color: ink }, grid: { color: grid }, ticks: { color: ink } });
  return {
    animation: false,
    maintainAspectRatio: false,
    normalized: true,
    parsing: false,
    interaction: { mode: "nearest", axis: "x", intersect: false },
    layout: { padding: (context) => ({ right: labelRoom(context.chart) }) },
    plugins: {
      legend: { display: false },
      tooltip: { filter: (item) => Boolean(item.dataset.endLabel), callbacks: { title: (items) => (isDates ? dateOf(items[0]?.parsed.x) : `${element.dataset.x} ${items[0]?.parsed.x ?? ""}`) } },
    },
    scales: {
      x: { ...axis(element.dataset.x), ticks: { color: ink, precision: 0, ...(isDates && { callback: dateOf, maxTicksLimit: 8 }) }, ...(isDates && { afterDataLimits: atLeastDays }) },
      y: { ...axis(element.dataset.y), afterDataLimits: (scale) => (scale.max = Math.min(scale.max, most)) },
    },
  };
}

export function draw(element, series) {
  const drawn = charts.get(element);
  if (drawn) {
    drawn.series = series;
    drawn.chart.data.datasets = datasets(series);
    drawn.chart.update("none");
    return;
  }
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", element.dataset.label);
  element.replaceChildren(canvas);
  const chart = new Chart(canvas, { type: "line", data: { datasets: datasets(series) }, options: options(element), plugins: [endLabels] });
  charts.set(element, { chart, series });
}

function savePng(button) {
  const element = document.getElementById(button.dataset.png);
  const canvas = element?.querySelector("canvas");
  if (!canvas) return;
  downloadPng(button.dataset.filename, canvas.width, canvas.height, (ctx) => ctx.drawImage(canvas, 0, 0));
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-png]");
  if (button) savePng(button);
});
root.addEventListener("graftworks:theme", () => {
  for (const [element, { chart, series }] of charts) {
    chart.options = options(element);
    chart.data.datasets = datasets(series);
    chart.update("none");
  }
});
