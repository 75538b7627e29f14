// Drives the page of running servers in a headless Chromium.
// Usage: node check.mjs URL_OF_A_STREAMING_SERVER_THAT_DRAFTS URL_OF_A_RESIDENT_SERVER_WITH_A_KEY KEY [DIRECTORY_FOR_SCREENSHOTS]
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { launch } from "./browser.mjs";

const [open, locked, secret, shots] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core"), "utf8");
const browser = await launch();

/** A tab that remembers what must not happen. */
async function visit(url, { scheme = "light", width = 1500, height = 1000 } = {}) {
  const page = await (await browser.createBrowserContext()).newPage();
  const problems = [];
  page.on("console", (said) => ["error", "warn"].includes(said.type()) && problems.push(said.text()));
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) problems.push(`asks ${request.url()}`);
  });
  page.on("requestfailed", (request) => {
    const why = request.failure()?.errorText;
    if (why !== "net::ERR_ABORTED") problems.push(`${request.url()}: ${why}`);
  });
  await page.evaluateOnNewDocument(() => {
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (e) => window.violations.push(`${e.violatedDirective} ${e.blockedURI}`));
  });
  await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: scheme }]);
  await page.setViewport({ width, height });
  await page.goto(url);
  return { page, problems };
}

const settled = (page, n = 1) => page.waitForFunction((most) => Number(document.body.dataset.looks ?? 0) >= most, { timeout: 15000 }, n);
const shot = (page, name) => shots && page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
const text = (page, selector) => page.$eval(selector, (element) => element.textContent);
const api = async (url, path, body, headers = {}) => {
  const method = body ? { method: "POST", body: JSON.stringify(body) } : {};
  const response = await fetch(url + path, { ...method, headers: { "Content-Type": "application/json", ...headers } });
  return response.json();
};

/** Types a message and waits until its answer ended. */
async function say(page, message) {
  const before = (await page.$$(".turn.assistant")).length;
  await page.type("#message", message);
  await page.keyboard.press("Enter");
  await page.waitForFunction((n) => document.querySelectorAll(".turn.assistant[data-finish]").length > n, { timeout: 30000, polling: 20 }, before);
  return page.$$eval(".turn.assistant", (turns) => {
    const turn = turns.at(-1);
    const part = (selector) => turn.querySelector(selector)?.textContent ?? "";
    const drafted = [...turn.querySelectorAll(".drafted")].map((span) => span.textContent);
    return { content: part("[data-part=content]"), foot: part(".foot"), finish: turn.dataset.finish, drafted, error: part(".error"), calls: part(".call") };
  });
}

async function accessible(page, what) {
  await page.evaluate(axe);
  const found = await page.evaluate(() => axe.run(document, { resultTypes: ["violations"] }));
  const told = found.violations.map((v) => `${v.id}: ${v.help}: ${v.nodes.map((n) => n.target).join(", ")}`);
  assert.deepEqual(told, [], `axe, ${what}`);
  const bare = await page.$$eval("input, textarea, select", (fields) => fields.filter((f) => !f.labels.length).map((f) => f.id));
  assert.deepEqual(bare, [], "fields without a label");
}

async function clean({ page, problems }, what) {
  assert.deepEqual(problems, [], what);
  assert.deepEqual(await page.evaluate(() => window.violations), [], `${what}: violations of the policy`);
}

// A server that streams and drafts.
const tab = await visit(open);
const { page } = tab;
await settled(page);
assert.equal(await text(page, "#state"), "ready");
assert.equal(await text(page, "#model-name"), (await api(open, "/v1/models")).data[0].id);
console.log("ok   the page loads");

