// Looks at the server every second while somebody looks at the page.

import { get, key, useKey } from "./api.js";
import * as bank from "./bank.js";
import "./chat.js";
import { byId, write } from "./dom.js";
import * as panels from "./panels.js";

const EVERY = 1000;
/** Looks between two at the bank. */
const BANK_EVERY = 2;

const dialog = byId("key-dialog");
let before = { stats: null, cache: null, at: 0 };
let fixed = null;
let looks = 0;

function state(kind, text) {
  const place = byId("state");
  place.dataset.state = kind;
  write(place, text);
}

function askForKey(reason) {
  if (reason) write(byId("key-reason"), `${reason}. It stays in this tab until the tab is closed.`);
  byId("key").value = key();
  if (!dialog.open) dialog.showModal();
}

async function look() {
  const health = await get("/health");
  if (health.status === "loading") {
    state("wait", `loading: ${Math.round(health.progress * 100)} %`);
    return;
  }
  if (health.status !== "ok") {
    state("bad", health.status);
    return;
  }
  const started = performance.now();
  const [stats, cache] = await Promise.all([get("/v1/stats"), get("/v1/cache/stats")]);
  const elapsed = before.at ? (started - before.at) / 1000 : 0;
  if (!fixed) {
    const [capabilities, models] = await Promise.all([get("/v1/capabilities"), get("/v1/models")]);
    fixed = { capabilities, card: models.data[0] };
    panels.loaded(capabilities, fixed.card, stats);
  }
  panels.decoding(stats, before.stats);
  panels.memory(stats);
  panels.prefix(cache);
  panels.drive(cache, before.cache, elapsed);
  if (looks % BANK_EVERY === 0) bank.show(await get("/v1/bank"));
  looks += 1;
  before = { stats, cache, at: started };
  document.body.dataset.looks = looks;
  const { running, waiting } = stats.requests;
  state("good", running || waiting ? `at work: ${running}, waiting: ${waiting}` : "ready");
}

async function again() {
  let wait = EVERY;
  if (!document.hidden && !dialog.open) {
    try {
      await look();
    } catch (error) {
      if (error.status === 401) {
        state("bad", "needs a key");
        askForKey(error.message);
      } else {
        state("bad", error.status ? error.message : "does not answer");
        wait = 3 * EVERY;
      }
      before = { stats: null, cache: null, at: 0 };
      fixed = null;
    }
  }
  setTimeout(again, wait);
}

byId("key-button").addEventListener("click", () => askForKey());
byId("key-cancel").addEventListener("click", () => dialog.close());
byId("key-form").addEventListener("submit", () => useKey(byId("key").value.trim()));
document.addEventListener("mach-key", (event) => askForKey(event.detail));
void again();
