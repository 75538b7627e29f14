// Checks a running server with the official `@anthropic-ai/sdk` package: node messages.mjs URL (without /v1).
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0 });
const ask = { model: "demo", max_tokens: 24, temperature: 0, messages: [{ role: "user", content: "Hello" }] };

const whole = await client.messages.create(ask);
assert.ok(whole.content[0].text);
console.log("ok   whole:", JSON.stringify(whole.content[0].text));

let text = "";
const stream = client.messages.stream(ask).on("text", (piece) => (text += piece));
const last = await stream.finalMessage();
assert.equal(text, whole.content[0].text);
assert.deepEqual([last.stop_reason, last.usage.output_tokens], [whole.stop_reason, whole.usage.output_tokens]);
console.log("ok   stream");

const tools = [{ name: "get_weather", input_schema: { type: "object", properties: { city: { type: "string" } }, required: ["city"] } }];
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const called = await client.messages
  .stream({ ...ask, tools, messages, max_tokens: 100, tool_choice: { type: "any" } })
  .finalMessage();
assert.equal(called.stop_reason, "tool_use");
assert.equal(typeof called.content.at(-1).input.city, "string");
console.log("ok   a call:", JSON.stringify(called.content.at(-1).input));

await assert.rejects(client.messages.create({ ...ask, messages: [] }), Anthropic.BadRequestError);
console.log("ok   errors");
