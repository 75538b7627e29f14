"""Checks a running server with the official `openai` package.

Usage: check.py BASE_URL [BASE_URL_OF_A_SERVER_WITH_ONE_SLOT_AND_A_QUEUE_OF_ONE] (both ending in /v1).
"""

import concurrent.futures
import datetime
import json
import sys
import time
import urllib.request
import uuid
from typing import Literal

import openai
import pydantic

client = openai.OpenAI(base_url=sys.argv[1], api_key="any", max_retries=0)

models = client.models.list().data
model = models[0].id
assert client.models.retrieve(model).id == model
# What the package does not know it keeps.
assert models[0].model_extra["context_window"] == models[0].model_extra["max_model_len"] > 0
print("ok   models:", [m.id for m in models])

ask = dict(model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=24, temperature=0)

whole = client.chat.completions.create(**ask)
text = whole.choices[0].message.content
assert text and whole.choices[0].finish_reason in ("stop", "length")
assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
print("ok   whole:", repr(text))

pieces, usage = [], None
for chunk in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
    if chunk.choices:
        pieces.append(chunk.choices[0].delta.content or "")
    usage = chunk.usage or usage
assert "".join(pieces) == text
for count in ("prompt_tokens", "completion_tokens", "total_tokens"):
    assert getattr(usage, count) == getattr(whole.usage, count), (usage, whole.usage)
assert usage.prompt_tokens_details.cached_tokens > 0, "the second time, the prompt is in the prefix cache"
print("ok   stream:", len(pieces), "chunks")

with client.chat.completions.stream(**ask, logprobs=True, top_logprobs=2) as stream:
    final = stream.get_final_completion()
assert final.choices[0].message.content == text
assert all(len(t.top_logprobs) == 2 for t in final.choices[0].logprobs.content)
print("ok   stream helper, log probabilities")

two = client.chat.completions.create(**{**ask, "temperature": 1, "seed": 7, "n": 2})
again = client.chat.completions.create(**{**ask, "temperature": 1, "seed": 7, "n": 2})
assert [c.message.content for c in two.choices] == [c.message.content for c in again.choices]
print("ok   seed, n")

weather = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the current weather for a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}
question = [{"role": "user", "content": "What's the weather in Vienna?"}]
call = dict(model=model, messages=question, tools=[weather], temperature=0, max_tokens=200)

first = client.chat.completions.create(**call, tool_choice="required")
assert first.choices[0].finish_reason == "tool_calls", first
asked = first.choices[0].message.tool_calls[0]
assert asked.id.startswith("call_") and asked.function.name == "get_weather"
assert isinstance(json.loads(asked.function.arguments)["city"], str)

name, arguments, finish = "", "", None
for chunk in client.chat.completions.create(**call, tool_choice="required", stream=True):
    for delta in chunk.choices[0].delta.tool_calls or []:
        name += delta.function.name or ""
        arguments += delta.function.arguments or ""
    finish = chunk.choices[0].finish_reason or finish
assert (name, arguments, finish) == (asked.function.name, asked.function.arguments, "tool_calls")

history = question + [
    first.choices[0].message,
    {"role": "tool", "tool_call_id": asked.id, "content": '{"city": "Vienna", "temperature": 17, "condition": "light rain"}'},
]
told = client.chat.completions.create(**{**call, "messages": history})
assert told.choices[0].message.content, told
assert told.usage.prompt_tokens_details.cached_tokens >= first.usage.total_tokens - 1, told.usage
print("ok   tools:", asked.function.arguments, "->", repr(told.choices[0].message.content))


class Person(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=150)
    likes: list[Literal["music", "books", "boats"]] = pydantic.Field(max_length=3)


class Order(pydantic.BaseModel):
    count: int = pydantic.Field(ge=1, le=99)
    things: list[Literal["music", "books", "boats"]] = pydantic.Field(max_length=3)


person = [{"role": "user", "content": "Give me a person as JSON."}]
for seed in range(3):
    parsed = client.chat.completions.parse(
        model=model, messages=person, response_format=Person, temperature=1.2, seed=seed, max_tokens=400)
    assert isinstance(parsed.choices[0].message.parsed, Person), parsed
print("ok   parsed:", parsed.choices[0].message.parsed)

strict = openai.pydantic_function_tool(Order, name="order")
ordered = client.chat.completions.parse(
    model=model, messages=person, tools=[strict], tool_choice="required", temperature=1.2, seed=1, max_tokens=400)
assert isinstance(ordered.choices[0].message.tool_calls[0].function.parsed_arguments, Order), ordered
print("ok   parsed tool call")

class Strict(pydantic.BaseModel):
    """What agent frameworks send as strict tools by default."""

    when: datetime.datetime
    id: uuid.UUID
    mail: str = pydantic.Field(pattern=r"^[a-z]{1,8}@[a-z]{1,8}\.com$")
    note: str | None = pydantic.Field(default=None, min_length=1, max_length=12)
    big: Literal[1234567890123456789, 2]


booked = client.chat.completions.parse(
    model=model, messages=person, tools=[openai.pydantic_function_tool(Strict, name="book")],
    tool_choice="required", temperature=1.2, seed=2, max_tokens=400)