await page.$eval("#temperature", (field) => { field.value = "0"; });
await page.$eval("#max-tokens", (field) => { field.value = "60"; });
const question = "Write a binary search in Python";
const told = await say(page, question);
const asked = { messages: [{ role: "user", content: question }], temperature: 0, max_tokens: 60 };
const wanted = (await api(open, "/v1/chat/completions", asked)).choices[0];
assert.equal(told.content, wanted.message.content);
assert.equal(told.finish, wanted.finish_reason);
assert(told.drafted.length > 0 && told.content.includes(told.drafted[0]), "drafted tokens are marked");
const sourced = await api(open, "/v1/chat/completions", { ...asked, logprobs: true, mach_token_sources: true });
assert.equal(sourced.choices[0].message.content, told.content);
const [, drafted, shown] = told.foot.match(/(\d+) of (\d+) shown tokens drafted/).map(Number);
assert(drafted > 0 && drafted < shown && shown === sourced.choices[0].logprobs.content.length, told.foot);
console.log("ok   a streamed answer is that of the API:", told.foot);

// The sampled kind, a second turn, and a call of a tool.
const tools = [{ type: "function", function: { name: "get_weather", description: "Get the current weather for a city.",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] } } }];
assert.equal((await say(page, "Thanks. And the sea?")).error, "");
await page.click("#clear");
await page.$eval("#tools", (field, value) => { field.value = value; }, JSON.stringify(tools, null, 1));
await page.$eval("#max-tokens", (field) => { field.value = "200"; });
const weather = "What's the weather in Vienna?";
const call = await say(page, weather);
const apiCall = (await api(open, "/v1/chat/completions", { ...asked, max_tokens: 200, tools, messages: [{ role: "user", content: weather }] })).choices[0];
assert.equal(call.finish, apiCall.finish_reason);
if (apiCall.finish_reason === "tool_calls") {
  assert(call.calls.includes(apiCall.message.tool_calls[0].function.arguments), call.calls);
  await page.type(".results textarea", '{"temperature": 17}');
  await page.click(".results button");
  await page.waitForFunction(() => document.querySelectorAll(".turn.assistant[data-finish]").length === 2, { timeout: 30000 });
}
console.log("ok   tools:", call.finish, call.calls);

// Figures are those of the API once nothing happens.
const now = Number(await page.evaluate(() => document.body.dataset.looks));
await settled(page, now + 3);
const [stats, cache, bank] = [await api(open, "/v1/stats"), await api(open, "/v1/cache/stats"), await api(open, "/v1/bank")];
const value = (figure) => page.$eval(`[data-figure="${figure}"]`, (element) => Number(element.dataset.value));
assert.equal(await value("since the start"), stats.tok_s);
assert.equal(await value("last answer"), stats.last_request.tok_s);
assert.equal(await value("budget"), stats.memory.budget_bytes);
assert.equal(await value("tokens not computed"), cache.prefix_cache.tokens_saved);
assert.equal(await value("read since the start"), cache.streaming_summary.total.bytes_read);
assert.equal(await value("ceiling a second, as probed"), cache.streaming_summary.probed_bandwidth);
const parts = await page.$$eval("[data-part][data-budget]", (rows) => rows.map((row) => [row.dataset.part, Number(row.dataset.budget)]));
assert.deepEqual(parts, stats.memory.parts.map((part) => [part.name, part.budget_bytes]));
const held = await page.$eval('[data-part="experts"]', (row) => Number(row.dataset.held));
assert.equal(held, cache.streaming_summary.total.resident_slots * cache.streaming_summary.slot_bytes);
assert.equal((await page.$$("#acceptance .bar")).length, stats.positions.length);
const sum = (list) => list.reduce((all, n) => all + n, 0);
const resident = sum(bank.layers.map((layer) => sum(layer.resident)));
assert.equal(Number(await page.$eval("#bank", (panel) => panel.dataset.resident)), resident);
assert.equal(resident, cache.streaming_summary.total.resident_slots);
const rows = await page.$$eval("#bank-table tbody tr", (all) => all.map((row) => Number(row.children[2].textContent.replaceAll(",", ""))));
assert.deepEqual(rows, bank.layers.map((layer) => sum(layer.hits)));
console.log("ok   figures:", parts.length, "parts of memory,", resident, "experts in memory");

// The map: something is painted, arrow keys move over it, the words follow.
const colours = await page.$eval("#map", (map) => {
  const { data } = map.getContext("2d").getImageData(0, 0, map.width, map.height);
  return new Set(new Uint32Array(data.buffer)).size;
});
assert(colours > 3, `the map has ${colours} colours`);
await page.focus("#map");
await page.keyboard.press("ArrowDown");
await page.keyboard.press("ArrowRight");
const cell = await text(page, "#cell");
assert(cell.startsWith(`layer ${bank.layers[1].layer}, expert 1,`), cell);
console.log("ok   the map:", cell);

