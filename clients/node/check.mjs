// Checks a running server with the official `openai` package. Usage: node check.mjs BASE_URL [BASE_URL_OF_A_SERVER_WITH_ONE_SLOT_AND_A_QUEUE_OF_ONE] (both ending in /v1).
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

const weather = {
  type: "function",
  function: {
    name: "get_weather",
    description: "Get the current weather for a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const question = [{ role: "user", content: "What's the weather in Vienna?" }];
const call = { model, messages: question, tools: [weather], temperature: 0, max_tokens: 200 };
const first = await client.chat.completions.create({ ...call, tool_choice: "required" });
assert.equal(first.choices[0].finish_reason, "tool_calls");
const asked = first.choices[0].message.tool_calls[0];
assert.equal(typeof JSON.parse(asked.function.arguments).city, "string");
const runner = client.chat.completions.stream({ ...call, tool_choice: "required" });
const again = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0];
assert.deepEqual([again.function.name, again.function.arguments], [asked.function.name, asked.function.arguments]);
const told = await client.chat.completions.create({
  ...call,
  messages: [...question, first.choices[0].message, { role: "tool", tool_call_id: asked.id, content: '{"temperature": 17}' }],
});
assert(told.choices[0].message.content);
console.log("ok   tools:", asked.function.arguments);

const person = await client.chat.completions.parse({
  model,
  messages: [{ role: "user", content: "Give me a person as JSON." }],
  temperature: 0,
  max_tokens: 400,
  response_format: {
    type: "json_schema",
    json_schema: {
      name: "person",
      strict: true,
      schema: {
        type: "object",
        properties: { name: { type: "string", maxLength: 20 }, age: { type: "integer" } },
        required: ["name", "age"],
        additionalProperties: false,
      },
    },
  },
});
assert(Number.isInteger(JSON.parse(person.choices[0].message.content).age));
console.log("ok   structured output:", person.choices[0].message.content);

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

const prompt = { model, prompt: "def binary_search(items, target):\n", max_tokens: 12, temperature: 0 };
const plain = (await client.completions.create(prompt)).choices[0].text;
let pieces = "";
for await (const chunk of await client.completions.create({ ...prompt, stream: true })) pieces += chunk.choices[0]?.text ?? "";
assert.equal(pieces, plain);
console.log("ok   completions");

const vectors = (await client.embeddings.create({ model, input: ["A dog runs.", "A puppy runs."] })).data;
assert.deepEqual(vectors.map((vector) => vector.index), [0, 1]);
assert(Math.abs(vectors[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-5);
console.log("ok   embeddings:", vectors[0].embedding.length, "values");

const story = { ...ask, max_tokens: 5000, ignore_eos: true };
await assert.rejects(client.chat.completions.create(story, { timeout: 50 }), OpenAI.APIConnectionTimeoutError);
console.log("ok   timeout");

if (process.argv[3]) {
  // A server whose queue is full answers 429 with Retry-After, which the client waits for and tries again.
  const narrow = new OpenAI({ baseURL: process.argv[3], apiKey: "any", maxRetries: 0 });
  const busy = await narrow.chat.completions.create({ ...story, stream: true });
  const events = busy[Symbol.asyncIterator]();
  await events.next();
  const short = { ...ask, max_tokens: 2 };
  const waiting = narrow.chat.completions.create(short);
  const health = process.argv[3].replace(/\/v1$/, "/health");
  while ((await (await fetch(health)).json()).queued === 0) await new Promise((resolve) => setTimeout(resolve, 10));
  await assert.rejects(narrow.chat.completions.create(short), (e) => {
    assert.equal(e.code, "queue_full");
    assert(Number(e.headers.get("retry-after")) > 0);
    return true;
  });
  const retried = narrow.chat.completions.create(short, { maxRetries: 20 });
  await new Promise((resolve) => setTimeout(resolve, 500));
  busy.controller.abort();
  assert((await waiting).choices.length && (await retried).choices.length);
  console.log("ok   429, Retry-After, retries");
}