assert isinstance(booked.choices[0].message.tool_calls[0].function.parsed_arguments, Strict), booked
print("ok   strict tool of ordinary types:", booked.choices[0].message.tool_calls[0].function.arguments)

legacy = client.chat.completions.create(
    model=model, messages=question, functions=[weather["function"]], function_call={"name": "get_weather"},
    temperature=0, max_tokens=200)
assert legacy.choices[0].finish_reason == "function_call", legacy
assert json.loads(legacy.choices[0].message.function_call.arguments)["city"]
back = [*question, legacy.choices[0].message, {"role": "function", "name": "get_weather", "content": "rain"}]
assert client.chat.completions.create(**{**ask, "messages": back}).choices
print("ok   functions of the older kind")

other = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
allowed = {"type": "allowed_tools", "allowed_tools": {
    "mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]}}
only = client.chat.completions.create(**{**call, "tools": [weather, other], "tool_choice": allowed})
assert all(c.function.name == "get_time" for c in only.choices[0].message.tool_calls), only
print("ok   allowed tools")

guided = client.chat.completions.create(**ask, extra_body={"guided_choice": ["yes", "no"]})
assert guided.choices[0].message.content in ("yes", "no")
begun = [*ask["messages"], {"role": "assistant", "content": "Once upon"}]
more = client.chat.completions.create(**{**ask, "messages": begun}, extra_body={"continue_final_message": True})
assert more.choices[0].message.content and more.system_fingerprint == whole.system_fingerprint
unknown = client.chat.completions.with_raw_response.create(**ask, verbosity="low", extra_body={"colour": "red"})
assert unknown.headers["x-ignored-fields"] == "colour"
print("ok   guided, continued, unknown fields")

# Whatever was answered can be sent back, a call cut at its length above all.
cut = client.chat.completions.create(**{**call, "max_tokens": 12}, tool_choice="required").choices[0].message
echo = [*question, cut.model_dump()]
echo += [{"role": "tool", "tool_call_id": c.id, "content": "error: cut off"} for c in cut.tool_calls or []]
assert client.chat.completions.create(**{**call, "messages": [*echo, {"role": "user", "content": "shorter"}]}).choices
print("ok   a cut call comes back")

for change, error, param in [
    ({"temperature": -1}, openai.BadRequestError, "temperature"),
    ({"model": "no-such-model"}, openai.NotFoundError, "model"),
    ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
]:
    try:
        client.chat.completions.create(**{**ask, **change})
    except error as e:
        assert e.param == param, e
    else:
        raise AssertionError(change)
print("ok   errors")

prompt = dict(model=model, prompt="def binary_search(items, target):\n", max_tokens=12, temperature=0)
plain = client.completions.create(**prompt, echo=True).choices[0].text
assert plain.startswith(prompt["prompt"])
pieces = [c.choices[0].text for c in client.completions.create(**prompt, stream=True) if c.choices]
assert prompt["prompt"] + "".join(pieces) == plain
both = client.completions.create(**{**prompt, "prompt": [prompt["prompt"], [1, 2, 3]], "logprobs": 2})
assert [c.index for c in both.choices] == [0, 1] and len(both.choices[0].logprobs.tokens) > 0
print("ok   completions")

# The package asks for base64 and makes numbers of it.
vectors = client.embeddings.create(model=model, input=["A dog runs.", "A puppy runs."]).data
again = client.embeddings.create(model=model, input="A dog runs.", encoding_format="float").data[0].embedding
assert [v.index for v in vectors] == [0, 1] and abs(sum(x * x for x in again) - 1) < 1e-5
assert max(abs(a - b) for a, b in zip(vectors[0].embedding, again, strict=True)) < 1e-7
print("ok   embeddings:", len(again), "values")

raw = client.chat.completions.with_raw_response.create(**ask, extra_headers={"X-Request-Id": "check-1"})
assert raw.headers["x-request-id"] == "check-1" and raw.headers["x-decode-mode"]
print("ok   headers:", raw.headers["x-decode-mode"])

story = {**ask, "max_tokens": 5000, "extra_body": {"ignore_eos": True}}
try:
    client.with_options(timeout=0.05).chat.completions.create(**story)
except openai.APITimeoutError:
    pass
else:
    raise AssertionError("a short timeout must end the request")
print("ok   timeout")

if len(sys.argv) > 2:
    # A server whose queue is full answers 429 with Retry-After, which the client waits for and tries again.
    narrow = openai.OpenAI(base_url=sys.argv[2], api_key="any", max_retries=0)
    health = sys.argv[2].removesuffix("/v1") + "/health"
    short = {**ask, "max_tokens": 2}
    busy = narrow.chat.completions.create(**story, stream=True)
    words = iter(busy)
    next(words)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = pool.submit(narrow.chat.completions.create, **short)
        while json.load(urllib.request.urlopen(health))["queued"] == 0:
            time.sleep(0.01)
        try:
            narrow.chat.completions.create(**short)
        except openai.RateLimitError as e:
            assert e.code == "queue_full" and int(e.response.headers["retry-after"]) > 0
        else:
            raise AssertionError("the queue is full")
        retried = pool.submit(narrow.with_options(max_retries=20).chat.completions.create, **short)
        time.sleep(0.5)
        busy.close()
        assert waiting.result().choices and retried.result().choices
    print("ok   429, Retry-After, retries")
