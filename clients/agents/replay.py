"""Replays sessions in the shapes in which coding agents send them, with what moves between their requests: ids, marks for the cache,
lines with which a client names itself, thoughts that come back sealed or signed, a request for a title beside the first. At every turn
at least 95 % of the tokens of the prompt before must come from the prefix cache, although sub-agents ask in between.

Usage: replay.py URL (without /v1). Texts are synthetic; the shapes are those of Codex (Responses), Claude Code (Messages) and
OpenCode (chat completions).
"""

import json
import random
import sys
import threading
import urllib.request
import uuid

URL = sys.argv[1]
TURNS = 8
LEAST = 0.95
CITIES = ["Paris", "Vienna", "Oslo", "Rome", "Madrid", "Lima", "Cairo", "Kyoto"]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "Name of the city."}}, "required": ["city"]}


def post(path, body, **headers):
    headers = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(URL + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=300) as response:
        return json.load(response)


def text(seed, words):
    """Instructions of a kind, the same for a seed."""
    pick = random.Random(seed)
    some = "read write file line path test build run tool call answer brief exact never always ask user code change check list".split()
    return " ".join(pick.choice(some) for _ in range(words)) + "."


def asked(turn):
    return f"What is the weather in {CITIES[turn % len(CITIES)]}?" if turn % 2 == 0 else f"what is the sea? ({text(turn, 20)})"


class Codex:
    """`codex exec`: everything comes back as items, each with an id; metadata change with each request."""

    def __init__(self, name, role="Codex"):
        self.key = f"{name}-{uuid.uuid4()}"
        self.tools = [
            {"type": "function", "name": "exec_command", "description": text(1, 60), "strict": False,
             "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}}},
            {"type": "namespace", "name": "mcp__weather", "description": "d", "tools": [
                {"type": "function", "name": "get_weather", "description": "Get the current weather in a city.", "strict": False,
                 "parameters": PARAMETERS}]},
            {"type": "web_search", "external_web_access": False}]
        self.items = [self.message("developer", f"You are {role}. " + text(role, 600)), self.message("developer", text(3, 100))]

    def message(self, role, said):
        return {"type": "message", "id": f"msg_{uuid.uuid4()}", "role": role, "content": [{"type": "input_text", "text": said}]}

    def turn(self, number):
        self.items.append(self.message("user", asked(number)))
        told = []
        for _ in range(2):
            body = {"model": "demo", "input": self.items, "tools": self.tools, "tool_choice": "auto", "parallel_tool_calls": True,
                    "reasoning": {"summary": "auto"}, "store": False, "include": ["reasoning.encrypted_content"],
                    "prompt_cache_key": self.key, "client_metadata": {"turn": str(uuid.uuid4())}, "temperature": 0, "max_output_tokens": 60}
            answer = post("/v1/responses", body, session_id=self.key)
            usage = answer["usage"]
            told.append((usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"]))
            self.items += answer["output"]
            calls = [item for item in answer["output"] if item["type"] == "function_call"]
            self.items += [{"type": "function_call_output", "id": f"fco_{uuid.uuid4()}", "call_id": call["call_id"], "output": "18 degrees"}
                           for call in calls]
            if not calls:
                break
        return told


class Claude:
    """`claude -p`: a line that names the client and changes, marks for the cache that move to the last block."""

    def __init__(self, name, role="Claude Code"):
        self.user = json.dumps({"session_id": f"{name}-{uuid.uuid4()}"})
        self.role, self.messages = role, []
        self.tools = [{"name": "Read", "description": text(4, 60), "input_schema": {
                          "$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
                          "properties": {"file_path": {"type": "string"}, "limit": {"type": "number", "exclusiveMinimum": 0}}}},
                      {"name": "get_weather", "description": "Get the current weather in a city.", "input_schema": PARAMETERS}]

    def turn(self, number):
        self.messages.append({"role": "user", "content": [{"type": "text", "text": asked(number)}]})
        if number == 0:
            self.messages.append({"role": "system", "content": text(5, 40)})
        told = []
        for _ in range(2):
            system = [{"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={uuid.uuid4()};"},
                      {"type": "text", "text": f"You are {self.role}.", "cache_control": {"type": "ephemeral"}},
                      {"type": "text", "text": text(self.role, 600), "cache_control": {"type": "ephemeral"}}]
            messages = json.loads(json.dumps(self.messages))
            if isinstance(messages[-1]["content"], list):
                messages[-1]["content"][-1]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
            body = {"model": "demo", "max_tokens": 60, "system": system, "messages": messages, "tools": self.tools, "temperature": 0,
                    "thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}, "metadata": {"user_id": self.user},
                    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}
            answer = post("/v1/messages?beta=true", body, **{"anthropic-beta": "x"})
            usage = answer["usage"]
            cached = usage["cache_read_input_tokens"]
            told.append((usage["input_tokens"] + usage["cache_creation_input_tokens"] + cached, cached))
            self.messages.append({"role": "assistant", "content": answer["content"]})
            calls = [block for block in answer["content"] if block["type"] == "tool_use"]
            if not calls:
                break
            self.messages.append({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": call["id"], "content": "18 degrees", "is_error": False} for call in calls]})
        return told


class OpenCode:
    """`opencode run`: a title is asked for at the same time as the first answer."""

    def __init__(self, name, role="OpenCode"):
        self.session = f"{name}-{uuid.uuid4()}"
        self.messages = [{"role": "system", "content": f"You are {role}. " + text(role, 600)}]
        self.tools = [{"type": "function", "function": {"name": "bash", "description": text(6, 60), "parameters": {
                          "type": "object", "properties": {"command": {"type": "string"}}}}},
                      {"type": "function", "function": {"name": "get_weather", "description": "Get the current weather in a city.",
                                                        "parameters": PARAMETERS}}]

    def ask(self, body):
        body = {"model": "demo", "max_tokens": 60, "temperature": 0, **body}
        return post("/v1/chat/completions", body, **{"x-session-affinity": self.session})

    def turn(self, number):
        self.messages.append({"role": "user", "content": asked(number)})
        title = {"messages": [{"role": "system", "content": "You make titles."}, {"role": "user", "content": "Make a title:"},
                              {"role": "user", "content": asked(number)}], "max_tokens": 10}
        beside = threading.Thread(target=self.ask, args=(title,))
        if number == 0:
            beside.start()
        told = []
        for _ in range(2):
            answer = self.ask({"messages": self.messages, "tools": self.tools})
            usage, message = answer["usage"], answer["choices"][0]["message"]
            told.append((usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]))
            calls = message.get("tool_calls") or []
            self.messages.append({"role": "assistant", "content": message.get("content") or "", "tool_calls": calls or None})
            self.messages += [{"role": "tool", "tool_call_id": call["id"], "content": "18 degrees"} for call in calls]
            if not calls:
                break
        if number == 0:
            beside.join()
        return told


failed = False
for kind in (Codex, Claude, OpenCode):
    main, before, worst, calls = kind("main"), 0, 1.0, 0
    for number in range(TURNS):
        # A sub-agent with instructions of its own, between the main one's turns.
        if number % 2:
            helper = kind(f"helper{number}", role=f"helper {number}")
            for inner in range(2):
                helper.turn(inner)
        told = main.turn(number)
        calls += len(told) - 1
        for prompt, cached in told:
            if before:
                worst = min(worst, cached / before)
            before = prompt
    good = worst >= LEAST and calls > 0
    failed |= not good
    print("ok  " if good else "FAILED", f"{kind.__name__}: at least {worst:.1%} of what was there before from the cache, {calls} calls, "
          f"{before} tokens at the end")
sys.exit(failed)
