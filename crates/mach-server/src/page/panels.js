// What the server says of itself, in panels. Rates are those between two looks.

import { bars, byId, bytes, count, el, facts, figure, figures, fill, percent, seconds, write } from "./dom.js";

/** What is loaded: facts that do not change. */
export function loaded(capabilities, card, stats) {
  const model = stats.model ?? {};
  const { arch, serving } = capabilities;
  write(byId("model-name"), card.id);
  document.title = `${card.id} · mach`;
  facts(byId("loaded"), [
    ["model", card.id],
    ["family", model.model_type ?? arch?.model_type],
    ["layers", model.layers],
    ["context", card.max_model_len && `${count(card.max_model_len)} tokens`],
    ["device", model.isa && `CPU, ${model.isa}, ${model.threads} threads`],
    ["activations", model.activations],
    ["keys and values", model.kv_type],
    ["experts", serving.expert_residency === "stacked" ? "all in memory" : `${serving.expert_residency}, ${model.bank_eviction ?? ""}`],
    ["huge pages", model.huge_page_share && percent(Number(model.huge_page_share))],
    ["decode path", serving.effective_decode_path],
    ["because", serving.effective_decode_path_reason],
    ["shared passes", serving.continuous_batching ? "yes" : "no"],
    ["grammars", capabilities.grammar.backend],
  ]);
}

const SPEEDS = [];
const MOST_SPEEDS = 60;

/** Tokens a second between two looks; nothing if nothing was decoded. */
function speed(stats, before) {
  if (!before) return null;
  const tokens = stats.decode_tokens - before.decode_tokens;
  const time = stats.decode_seconds - before.decode_seconds;
  return tokens > 0 && time > 0 ? tokens / time : null;
}

export function decoding(stats, before) {
  const now = speed(stats, before);
  if (before) SPEEDS.push(now ?? 0);
  if (SPEEDS.length > MOST_SPEEDS) SPEEDS.shift();
  const top = Math.max(...SPEEDS, 1);
  const point = (value, i) => `${(120 * (i + MOST_SPEEDS - SPEEDS.length)) / (MOST_SPEEDS - 1)},${27 - (26 * value) / top}`;
  byId("speed").firstElementChild.setAttribute("points", SPEEDS.map(point).join(" "));
  const { requests, last_request: last, guard, adaptive_block_policy: policy } = stats;
  const of = (n, most) => (most === null ? count(n) : `${count(n)} of ${count(most)}`);
  figures(byId("decoding-figures"), [
    ["tokens a second now", now === null ? "idle" : figure(now), now],
    ["since the start", figure(stats.tok_s), stats.tok_s],
    ["last answer", figure(last?.tok_s ?? null), last?.tok_s],
    ["at work", of(requests.running, requests.max_running), requests.running],
    ["in the queue", of(requests.waiting, requests.max_waiting), requests.waiting],
  ]);
  bars(byId("acceptance"), stats.positions.map(([proposed, accepted], i) => ({
    name: `position ${i + 1}`,
    share: proposed ? accepted / proposed : 0,
    text: `${percent(proposed ? accepted / proposed : 0)} of ${count(proposed)}`,
  })));
  byId("acceptance-none").hidden = stats.positions.length > 0;
  const proposer = ([name, { drafted, accepted }]) => `${name}: ${count(accepted)} of ${count(drafted)}`;
  facts(byId("decoding-facts"), [
    ["tokens decoded", count(stats.decode_tokens)],
    ["passes", `${count(stats.cycles)}, ${count(stats.observed_cycles)} of them with a proposal`],
    ["accepted", `${count(stats.specdec_accepted)} of ${count(stats.specdec_drafted)} proposed`],
    ["by proposer", Object.entries(stats.proposers).map(proposer).join("; ")],
    ["policy", policy.name],
    ["guard", `${guard.name}: ${count(guard.held_back)} passes held back`],
    ["waiting for memory", requests.paused ? count(requests.paused) : ""],
    ["answers", count(stats.finished)],
  ]);
}

const PARTS = {
  weights: "weights",
  draft: "draft",
  experts: "experts",
  arena: "arena of reads",
  state: "state of sequences",
  prefixes: "prefix cache",
  saves: "prefixes to save",
  requests: "requests",
  grammars: "grammars",
  connections: "connections",
  unread: "unread answers",
  scratch: "working memory",
  process: "the process itself",
};

