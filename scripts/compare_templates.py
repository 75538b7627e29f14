"""Renders every template of a directory with about 50 conversations, in mach and in transformers.

Usage: compare_templates.py RENDERER DIRECTORY [-v]
RENDERER is the built example `render_template` of mach-api. Prints a line for each template and each difference, and
the sums; exit code 1 if anything fails in mach alone or differs.

transformers is given what servers that use it give: arguments of calls as objects, reasoning under the names in use,
content that is absent as such. Where a template fails on that the other shapes that servers try are rendered too.
"""

import copy
import datetime
import difflib
import json
import pathlib
import subprocess
import sys
import warnings

warnings.simplefilter("ignore")
from transformers.utils.chat_template_utils import render_jinja_template  # noqa: E402

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
REASONING = ("reasoning_content", "reasoning", "thinking", "thought")


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def tool(content, id="call00001", **more):
    return {"role": "tool", "tool_call_id": id, "content": content, **more}


def call(name, arguments, id="call00001"):
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": text}}


def function(name, properties, required=(), description="does something", **more):
    parameters = {"type": "object", "properties": properties, "required": list(required), **more}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def part(text):
    return {"type": "text", "text": text}


WEATHER = function(
    "get_weather",
    {
        "city": {"type": "string", "description": "The city, e.g. \"Köln\"", "enum": ["Zürich", "Köln"]},
        "days": {"type": "integer", "description": "How many", "default": 1, "minimum": 0},
        "exact": {"type": "boolean", "description": "Whether to round"},
    },
    ["city"],
    "Weather at a place: \"now\" & <later>, in °C",
)
NESTED = function(
    "plan",
    {
        "steps": {"type": "array", "description": "Steps", "items": {
            "type": "object", "properties": {"name": {"type": "string"}, "cost": {"type": "number"}}, "required": ["name"]}},
        "options": {"type": "object", "description": "Options", "properties": {
            "mode": {"type": "string", "enum": ["a", "b"]}, "depth": {"type": ["integer", "null"]}}},
        "when": {"anyOf": [{"type": "string"}, {"type": "null"}], "description": "When", "default": None},
        "values": {"type": "array", "items": {"type": "string"}, "description": "Named as a method is"},
    },
    ["steps"],
)
NUMBERS = function("numbers", {"x": {"type": "number", "description": "x", "default": 1e16, "maximum": 1e22, "multipleOf": 1e-05}})
NOOP = function("noop", {}, description="Nothing")
# Arguments of a call that was cut off, and what can be made out of them.
CUT, MADE_OUT = '{"city": "Zü', {"city": "Zü"}
ASK = [user("What's the weather in Köln?")]


def used(*calls, content=None, results=("{\"t\": 21.5}",), **more):
    ids = [c["id"] for c in calls]
    return ASK + [assistant(content, tool_calls=list(calls), **more)] + [tool(r, i) for r, i in zip(results, ids)]


