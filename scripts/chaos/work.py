"""What clients ask, and how an answer compares with the one that a quiet server gave."""

import collections
import contextlib
import hashlib
import http.client
import json
import random
import socket
import threading
import time
import urllib.parse

TOPICS = "sea sort tree list wind harbour number river word stone light garden".split()
TOOL = {
    "type": "function",
    "function": {
        "name": "read_file",
        "description": "Reads a file.",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]},
    },
}
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def requests(count):
    """`count` requests that differ in length, sampling, drafting, tools and grammar; always the same."""
    made = []
    for i in range(count):
        dice = random.Random(i)
        system = "You answer in few words. " * (1 + i % 4 * 8)
        messages = [{"role": "system", "content": system}]
        for turn in range(dice.randint(0, 2)):
            messages.append({"role": "user", "content": f"Tell me of the {dice.choice(TOPICS)}."})
            messages.append({"role": "assistant", "content": f"The {dice.choice(TOPICS)} is number {turn}."})
        words = " ".join(dice.choice(TOPICS) for _ in range(dice.randint(3, 60)))
        messages.append({"role": "user", "content": words})
        body = {"messages": messages, "max_tokens": dice.randint(4, 32), "seed": i}
        body["temperature"] = 0 if i % 2 else 0.8
        if i % 5 == 3:
            body["tools"] = [TOOL]
        if i % 7 == 4:
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
        made.append(body)
    return made


class Asked:
    """What became of a request: `equal`, `wrong`, `refused`, `mute` (refused without a reason), `cut`."""

    def __init__(self, kind, detail=""):
        self.kind, self.detail = kind, detail


def digest(choice_text, calls, finish):
    return hashlib.sha256(json.dumps([choice_text, calls, finish]).encode()).hexdigest()


def ask(url, body, stream, leave=None, timeout=900):
    """The digest of an answer, or an `Asked` that says why there is none. `leave`: seconds after which the client goes."""
    place = urllib.parse.urlsplit(url)
    link = http.client.HTTPConnection(place.hostname, place.port, timeout=timeout)
    start = time.monotonic()
    try:
        data = json.dumps({**body, "model": "demo", "stream": stream})
        link.request("POST", "/v1/chat/completions", data, {"content-type": "application/json"})
        answer = link.getresponse()
        if answer.status != 200:
            text = answer.read()
            try:
                return Asked("refused", f"{answer.status} {json.loads(text)['error']['message'][:80]}")
            except (ValueError, KeyError, TypeError):
                return Asked("mute", f"{answer.status} {text[:80]!r}")
        if not stream:
            choice = json.loads(answer.read())["choices"][0]
            message = choice["message"]
            calls = [[c["function"]["name"], c["function"]["arguments"]] for c in message.get("tool_calls") or []]
            return digest(message.get("content") or "", calls, choice["finish_reason"])
        text, calls, finish, ended = "", {}, None, False
        while line := answer.readline():
            if leave is not None and time.monotonic() - start > leave:
                return Asked("left")
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                ended = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                return Asked("refused", f"event: {event['error']['message'][:80]}")
            for choice in event["choices"]:
                delta = choice["delta"]
                text += delta.get("content") or ""
                for call in delta.get("tool_calls") or []:
                    parts = calls.setdefault(call["index"], ["", ""])
                    parts[0] += call["function"].get("name") or ""
                    parts[1] += call["function"].get("arguments") or ""
                finish = choice["finish_reason"] or finish
        if not ended:
            return Asked("cut", "the stream ended early")
        return digest(text, [calls[i] for i in sorted(calls)], finish)
    except (OSError, http.client.HTTPException, socket.timeout) as error:
        return Asked("cut", type(error).__name__)
    except ValueError:
        return Asked("cut", "half an event")
    finally:
        link.close()


class Judge:
    """Answers of a quiet server, and a count of how others compare."""

    def __init__(self, url, count):
        self.bodies = requests(count)
        self.quiet = []
        for body in self.bodies:
            once, again = ask(url, body, False), ask(url, body, True)
            assert isinstance(once, str) and once == again, f"the quiet server: {once!r}, {again!r}"
            self.quiet.append(once)
        self.lock = threading.Lock()
        self.reset()

    def reset(self):
        self.counts, self.details = collections.Counter(), collections.Counter()

    def one(self, url, dice, leave=None):
        i = dice.randrange(len(self.bodies))
        found = ask(url, self.bodies[i], dice.random() < 0.6, leave)
        if isinstance(found, str):
            found = Asked("equal") if found == self.quiet[i] else Asked("wrong", f"request {i}")
        with self.lock:
            self.counts[found.kind] += 1
            if found.detail:
                self.details[f"{found.kind}: {found.detail}"] += 1
        return found

    def all(self, url):
        """Every request once, in turn; the numbers of those whose answer is not the quiet one."""
        return [i for i, body in enumerate(self.bodies) if ask(url, body, i % 2 == 0) != self.quiet[i]]


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, judge, url, clients, seed, leave=0.0):
        self.judge, self.url, self.leave, self.over = judge, url, leave, threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(f"{seed}-{i}",)) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self, seed):
        dice = random.Random(seed)
        while not self.over.is_set():
            leave = dice.random() if dice.random() < self.leave else None
            if self.judge.one(self.url, dice, leave).kind in ("cut", "refused"):
                self.over.wait(0.02)

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


class Hostile:
    """Clients that send bodies of 30 MB, which no context holds, until they are told to stop."""

    def __init__(self, url):
        self.url, self.over, self.counts = url, threading.Event(), collections.Counter()
        text = "word " * 6_000_000
        chat = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 1}).encode()
        bodies = [("/v1/chat/completions", chat), ("/tokenize", json.dumps({"prompt": text}).encode())]
        self.threads = [threading.Thread(target=self.run, args=body) for body in bodies]
        for thread in self.threads:
            thread.start()

    def run(self, path, body):
        place = urllib.parse.urlsplit(self.url)
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        while not self.over.is_set():
            answer = b""
            with contextlib.suppress(OSError), socket.create_connection((place.hostname, place.port), 300) as link:
                # A refusal may come before the body is sent.
                with contextlib.suppress(OSError):
                    link.sendall(head.encode() + body)
                answer = link.recv(64)
            status = answer[9:12].decode(errors="replace")
            self.counts[status or "reset"] += 1

    def stop(self):
        """How often each status was answered."""
        self.over.set()
        for thread in self.threads:
            thread.join()
        return self.counts
