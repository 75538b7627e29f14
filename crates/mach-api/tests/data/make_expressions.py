"""Writes expressions.json: what each expression of expressions.txt prints in a chat template of transformers, or null
where it raises an error there; and the same into constructs.json for the whole templates that are in it.

Usage: python make_expressions.py (with transformers and jinja2 installed; the versions are recorded in the output).
"""

import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent
PRELUDE = (
    "{% macro m(a, b=1) %}<{{ a }}:{{ b }}>{% endmacro %}{% set ns = namespace(q=1) %}"
    "{% set d = {'a': 1, 'b': 2} %}{% set l = ['a', 'b'] %}"
    "{% set schema = {'type': 'array', 'items': {'type': 'string'}} %}"
    "{% set lst = [{'name': 'ann', 'n': 2, 'tags': ['x']}, {'name': 'Bob', 'n': 1, 'tags': []}] %}"
    "{% set args = messages[1].tool_calls[0].function.arguments %}"
    "{% set big = args.big %}{% set float16 = args.f %}{% set fl = args.fl %}"
)
ARGUMENTS = (
    '{"big": 1234567890123456789012345678901234567890123456, "f": 1e16, '
    '"fl": [1e16, -0, -0.0, 1.0, 1e-05, 18446744073709551616, 5e-324]}'
)


def main():
    call = {"id": "i", "type": "function", "function": {"name": "f", "arguments": json.loads(ARGUMENTS)}}
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "c", "tool_calls": [call]}]
    cases = []
    for expression in (HERE / "expressions.txt").read_text().splitlines():
        source = PRELUDE + "{{ " + expression + " }}"
        try:
            printed = render_jinja_template(conversations=[messages], chat_template=source)[0][0]
        except Exception:  # noqa: BLE001 - whatever it raises
            printed = None
        cases.append([expression, printed])
    out = {"transformers": transformers.__version__, "jinja2": jinja2.__version__,
           "prelude": PRELUDE, "arguments": ARGUMENTS, "cases": cases}
    path = HERE / "constructs.json"
    constructs = json.loads(path.read_text())
    constructs["messages"] = [{"role": "user", "content": "hello world"}, {"role": "assistant", "content": "hi"},
                              {"role": "user", "content": "more"}]
    for case in constructs["cases"]:
        try:
            case[1] = render_jinja_template(
                conversations=[constructs["messages"]], chat_template=case[0], add_generation_prompt=True)[0][0]
        except Exception:  # noqa: BLE001 - whatever it raises
            case[1] = None
    path.write_text(json.dumps(constructs, indent=1, ensure_ascii=False) + "\n")
    (HERE / "expressions.json").write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