export function memory(stats) {
  const { memory: plan } = stats;
  if (!plan) return;
  figures(byId("memory-figures"), [
    ["in memory now", bytes(plan.process_bytes), plan.process_bytes],
    ["budget", bytes(plan.budget_bytes), plan.budget_bytes],
    ["of it", percent(plan.process_bytes === null ? null : plan.process_bytes / plan.budget_bytes), null],
  ]);
  const body = byId("memory-parts").tBodies[0];
  for (const { name, budget_bytes: budget, held_bytes: held } of plan.parts) {
    let row = body.querySelector(`[data-part="${name}"]`);
    if (!row) {
      const bar = el("span", { class: "track", "aria-hidden": "true" }, el("i"));
      row = el("tr", { "data-part": name }, el("th", { scope: "row" }, PARTS[name] ?? name),
        el("td", { class: "n" }), el("td", { class: "n" }, bytes(budget)), el("td", {}, bar));
      body.append(row);
    }
    row.dataset.held = held ?? "";
    row.dataset.budget = budget;
    write(row.children[1], held === null ? "not counted" : bytes(held));
    fill(row.querySelector(".track"), held === null ? 0 : held / budget);
  }
}

export function prefix(cache) {
  const stats = cache.prefix_cache;
  if (!stats) {
    facts(byId("prefix-facts"), [["prefix cache", "off"]]);
    return;
  }
  const { l1, l2 } = stats;
  figures(byId("prefix-figures"), [
    ["prompts known", `${count(stats.hits + stats.partial_hits)} of ${count(stats.lookups)}`, stats.hits + stats.partial_hits],
    ["tokens not computed", count(stats.tokens_saved), stats.tokens_saved],
  ]);
  facts(byId("prefix-facts"), [
    ["whole, in part, new", `${count(stats.hits)}, ${count(stats.partial_hits)}, ${count(stats.misses)}`],
    ["in memory", `${bytes(l1.bytes)} of ${bytes(l1.max_bytes)}, ${count(l1.entries)} prefixes`],
    ["from memory, from disk", `${count(stats.l1_hits)}, ${count(stats.l2_hits)}`],
    ["on disk", l2 ? bytes(l2.bytes) : "off"],
    ["look-up, median", stats.lookup.count ? seconds(stats.lookup.p50_seconds) : ""],
  ]);
}

let lastReads = null;

export function drive(cache, before, elapsed) {
  const stats = cache.streaming_summary;
  if (!stats) {
    facts(byId("drive-facts"), [["drive", "not used: all experts are in memory"]]);
    return;
  }
  const { total, probed_bandwidth: ceiling, achieved_bandwidth: whole } = stats;
  const old = before?.streaming_summary;
  const read = old ? total.bytes_read - old.total.bytes_read : 0;
  const busy = old ? stats.busy_seconds - old.busy_seconds : 0;
  if (read > 0 && busy > 0) lastReads = read / busy;
  const rate = elapsed > 0 ? read / elapsed : 0;
  figures(byId("drive-figures"), [
    ["a second now", bytes(rate), rate],
    ["ceiling a second, as probed", bytes(ceiling), ceiling],
    ["read since the start", bytes(total.bytes_read), total.bytes_read],
  ]);
  const bar = (name, value) => ({ name, share: ceiling ? value / ceiling : 0, text: value === null ? "–" : `${bytes(value)}/s` });
  bars(byId("drive-bars"), [bar("now", rate), bar("last at work", lastReads), bar("at work, mean", whole), bar("ceiling", ceiling)]);
  const { direct_pread: how } = stats;
  facts(byId("drive-facts"), [
    ["how", `${how.mode}${how.active ? ", past the page cache" : ""}, ${count(how.read_kib)} KiB a read, at most ${count(how.depth)} at once`],
    ["reads", `${count(total.reads)}, ${count(total.read_failures)} failed`],
    ["of a read", `median ${figure(total.read_latency_p50_ms)} ms, one in a hundred over ${figure(total.read_latency_p99_ms)} ms`],
    ["computing waited", seconds(total.stall_seconds)],
  ]);
}
