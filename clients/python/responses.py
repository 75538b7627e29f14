"""Checks a running server with the Responses API of the official `openai` package.

Usage: responses.py BASE_URL (ending in /v1).
"""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="any", max_retries=0)
ask = dict(model="demo", temperature=0, max_output_tokens=24)

whole = client.responses.create(**ask, input="Hello")
assert whole.output_text and whole.status == "completed" and whole.output[0].type == "message", whole
chat = client.chat.completions.create(model="demo", temperature=0, messages=[{"role": "user", "content": "Hello"}])
assert whole.output_text == chat.choices[0].message.content
print("ok   whole, as chat answers:", repr(whole.output_text))

events = list(client.responses.create(**ask, input="Hello", stream=True))
assert [event.sequence_number for event in events] == list(range(len(events)))
kinds = [event.type for event in events]
assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed", kinds
assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
last = events[-1].response
assert last.output_text == whole.output_text and last.usage.output_tokens == whole.usage.output_tokens
assert last.usage.input_tokens_details.cached_tokens > 0
counted = client.responses.input_tokens.count(model="demo", input="Hello").input_tokens
assert counted == whole.usage.input_tokens
with client.responses.stream(**ask, input="Hello") as stream:
    stream.until_done()
    assert stream.get_final_response().output_text == whole.output_text
print("ok   stream, usage, input tokens:", counted)

weather = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}
ask.update(max_output_tokens=100, tools=[weather])
question = {"role": "user", "content": "What is the weather in Paris?"}
asked = client.responses.create(**ask, input=[question], tool_choice="required", include=["reasoning.encrypted_content"])
call = asked.output[-1]
assert call.type == "function_call" and call.name == "get_weather" and "Paris" in call.arguments, asked.output
result = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}
stateless = client.responses.create(**ask, store=False, input=[question, *asked.output, result])
stateful = client.responses.create(**ask, previous_response_id=asked.id, input=[result])
assert stateful.output_text == stateless.output_text and stateful.output_text
assert stateful.usage.input_tokens_details.cached_tokens > 0
named = client.responses.create(**ask, input=[question, {"type": "item_reference", "id": call.id}, result])
assert named.output_text == stateless.output_text
print("ok   a call and its result, in three ways:", repr(stateful.output_text))

kept = client.responses.retrieve(stateful.id)
assert kept.output_text == stateful.output_text and kept.previous_response_id == asked.id
items = client.responses.input_items.list(asked.id).data
assert [item.type for item in items] == ["message"], items
client.responses.delete(stateful.id)
for gone in (lambda: client.responses.retrieve(stateful.id), lambda: client.responses.retrieve(stateless.id)):
    try:
        gone()
    except openai.NotFoundError:
        continue
    raise SystemExit("a response is there that was deleted, or was not to be kept")
try:
    client.responses.create(**ask, input="x", previous_response_id=stateful.id)
except openai.BadRequestError as e:
    assert e.code == "previous_response_not_found", e
other = openai.OpenAI(base_url=sys.argv[1], api_key="another", max_retries=0)
try:
    other.responses.retrieve(asked.id)
except openai.NotFoundError:
    print("ok   kept, listed, deleted, and nobody else's")

shorter = client.responses.compact(model="demo", input=[question, *asked.output, result])
assert [item.type for item in shorter.output] == ["message", "compaction"], shorter
after = client.responses.create(**ask, input=[*shorter.output, {"role": "user", "content": "Hello"}])
assert after.output_text
print("ok   compaction")

schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}
text = {"format": {"type": "json_schema", "name": "person", "strict": True, "schema": schema}}
person = client.responses.create(model="demo", input="Give me a person as JSON.", text=text, max_output_tokens=200)
import json

assert set(json.loads(person.output_text)) == {"name", "age"}, person.output_text
print("ok   a schema:", person.output_text)

for body, param in [({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].type"),
                    ({"input": "x", "background": True}, "background"), ({"input": "word " * 60000}, "input")]:
    try:
        client.responses.create(model="demo", **body)
    except openai.BadRequestError as e:
        assert e.param == param, (e.param, param)
    else:
        raise SystemExit(f"{param} was accepted")
cut = client.responses.create(model="demo", temperature=0, max_output_tokens=3, input="Hello")
assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens"), cut
print("ok   refusals, and an answer that is cut")