// By keyboard alone: every control is reached in turn.
await page.$$eval("details", (all) => all.forEach((one) => { one.open = true; }));
const controls = await page.$$eval("button, input, textarea, select, summary, canvas, a", (all) =>
  all.filter((element) => !element.disabled && element.checkVisibility()).map((element) => element.id || element.textContent));
await page.evaluate(() => { document.activeElement.blur(); window.scrollTo(0, 0); });
await page.focus(".skip");
const reached = new Set();
for (let i = 0; i < controls.length + 20; i += 1) {
  reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.textContent));
  await page.keyboard.press("Tab");
}
assert.deepEqual(controls.filter((control) => !reached.has(control)), [], "controls that Tab does not reach");
await accessible(page, "light");
await page.$$eval("details", (all) => all.forEach((one) => { one.open = false; }));
await shot(page, "light");
console.log("ok   keyboard and names of controls:", controls.length, "controls");

// Stopping ends the answer and leaves the page usable.
await page.click("#clear");
await page.$eval("#tools", (field) => { field.value = ""; });
await page.$eval("#max-tokens", (field) => { field.value = "4000"; });
await page.type("#message", "Tell a long story about the sea and the moon.");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelector(".turn.assistant .said")?.textContent.length > 20, { polling: 10 });
await page.click("#stop");
await page.waitForFunction(() => document.querySelector(".turn.assistant[data-finish]"));
await page.$eval("#tools", (field) => { field.value = "[{"; });
await page.type("#message", "x");
await page.keyboard.press("Enter");
assert((await text(page, "#tools-error")).startsWith("The tools are no JSON"));
console.log("ok   stopping, and tools that are no JSON");
await clean(tab, "a server that streams");

// Markup in a question stays text.
await page.$eval("#tools", (field) => { field.value = ""; });
await page.$eval("#max-tokens", (field) => { field.value = "4"; });
await page.$eval("#message", (field) => { field.value = ""; });
await say(page, "<img src=x onerror=alert(1)><b>bold</b>");
assert.equal((await page.$$("#log img, #log b")).length, 0);
await clean(tab, "markup");
await page.close();

// A server that wants a key, all experts in memory, in the dark and on a narrow screen.
const guarded = await visit(locked, { scheme: "dark" });
const dark = guarded.page;
await dark.waitForSelector("#key-dialog[open]");
await accessible(dark, "dialog");
await dark.type("#key", "wrong");
await dark.keyboard.press("Enter");
await dark.waitForFunction(() => document.querySelector("#key-reason").textContent.includes("wrong"));
await dark.$eval("#key", (field) => { field.value = ""; });
await dark.type("#key", secret);
await dark.keyboard.press("Enter");
await settled(dark);
const stored = await dark.evaluate(() => [JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]);
assert(stored[0].includes(secret) && stored[1] === "{}" && stored[2] === "", String(stored));
await dark.$eval("#temperature", (field) => { field.value = "0"; });
await dark.$eval("#sources", (box) => { box.checked = false; });
const reply = await say(dark, "Hello");
const key = { Authorization: `Bearer ${secret}` };
const same = await api(locked, "/v1/chat/completions", { messages: [{ role: "user", content: "Hello" }], temperature: 0, max_tokens: 512 }, key);
assert.equal(reply.content, same.choices[0].message.content);
assert((await text(dark, "#bank-summary")).includes("in memory to stay"));
await accessible(dark, "dark");
await shot(dark, "dark");
await dark.setViewport({ width: 390, height: 800 });
const overflow = await dark.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
assert(overflow <= 0, `a narrow screen scrolls sideways by ${overflow}`);
await shot(dark, "narrow");
// The browser itself tells of answers with 401.
guarded.problems = guarded.problems.filter((problem) => !problem.includes("401"));
await clean(guarded, "a server with a key");
console.log("ok   a key, dark, narrow");
await browser.close();
