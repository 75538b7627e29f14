#!/usr/bin/env python3
"""Digests of what a server answers, for every instruction set of this machine and every residency: answers, log
probabilities, restored prompts (from memory, and from disk after a restart), counts of drafted and accepted tokens.

    scripts/digests.py MACH_SERVE CHECKPOINT

Prints one line a case. Two builds whose outputs are equal compute the same bytes; inside one output, all instruction
sets and residencies must agree, or the exit code is 1. The files of the prefix cache need not suit another build.
"""

import argparse
import hashlib
import json
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards brew a potion of light ".split()
LONG = " ".join(WORDS[i * 7 % len(WORDS)] for i in range(400))
TOOL = {
    "type": "function",
    "function": {"name": "read_file", "parameters": {"type": "object", "properties": {"path": {"type": "string"}}}},
}
CHAT = "/v1/chat/completions"
REQUESTS = [
    ("greedy", CHAT, {"messages": [{"role": "user", "content": "Say hello."}], "temperature": 0}),
    ("sampled", CHAT, {"messages": [{"role": "user", "content": "Tell a story."}], "temperature": 1, "seed": 7}),
    ("tools", CHAT, {"messages": [{"role": "user", "content": "Read src/main.rs"}], "tools": [TOOL], "seed": 3}),
    ("long", CHAT, {"messages": [{"role": "user", "content": LONG}], "temperature": 0}),
    ("text", "/v1/completions", {"prompt": "fn main() {", "seed": 1}),
    # Last, for how passes fall when several sequences share them depends on the time that they take.
    ("choices", CHAT, {"messages": [{"role": "user", "content": "One word."}], "n": 3, "seed": 5}),
]


class Server:
    def __init__(self, binary, checkpoint, *options):
        command = [binary, checkpoint, "--port", "0", "--log-level", "warn", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for line in self.process.stdout:
            if line.startswith("startup listening"):
                self.url = re.search(r"url=(\S+)", line).group(1)
            if line.startswith("startup ready"):
                return
        raise SystemExit(f"{' '.join(map(str, command))} did not become ready")

    def ask(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as response:
            return json.load(response)

    def counts(self):
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as response:
            text = response.read().decode()
        return sorted(re.findall(r"^(\w*(?:decode_passes|spec_decode)\w*) (\S+)", text, re.M))

    def drafted(self):
        # The last answer is out before its last pass is counted.
        counts, before = self.counts(), None
        while counts != before:
            time.sleep(0.2)
            counts, before = self.counts(), counts
        if not any(float(count) for _, count in counts):
            raise SystemExit("nothing was drafted")
        return counts

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.stdout.read()
        return self.process.wait(timeout=60)


def available(binary, checkpoint):
    """Instruction sets of this machine, from the message that refuses another."""
    command = [binary, checkpoint, "--port", "0", "--isa", "none-such"]
    said = subprocess.run(command, capture_output=True, text=True)
    return re.findall(r"[\w-]+", (said.stdout + said.stderr).split("available: ")[-1])


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def answer(server, path, body):
    limits = {"max_tokens": 48, "logprobs": 5} if path != CHAT else {"max_tokens": 48, "logprobs": True, "top_logprobs": 5}
    # What differs from run to run (ids, times) is not part of an answer.
    choices = server.ask(path, body | limits)["choices"]
    for choice in choices:
        for call in choice.get("message", {}).get("tool_calls") or []:
            call.pop("id")
    return choices


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", type=pathlib.Path)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--isas", default="avx512,avx-vnni,avx2,scalar", help="those that this machine lacks are left out")
    arguments = parser.parse_args()
    found, wrong = {}, 0

    def tell(name, case, value):
        nonlocal wrong
        print(f"{name:<34} {case:<18} {value}", flush=True)
        expected = found.setdefault(case, value)
        wrong += expected != value

    for isa in arguments.isas.split(","):
        if isa not in available(arguments.server, arguments.checkpoint):
            continue
        modes = [("resident", ["--no-streaming"])]
        if isa != "scalar":
            modes.append(("streaming", ["--streaming", "--expert-cache-gb", "0.008"]))
        for residency, mode in modes:
            with tempfile.TemporaryDirectory() as directory:
                options = ["--isa", isa, *mode, "--disk-kv-dir", directory]
                options += ["--serving-adaptive-block-policy", "fixed-16", "--serving-block-guard", "off"]
                name = f"{isa} {residency}"
                server = Server(arguments.server, arguments.checkpoint, *options)
                for case, path, body in REQUESTS:
                    if case == "choices":
                        tell(name, "drafts", digest(server.drafted()))
                    tell(name, case, digest(answer(server, path, body)))
                for case, path, body in REQUESTS:
                    tell(f"{name} memory", case, digest(answer(server, path, body)))
                server.stop()
                server = Server(arguments.server, arguments.checkpoint, *options)
                for case, path, body in REQUESTS:
                    tell(f"{name} disk", case, digest(answer(server, path, body)))
                server.stop()
    if wrong:
        print(f"{wrong} digests differ from the first of their case")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
