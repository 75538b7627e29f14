// The bank of experts as a map of layers by experts, and as a table.

import { byId, count, el, percent, write } from "./dom.js";

const map = byId("map");
const measure = byId("measure");
let bank = null;
/** The expert that is told of: layer (its place in the list) and expert. */
let at = null;

const sum = (list) => (list ?? []).reduce((all, n) => all + n, 0);

/** The number that colours an expert. */
function value(layer, expert) {
  if (!layer.hits) return null;
  const of = (list) => list[expert];
  switch (measure.value) {
    case "hits": return of(layer.hits) + of(layer.transient_hits);
    case "misses": return of(layer.misses);
    case "reads": return of(layer.misses) + of(layer.transient_reads);
    default: return of(layer.hits) + of(layer.misses) + of(layer.transient_hits) + of(layer.transient_reads);
  }
}

/** A colour of the page's style, as numbers. */
function colour(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const long = text.length === 4 ? text.replace(/[0-9a-f]/gi, "$&$&") : text;
  return [1, 3, 5].map((i) => Number.parseInt(long.slice(i, i + 2), 16));
}

const mix = (a, b, share) => `rgb(${a.map((n, i) => Math.round(n + (b[i] - n) * share)).join(" ")})`;

function sizes() {
  const rows = bank.layers.length;
  const wide = Math.max(map.parentElement.clientWidth, bank.experts * 3);
  return { rows, wide, cell: wide / bank.experts, high: Math.max(8, Math.min(20, 420 / rows)) };
}

function draw() {
  if (!bank?.layers.length || !bank.experts) return;
  const { rows, wide, cell, high } = sizes();
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(wide * scale), Math.round(rows * high * scale)];
  map.style.width = `${wide}px`;
  map.style.height = `${rows * high}px`;
  if (map.width !== width) map.width = width;
  if (map.height !== height) map.height = height;
  const paint = map.getContext("2d");
  paint.setTransform(scale, 0, 0, scale, 0, 0);
  paint.clearRect(0, 0, wide, rows * high);
  const [cold, warm, hot] = ["--cold", "--warm", "--hot"].map(colour);
  const [still, here, ground] = ["--fill", "--here", "--bar"].map((name) => mix(colour(name), colour(name), 0));
  const values = bank.layers.map((layer) => Array.from({ length: bank.experts }, (_, expert) => value(layer, expert)));
  const most = Math.log1p(Math.max(1, ...values.map((row) => Math.max(...row))));
  const gap = cell >= 5 ? 1 : 0;
  values.forEach((row, y) => row.forEach((n, x) => {
    const share = n === null ? 0 : Math.log1p(n) / most;
    const tall = bank.layers[y].resident[x] ? high - 1 : Math.round(high / 3);
    paint.fillStyle = ground;
    paint.fillRect(x * cell, y * high, cell - gap, high - 1);
    paint.fillStyle = n === null ? still : share < 0.5 ? mix(cold, warm, share * 2) : mix(warm, hot, share * 2 - 1);
    paint.fillRect(x * cell, (y + 1) * high - 1 - tall, cell - gap, tall);
  }));
  if (at) {
    paint.strokeStyle = here;
    paint.lineWidth = 2;
    paint.strokeRect(at.expert * cell, at.row * high, Math.max(cell - gap, 3), high - 1);
  }
}

/** Tells of one expert in words. */
function tell() {
  if (!at || !bank) return;
  const layer = bank.layers[at.row];
  if (!layer) return;
  const of = (list) => count(list[at.expert]);
  const where = layer.resident[at.expert] ? "in memory" : "on the drive";
  const uses = layer.hits
    ? `: decoding found it ${of(layer.hits)} times and read it ${of(layer.misses)}; prompts found it ${of(layer.transient_hits)} times and read it ${of(layer.transient_reads)}`
    : ", to stay";
  write(byId("cell"), `layer ${layer.layer}, expert ${at.expert}, ${where}${uses}`);
}

function table() {
  const body = byId("bank-table").tBodies[0];
  if (body.rows.length !== bank.layers.length) {
    const row = (layer) => el("tr", {}, el("th", { scope: "row" }, String(layer.layer)),
      ...Array.from({ length: 6 }, () => el("td", { class: "n" })), el("td"));
    body.replaceChildren(...bank.layers.map(row));
  }
  bank.layers.forEach((layer, i) => {
    const [, here, hits, misses, rate, found, read, most] = body.rows[i].children;
    write(here, `${count(sum(layer.resident))} of ${count(bank.experts)}`);
    if (!layer.hits) return [hits, misses, rate, found, read, most].forEach((cell) => write(cell, "–"));
    const [h, m] = [sum(layer.hits), sum(layer.misses)];
    write(hits, count(h));
    write(misses, count(m));
    write(rate, percent(h + m ? h / (h + m) : null));
    write(found, count(sum(layer.transient_hits)));
    write(read, count(sum(layer.transient_reads)));
    const uses = layer.hits.map((n, e) => [n + layer.misses[e] + layer.transient_hits[e] + layer.transient_reads[e], e]);
    const top = uses.filter(([n]) => n > 0).sort((a, b) => b[0] - a[0] || a[1] - b[1]).slice(0, 4);
    write(most, top.map(([, e]) => e).join(", "));
  });
}

/** Takes what the server says of the bank. */
export function show(told) {
  bank = told;
  const there = bank.layers.reduce((all, layer) => all + sum(layer.resident), 0);
  const all = bank.layers.length * bank.experts;
  byId("bank").dataset.resident = there;
  measure.disabled = !bank.streaming;
  const size = `${bank.layers.length} layers of ${count(bank.experts)} experts, ${bank.experts_per_token} of a layer for a token`;
  if (bank.streaming) {
    const [hits, misses] = ["hits", "misses"].map((name) => bank.layers.reduce((n, layer) => n + sum(layer[name]), 0));
    const rate = hits + misses ? `; decoding found ${percent(hits / (hits + misses))} of what it asked for` : "";
    write(byId("bank-summary"), `${size}. ${count(there)} of ${count(all)} are in memory, ${count(bank.slots)} fit (${bank.eviction})${rate}.`);
  } else {
    write(byId("bank-summary"), `${size}. All ${count(all)} are in memory to stay, so nothing is read and nothing counted.`);
  }
  table();
  tell();
  draw();
}

function move(row, expert) {
  if (!bank?.layers.length) return;
  const inside = (n, most) => Math.min(Math.max(n, 0), most - 1);
  at = { row: inside(row, bank.layers.length), expert: inside(expert, bank.experts) };
  tell();
  draw();
}

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

map.addEventListener("keydown", (event) => {
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  if (at) move(at.row + step[0], at.expert + step[1]);
  else move(0, 0);
});
map.addEventListener("focus", () => !at && move(0, 0));
map.addEventListener("pointermove", (event) => {
  if (!bank?.layers.length) return;
  const { cell, high } = sizes();
  const box = map.getBoundingClientRect();
  move(Math.floor((event.clientY - box.top) / high), Math.floor((event.clientX - box.left) / cell));
});
measure.addEventListener("change", draw);
new ResizeObserver(draw).observe(map.parentElement);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
