// Checks a running server with the official `openai` package. Usage: node check.mjs BASE_URL (ending in /v1).
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });

const models = (await client.models.list()).data;
const model = models[0].id;
assert.equal((await client.models.retrieve(model)).id, model);
console.log("ok   models:", models.map((m) => m.id));

const ask = { model, messages: [{ role: "user", content: "Hello" }], max_tokens: 24, temperature: 0 };

const whole = await client.chat.completions.create(ask);
const text = whole.choices[0].message.content;
assert(text && ["stop", "length"].includes(whole.choices[0].finish_reason));
console.log("ok   whole:", JSON.stringify(text));

let streamed = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({
  ...ask,
  stream: true,
  stream_options: { include_usage: true },
})) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
for (const count of ["prompt_tokens", "completion_tokens", "total_tokens"]) {
  assert.equal(usage[count], whole.usage[count]);
}
console.log("ok   stream");

const aborted = await client.chat.completions.create({ ...ask, max_tokens: 4000, stream: true });
for await (const _ of aborted) break;
console.log("ok   leaving early");

await assert.rejects(client.chat.completions.create({ ...ask, temperature: -1 }), (e) => {
  assert.equal(e.status, 400);
  assert.equal(e.param, "temperature");
  return true;
});
await assert.rejects(client.chat.completions.create({ ...ask, model: "no-such-model" }), { status: 404 });
console.log("ok   errors");
