"""Writes templates.json: what the transformers library renders for every template and conversation below.

Usage: python make_templates.py (with transformers and jinja2 installed; the versions are recorded in the output).
"""

import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent
DEMO = HERE.parents[3] / "demo" / "chat_template.jinja"
TEMPLATES = {"demo": DEMO, **{p.stem: p for p in sorted((HERE / "templates").glob("*.jinja"))}}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather at a place: \"now\" & <later>, in °C 日本 \u2028 'quoted'\n\ttab \u007f \u0001",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Zürich", "Köln"]},
                "days": {"type": "integer", "default": 1, "minimum": -0.5, "maximum": 1e16},
                "accuracy": {"type": "number", "default": 1.0, "multipleOf": 1e-05},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
        "strict": None,
    },
}
EMPTY = {"type": "function", "function": {"name": "noop", "parameters": {"type": "object", "properties": {}, "required": []}}}


def call(name, arguments, id="call_1"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}


def user(content):
    return {"role": "user", "content": content}


CONVERSATIONS = {
    "one": dict(messages=[user("Hello, world!")]),
    "system": dict(messages=[{"role": "system", "content": "  Be kind.\n"}, user("Hi\n"), {"role": "assistant", "content": "Hello."}, user("More <|im_end|> text")]),
    "parts": dict(messages=[user([{"type": "text", "text": "first "}, {"type": "text", "text": "second"}])]),
    "tools": dict(messages=[user("What's the weather?")], tools=[WEATHER, EMPTY]),
    "calls": dict(
        messages=[
            {"role": "system", "content": "S"},
            user("Weather in Köln?"),
            {"role": "assistant", "content": None, "tool_calls": [
                call("get_weather", {"city": "Köln", "days": 2, "opts": {"b": [1, 2.5, None, True], "a": "x\ny"}, "accuracy": 1e-7}),
                call("noop", {}, "call_2")]},
            {"role": "tool", "tool_call_id": "call_1", "content": "{\"t\": 21.5}"},
            {"role": "tool", "tool_call_id": "call_2", "content": "done"},
            {"role": "assistant", "content": "It is 21.5 °C."},
            user("And tomorrow?"),
        ],
        tools=[WEATHER],
    ),
    "reasoning": dict(messages=[
        user("a"), {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}, user("c"),
        {"role": "assistant", "content": "d", "reasoning_content": "because", "tool_calls": [call("noop", {"k": "v"})]},
        {"role": "tool", "content": "r", "tool_call_id": "call_1"}]),
    "kwargs": dict(messages=[{"role": "user", "content": "hi", "name": "Ann"}],
                   kwargs={"enable_thinking": False, "flag": True, "nested": {"deep": [0, {"z": 1, "a": 2}]}}),
}


def for_template(message):
    """What a Python caller would hand to the template: arguments as objects."""
    message = json.loads(json.dumps(message))
    for c in message.get("tool_calls", []):
        c["function"]["arguments"] = json.loads(c["function"]["arguments"])
    return message


def main():
    cases = []
    for template, path in TEMPLATES.items():
        for conversation, c in CONVERSATIONS.items():
            kwargs = dict(c.get("kwargs", {}), bos_token="<s>", eos_token="</s>")
            case = {"template": template, "conversation": conversation, "messages": c["messages"],
                    "tools": c.get("tools", []), "kwargs": c.get("kwargs", {})}
            try:
                rendered, _ = render_jinja_template(
                    conversations=[[for_template(m) for m in c["messages"]]],
                    tools=c.get("tools"), chat_template=path.read_text(), add_generation_prompt=True, **kwargs)
                case["rendered"] = rendered[0]
            except Exception as e:  # noqa: BLE001 - the error's text is the expectation
                case["error"] = str(e)
            cases.append(case)
    out = {"transformers": transformers.__version__, "jinja2": jinja2.__version__, "cases": cases}
    (HERE / "templates.json").write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    for c in cases:
        print(c["template"], c["conversation"], c.get("error", "ok"))


if __name__ == "__main__":
    main()