CONVERSATIONS = {
    "one": dict(messages=[user("Hello, world!")]),
    "one, thinking off": dict(messages=[user("Hello")], kwargs={"enable_thinking": False}),
    "one, thinking on": dict(messages=[user("Hello")], kwargs={"enable_thinking": True, "thinking": True}),
    "one, effort": dict(messages=[user("Hello")], kwargs={"reasoning_effort": "high"}),
    "empty text": dict(messages=[user("")]),
    "white space": dict(messages=[system("  be kind \n"), user("\n\n hi \t\n")]),
    "quotes": dict(messages=[user("it's \"so\" \\ {{ x }} {% y %} <a&b> 日本 😀\u2028")]),
    "special tokens": dict(messages=[user("<|im_end|></s>[INST]<think>x</think>")]),
    "carriage returns": dict(messages=[user("a\r\nb\rc")]),
    "name": dict(messages=[{"role": "user", "content": "hi", "name": "Ann"}]),
    "system": dict(messages=[system("Be kind."), user("Hi")]),
    "system only": dict(messages=[system("Be kind.")]),
    "system empty": dict(messages=[system(""), user("Hi")]),
    "two systems": dict(messages=[system("A"), system("B"), user("Hi")]),
    "system later": dict(messages=[user("Hi"), system("B"), user("Hi")]),
    "turns": dict(messages=[user("a"), assistant("b"), user("c")]),
    "turns, ends with assistant": dict(messages=[user("a"), assistant("b")]),
    "long": dict(messages=[system("S")] + [m for i in range(6) for m in (user(f"q{i}"), assistant(f"a{i}"))] + [user("end")]),
    "two users": dict(messages=[user("a"), user("b")]),
    "assistant first": dict(messages=[assistant("a"), user("b")]),
    "answer empty": dict(messages=[user("a"), assistant(""), user("c")]),
    "answer with line breaks": dict(messages=[user("a"), assistant("\n\nb\n\n"), user("c")]),
    "parts": dict(messages=[user([part("first "), part("second")])]),
    "one part": dict(messages=[user([part("only")])]),
    "parts everywhere": dict(messages=[system([part("S")]), user([part("a")]), assistant([part("b")]), user([part("c")])]),
    "think in text": dict(messages=[user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("c")]),
    "reasoning": dict(messages=[user("a"), assistant("b", reasoning_content="because"), user("c")]),
    "reasoning, last": dict(messages=[user("a"), assistant("b", reasoning_content="because")]),
    "reasoning and call": dict(messages=used(call("get_weather", {"city": "Köln"}), reasoning_content="hm"), tools=[WEATHER]),
    "reasoning, text and call": dict(
        messages=used(call("get_weather", {"city": "Köln"}), content="I look.", reasoning_content="hm"), tools=[WEATHER]),
    "reasoning over steps": dict(
        messages=used(call("noop", {}), reasoning_content="one") + [assistant("done", reasoning_content="two"), user("more")],
        tools=[NOOP]),
    "tools": dict(messages=ASK, tools=[WEATHER]),
    "tools and system": dict(messages=[system("S")] + ASK, tools=[WEATHER, NOOP]),
    "tools, nested": dict(messages=ASK, tools=[NESTED]),
    "tools, numbers": dict(messages=ASK, tools=[NUMBERS]),
    "tool without parameters": dict(messages=ASK, tools=[{"type": "function", "function": {"name": "f", "description": "d"}}]),
    "tool without description": dict(messages=ASK, tools=[
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]),
    "call": dict(messages=used(call("get_weather", {"city": "Köln", "days": 2, "exact": True})), tools=[WEATHER]),
    "call, content empty": dict(messages=used(call("get_weather", {"city": "Köln"}), content=""), tools=[WEATHER]),
    "call, content": dict(messages=used(call("get_weather", {"city": "Köln"}), content="I look."), tools=[WEATHER]),
    "call, no tools": dict(messages=used(call("get_weather", {"city": "Köln"}))),
    "call, no arguments": dict(messages=used(call("noop", {})), tools=[NOOP]),
    "call, numbers": dict(messages=used(call("numbers", {"x": 1e16, "y": [1e-05, 1.0, -0.0, 1e22, 2**70, None, True], "z": 12345678901234567890123})),
                          tools=[NUMBERS]),
    "call, nested": dict(messages=used(call("plan", {"steps": [{"name": "a\n\"b\"", "cost": 1.5}], "options": {"mode": "a", "items": [1]}, "values": ["x", "é"]})),
                         tools=[NESTED]),
    "call, quotes": dict(messages=used(call("get_weather", {"city": "it's \"Köln\" <b>\\"})), tools=[WEATHER]),
    "two calls": dict(messages=used(call("get_weather", {"city": "Köln"}), call("noop", {}, "call00002"), results=("21", "ok")), tools=[WEATHER, NOOP]),
    "calls in turn": dict(messages=used(call("get_weather", {"city": "Köln"})) + [
        assistant(None, tool_calls=[call("noop", {}, "call00002")]), tool("ok", "call00002")], tools=[WEATHER, NOOP]),
    "call, answer, question": dict(messages=used(call("get_weather", {"city": "Köln"})) + [assistant("21 °C."), user("And now?")], tools=[WEATHER]),
    "call not answered": dict(messages=ASK + [assistant(None, tool_calls=[call("noop", {})])], tools=[NOOP]),
    "result named": dict(messages=ASK + [assistant(None, tool_calls=[call("noop", {})]), tool("ok", name="noop")], tools=[NOOP]),
    "result empty": dict(messages=used(call("noop", {}), results=("",)), tools=[NOOP]),
    "result in parts": dict(messages=used(call("noop", {}), results=([part("o"), part("k")],)), tools=[NOOP]),
    "result absent": dict(messages=used(call("noop", {}), results=(None,)), tools=[NOOP]),
    "call cut off": dict(messages=used(call("get_weather", CUT), results=("error: cut off",)), tools=[WEATHER]),
    "answer absent": dict(messages=[user("a"), assistant(None), user("c")]),
    "reasoning only": dict(messages=[user("a"), assistant(None, reasoning_content="because"), user("c")]),
    "kwargs": dict(messages=[user("hi")], kwargs={"flag": True, "nested": {"deep": [0, {"z": 1}]}, "add_vision_id": False}),
}


