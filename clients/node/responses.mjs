// Checks a running server with the Responses API of the official `openai` package and of the Vercel AI SDK (`@ai-sdk/openai`,
// whose default model it is): node responses.mjs BASE_URL (ending in /v1).
import assert from "node:assert/strict";
import OpenAI from "openai";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.argv[2];
const client = new OpenAI({ baseURL, apiKey: "any", maxRetries: 0 });
const ask = { model: "demo", temperature: 0, max_output_tokens: 24, input: "Hello" };

const whole = await client.responses.create(ask);
assert.ok(whole.output_text);
let text = "";
const stream = client.responses.stream(ask).on("response.output_text.delta", (event) => (text += event.delta));
assert.equal((await stream.finalResponse()).output_text, whole.output_text);
assert.equal(text, whole.output_text);
console.log("ok   whole and stream:", JSON.stringify(text));
await assert.rejects(client.responses.create({ ...ask, input: [] }), OpenAI.BadRequestError);
await assert.rejects(client.responses.retrieve("resp_none"), OpenAI.NotFoundError);
console.log("ok   errors");

const cities = [];
const settings = {
  model: createOpenAI({ baseURL, apiKey: "any" })("demo"),
  temperature: 0,
  maxOutputTokens: 100,
  maxRetries: 0,
  prompt: "What is the weather in Paris?",
  stopWhen: stepCountIs(3),
  tools: {
    get_weather: tool({
      description: "Get the current weather in a city.",
      inputSchema: z.object({ city: z.string() }),
      execute: async ({ city }) => (cities.push(city), `18 degrees in ${city}`),
    }),
  },
};
// Kept by the server, whose items the next step names by their ids; and not.
for (const store of [true, false]) {
  const providerOptions = { openai: { store, include: ["reasoning.encrypted_content"] } };
  const generated = await generateText({ ...settings, providerOptions });
  assert.equal(generated.steps.length, 2);
  const streamed = streamText({ ...settings, providerOptions, onError: ({ error }) => assert.fail(error) });
  let said = "";
  for await (const piece of streamed.textStream) said += piece;
  assert.ok(generated.text && said.endsWith(generated.text), JSON.stringify([said, generated.text]));
  console.log(`ok   AI SDK, store ${store}:`, JSON.stringify(generated.text));
}
assert.deepEqual(cities, ["Paris", "Paris", "Paris", "Paris"]);
