"""Conversations with tools, there and back: rendered with a published chat template, tokenised with the family's own
vocabulary, read again as the server reads answers.

Usage: round_trips.py RENDERER READER TEMPLATE=TOKENIZER...
RENDERER and READER are the built examples `render_template` of mach-api and `read_answer` of mach-server. Each TEMPLATE goes
with the TOKENIZER (`tokenizer.json`) of its family. The text of a conversation must be that of transformers, its tokens
those of Python's tokenizers, and what is read of the last answer what was said. Exit code 1 if anything differs.
"""

import json
import pathlib
import subprocess
import sys

from tokenizers import Tokenizer

from compare_templates import ASK, NESTED, NOOP, SHAPES, SPECIAL, WEATHER, assistant, call, messages_for, render_jinja_template, tool, user

FINAL = [user("Hello"), assistant("Hello, you.\n\n* one\n* two 😀")]
FIRST = assistant(None, tool_calls=[call("get_weather", {"city": "Zürich", "days": 2, "exact": True})])
CASES = {
    "answer": dict(messages=FINAL),
    "answer with reasoning": dict(messages=FINAL[:1] + [assistant("Hello.", reasoning_content="They greet.\nSo do I.")]),
    "call": dict(messages=ASK + [FIRST], tools=[WEATHER]),
    "call with reasoning": dict(messages=ASK + [{**FIRST, "reasoning_content": "I must look: \"Zürich\"."}], tools=[WEATHER, NOOP]),
    "call without arguments": dict(messages=ASK + [assistant(None, tool_calls=[call("noop", {})])], tools=[NOOP]),
    "call, nested": dict(
        messages=ASK + [assistant(None, tool_calls=[call("plan", {
            "steps": [{"name": "a \"b\" \\ <c>\n", "cost": -1.5}], "options": {"mode": "a", "depth": None}, "values": ["x", "é", ""]})])],
        tools=[NESTED]),
    "second call": dict(
        messages=ASK + [FIRST, tool('{"t": 21.5}'), assistant(None, tool_calls=[call("noop", {}, "call00002")], reasoning_content="more")],
        tools=[WEATHER, NOOP]),
    "answer after a call": dict(
        messages=ASK + [FIRST, tool('{"t": 21.5}'), assistant("It is 21.5 °C.", reasoning_content="Now I know.")], tools=[WEATHER]),
}


def transformers(template, case, messages, generate, kwargs):
    """The text of the plainest shape of these messages that the template takes."""
    for shape in SHAPES:
        try:
            return render_jinja_template(
                conversations=[messages_for(messages, **shape)], tools=case.get("tools"), chat_template=template,
                add_generation_prompt=generate, **SPECIAL, **kwargs)[0][0]
        except Exception as error:  # noqa: BLE001 - whatever the template raises
            last = error
    raise last


# Gemma 4: what its template puts behind a prompt whose answer is not to reason, and leaves out of the history; and what ends an
# answer, which the server does not show.
UNREASONED = "<|channel>thought\n<channel|>"
ENDS = ("<turn|>\n", "<|tool_response>", "<｜end▁of▁sentence｜>")
# What a template is rendered with beside its defaults: DeepSeek's reasons only when told to.
VARIANTS = {"DeepSeek": ({}, {"thinking": True})}


def answer_in(prompt, whole):
    """The prompt that the answer follows, and the answer; None if it follows none."""
    short = prompt.removesuffix(UNREASONED)
    if whole.startswith(prompt):
        short = prompt
    elif not whole.startswith(short):
        return None
    text = whole[len(short):]
    for end in ENDS:
        text = text.removesuffix(end)
    # An answer that reasons is one to a prompt that leaves it open.
    return (short if text.startswith("<|channel>") else prompt), text


def run(program, job):
    done = subprocess.run([program], input=json.dumps(job) + "\n", capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def said(message):
    """What reading an answer should bring."""
    calls = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls", [])]
    return message.get("reasoning_content", ""), message["content"] or "", calls


def main():
    renderer, reader, *families = sys.argv[1:]
    wrong = 0
    for family in families:
        path, vocabulary = map(pathlib.Path, family.split("=", 1))
        template, tokenizer = path.read_bytes().decode(), Tokenizer.from_file(str(vocabulary))
        variants = next((v for family, v in VARIANTS.items() if family in path.name), ({},))
        cases = {f"{name} {json.dumps(kwargs) if kwargs else ''}".strip(): (case, kwargs)
                 for name, case in CASES.items() for kwargs in variants}
        # All but the answer; and the whole, as it is when the conversation goes on.
        requests = [{"messages": m, "tools": c.get("tools", []), "kwargs": kwargs}
                    for c, kwargs in cases.values() for m in (c["messages"][:-1], c["messages"])]
        rendered = run(renderer, {"template": template, "special_tokens": SPECIAL, "requests": requests})["results"]
        bad, answers = [], []
        for i, (name, (case, kwargs)) in enumerate(cases.items()):
            messages = case["messages"]
            prompt = transformers(template, case, messages[:-1], True, kwargs)
            for got, want in zip(rendered[2 * i:2 * i + 2], (prompt, transformers(template, case, messages, True, kwargs))):
                if got.get("text") != want:
                    bad.append((name, "text", want, got))
            whole = transformers(template, case, messages, False, kwargs)
            found = answer_in(prompt, whole)
            if found is None:
                bad.append((name, "the answer does not follow the prompt", prompt, whole))
            prompt, text = found or (prompt, "")
            answers.append({"prompt": prompt, "text": text, "tools": case.get("tools", [])})
        read = run(reader, {"tokenizer": str(vocabulary), "template": template, "answers": answers})
        for (name, (case, _)), answer, got in zip(cases.items(), answers, read):
            ids = tokenizer.encode(answer["prompt"] + answer["text"], add_special_tokens=False).ids
            if got["ids"] != ids:
                bad.append((name, "tokens", ids, got["ids"]))
            calls = [(c.get("name"), json.loads(c["arguments"] or "null")) if c.get("whole") else c for c in got["calls"]]
            back = (got["reasoning"], got["content"], calls)
            # Templates may leave out what an answer without a call has reasoned.
            reasoning, *rest = said(case["messages"][-1])
            want = (reasoning if reasoning in answer["text"] else "", *rest)
            if back != want:
                bad.append((name, "what was said", want, back))
        print(f"{path.name}: {len(cases)} conversations there and back, {len(bad)} differences")
        for name, what, want, got in bad:
            print(f"    {name}: {what}: wanted {want!r}, got {got!r}")
        wrong += len(bad)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
