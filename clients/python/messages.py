"""Checks a running server with the official `anthropic` package.

Usage: messages.py URL (without /v1).
"""

import sys

import anthropic

client = anthropic.Anthropic(base_url=sys.argv[1], api_key="any", max_retries=0)
ask = dict(model="demo", max_tokens=24, messages=[{"role": "user", "content": "Hello"}])
ask["extra_body"] = {"temperature": 0}

whole = client.messages.create(**ask)
text = whole.content[0].text
assert text and whole.stop_reason in ("end_turn", "max_tokens") and whole.role == "assistant"
print("ok   whole:", repr(text))

with client.messages.stream(**ask) as stream:
    assert "".join(stream.text_stream) == text
    last = stream.get_final_message()
assert last.stop_reason == whole.stop_reason and last.usage.output_tokens == whole.usage.output_tokens
spent = whole.usage.input_tokens + whole.usage.cache_read_input_tokens + whole.usage.cache_creation_input_tokens
counted = client.messages.count_tokens(model="demo", messages=ask["messages"]).input_tokens
assert counted == spent, (counted, whole.usage)
again = client.messages.create(**ask)
assert again.content == whole.content and again.usage.cache_read_input_tokens == spent
print("ok   stream, count, cache:", counted)

weather = {
    "name": "get_weather",
    "description": "Get the current weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "cache_control": {"type": "ephemeral"},
}
tools = dict(tools=[weather], tool_choice={"type": "tool", "name": "get_weather"}, max_tokens=100)
question = [{"role": "user", "content": "What is the weather in Paris?"}]
with client.messages.stream(**{**ask, **tools, "messages": question}) as stream:
    called = stream.get_final_message()
call = called.content[-1]
assert called.stop_reason == "tool_use" and call.type == "tool_use" and isinstance(call.input["city"], str), called
whole = client.messages.create(**{**ask, **tools, "messages": question})
assert [block.type for block in whole.content] == [block.type for block in called.content]
assert whole.content[-1].input == call.input
result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "18 degrees"}]}
history = [*question, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
answer = client.messages.create(**{**ask, "tools": [weather], "messages": history})
assert answer.content and answer.usage.cache_read_input_tokens > 0
print("ok   a call and its result:", call.input)

stopped = client.messages.create(**{**ask, "stop_sequences": [text[3:5]]})
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", text[3:5]), stopped
print("ok   stop sequences")

image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}}
try:
    client.messages.create(**{**ask, "messages": [{"role": "user", "content": [image]}]})
except anthropic.BadRequestError as e:
    assert e.body["error"]["type"] == "invalid_request_error" and "text" in e.body["error"]["message"]
else:
    raise AssertionError("images are refused")
try:
    client.messages.create(**{**ask, "messages": [{"role": "user", "content": "word " * 20000}]})
except anthropic.BadRequestError as e:
    assert e.body["error"]["message"].startswith("prompt is too long")
else:
    raise AssertionError("a prompt longer than the context is refused")
try:
    client.messages.create(**{**ask, "model": "other"})
except anthropic.NotFoundError as e:
    assert e.body["error"]["type"] == "not_found_error"
else:
    raise AssertionError("another model is not here")
print("ok   errors")
