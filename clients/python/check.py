"""Checks a running server with the official `openai` package. Usage: check.py BASE_URL (ending in /v1)."""

import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="any", max_retries=0)

models = client.models.list().data
model = models[0].id
assert client.models.retrieve(model).id == model
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

tool = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
history = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "What time is it?"}]},
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": "{\"zone\": \"UTC\"}"}}]},
    {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
]
assert client.chat.completions.create(**{**ask, "messages": history, "tools": [tool]}).choices
print("ok   tools, history")

for change, error, param in [
    ({"temperature": -1}, openai.BadRequestError, "temperature"),
    ({"model": "no-such-model"}, openai.NotFoundError, "model"),
]:
    try:
        client.chat.completions.create(**{**ask, **change})
    except error as e:
        assert e.param == param, e
    else:
        raise AssertionError(change)
print("ok   errors")