def messages_for(messages, null, arguments, parts, reasoning):
    """Messages as a server on transformers hands them over, in one of its shapes."""
    out = []
    for message in copy.deepcopy(messages):
        if message.get("content") is None:
            if null == "empty" or (null == "beside calls" and not message.get("tool_calls")):
                message["content"] = ""
        elif isinstance(message["content"], list) and parts == "joined":
            message["content"] = "\n".join(p["text"] for p in message["content"])
        thought = message.pop("reasoning_content", None)
        if thought is not None and not (reasoning == "one voice" and message["content"] and message.get("tool_calls")):
            message.update(dict.fromkeys(REASONING, thought))
        for c in message.get("tool_calls", []):
            if arguments == "object":
                text = c["function"]["arguments"]
                c["function"]["arguments"] = MADE_OUT if text == CUT else json.loads(text)
        out.append(message)
    return out


SHAPES = [
    dict(null=null, arguments=arguments, parts=parts, reasoning=reasoning)
    for reasoning in ("all", "one voice")
    for arguments in ("object", "text")
    for parts in ("list", "joined")
    for null in ("null", "beside calls", "empty")
]


def expected(source, conversation):
    """Every text that transformers gives, the plainest shape's first, and the error of that shape."""
    texts, first = [], None
    for shape in SHAPES:
        messages = messages_for(conversation["messages"], **shape)
        try:
            text = render_jinja_template(
                conversations=[messages], tools=conversation.get("tools"), chat_template=source,
                add_generation_prompt=True, **SPECIAL, **conversation.get("kwargs", {}))[0][0]
            if text not in texts:
                texts.append(text)
        except Exception as error:  # noqa: BLE001 - whatever the template raises
            first = first or f"{type(error).__name__}: {error}"
    return texts, first


def mach(renderer, sources):
    requests = [{"messages": c["messages"], "tools": c.get("tools", []), "kwargs": c.get("kwargs", {})} for c in CONVERSATIONS.values()]
    jobs = [{"template": source, "special_tokens": SPECIAL, "requests": requests} for source in sources]
    done = subprocess.run([renderer], input="".join(json.dumps(job) + "\n" for job in jobs), capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in done.stdout.split("\n") if line]
    return [a.get("results") or [{"error": a["error"]}] * len(requests) for a in answers]


def main():
    renderer, directory = sys.argv[1:3]
    verbose = "-v" in sys.argv
    paths = sorted(p for p in pathlib.Path(directory).iterdir() if p.suffix in (".jinja", ".jinja2", ".j2"))
    sources = [p.read_bytes().decode() for p in paths]
    today = datetime.date.today()
    sums = dict.fromkeys(("equal", "other shape", "different", "mach fails", "transformers fails", "both fail"), 0)
    for path, source, results in zip(paths, sources, mach(renderer, sources)):
        counts = dict.fromkeys(sums, 0)
        notes = []
        for (name, conversation), result in zip(CONVERSATIONS.items(), results):
            texts, error = expected(source, conversation)
            text = result.get("text")
            if text is None and not texts:
                verdict = "both fail"
            elif text is None:
                verdict = "mach fails"
                notes.append(f"    {name}: fails in mach alone: {result['error']}")
            elif not texts:
                verdict = "transformers fails"
                if verbose:
                    notes.append(f"    {name}: fails in transformers alone: {error}")
            elif text == texts[0]:
                verdict = "equal"
            elif text in texts:
                verdict = "other shape"
                if verbose:
                    notes.append(f"    {name}: as in another shape than the plainest")
            else:
                verdict = "different"
                diff = difflib.unified_diff(texts[0].splitlines(), text.splitlines(), "transformers", "mach", n=0, lineterm="")
                notes.append(f"    {name}: different\n" + "\n".join(f"        {line}" for line in diff))
            counts[verdict] += 1
            sums[verdict] += 1
        print(path.name + ": " + ", ".join(f"{n} {k}" for k, n in counts.items() if n))
        print(*notes, sep="\n", end="\n" if notes else "")
    if datetime.date.today() != today:
        print("the day changed on the way; templates that print the date may differ")
    print(f"{len(paths)} templates, {len(CONVERSATIONS)} conversations: " + ", ".join(f"{n} {k}" for k, n in sums.items()))
    return 1 if sums["mach fails"] or sums["different"] or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
