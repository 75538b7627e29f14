#!/usr/bin/env python3
"""Clients that do what they should not: memory stays within what the server announced, and nothing is left behind.

abuse.py PID URL [--streams 200] [--seconds 20] [--budget BYTES]

First the attacks, each measured by the most memory that the process has had during it: bodies that no context can hold, bodies that
are sent by halves, JSON of nothing but values, long prompts at once, large schemas at once. Then rounds of connections that read for a
while and close or reset, never read, or send half a request. The server's memory and handles are read from /proc. At the end nothing may
be running, waiting or paused, no memory may be charged, handles are as many as before, and memory may not grow from round to round.
Prints one JSON object; exit code 1 if something is not as it should be.
"""

import argparse
import asyncio
import json
import os
import random
import re
import socket
import statistics
import struct
import sys
import time
import urllib.parse
import urllib.request

MIB = 1 << 20
# What the process may have beyond its budget.
TOLERANCE = 1.05
# Rounds of the storm; the first fill buffers, pools and caches to their size, which takes about so many: of 24 rounds the
# first eight grew by 25 MiB, the other sixteen by none.
ROUNDS = 16
FILLING = 8
# Growth from round to round that is none: threads come and go with the load, each with memory of its own.
SLOPE_MIB = 1.0
# What a refusal may be, and an answer. 0 is a connection that was reset while the body was still sent.
DECENT = {0, 200, 400, 408, 413, 429, 503}


def process(pid):
    status = open(f"/proc/{pid}/status").read()
    kib = lambda key: int(re.search(key + r":\s+(\d+)", status)[1]) * 1024
    return {"rss": kib("VmRSS"), "peak": kib("VmHWM"), "handles": len(os.listdir(f"/proc/{pid}/fd"))}


def forget_peak(pid):
    """The peak begins anew, where the kernel lets it."""
    try:
        with open(f"/proc/{pid}/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def metrics(url):
    text = urllib.request.urlopen(url + "/metrics", timeout=30).read().decode()
    return {name: float(value) for name, value in re.findall(r"^mach_(\w+) ([0-9.]+)$", text, re.M)}


def settled(url):
    """Waits until nothing is running or waiting, and nothing is charged."""
    idle = ("num_requests_running", "num_requests_waiting", "num_sequences_paused")
    charged = ("request_memory_held_bytes", "request_memory_working_bytes")
    for _ in range(600):
        now = metrics(url)
        if not any(now.get(name) for name in idle + charged):
            return True
        time.sleep(0.1)
    return False


class Attack:
    """Requests of one kind, all at once."""

    def __init__(self, place, model):
        self.place, self.model, self.statuses = place, model, {}

    async def send(self, path, body, *, part=1.0, wait=60.0):
        """One request, of which only a part may be sent."""
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        reader, writer = await asyncio.open_connection(self.place.hostname, self.place.port)

        async def write():
            writer.write(head.encode() + body[: int(len(body) * part)])
            await writer.drain()

        status = 0
        try:
            writing = asyncio.ensure_future(write())
            answer = await asyncio.wait_for(reader.read(1 << 16), wait)
            status = int(answer[9:12] or 0)
            writing.cancel()
        except (ConnectionError, ValueError):
            pass
        except asyncio.TimeoutError:
            status = "gone"
        finally:
            writer.transport.abort()
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def chat(self, text, **more):
        return json.dumps({"model": self.model, "messages": [{"role": "user", "content": text}], **more}).encode()

    async def chats_beyond_the_context(self):
        body = self.chat("some words " * (30 * MIB // 11))
        await asyncio.gather(*(self.send("/v1/chat/completions", body) for _ in range(6)))

    async def texts_to_tokenize(self):
        body = json.dumps({"prompt": "a\n" * (10 * MIB)}).encode()
        small = json.dumps({"prompt": "some words " * 9_000, "return_token_strs": True}).encode()
        large = [self.send("/tokenize", body) for _ in range(6)]
        await asyncio.gather(*large, *(self.send("/tokenize", small) for _ in range(60)))

    async def values(self):
        body = b'{"messages":[' + b"[]," * (10 * MIB) + b"0]}"
        text = json.dumps("[" + "0," * 2_000_000 + "0]")
        call = '{"id":"a","type":"function","function":{"name":"f","arguments":' + text + "}}"
        calls = ('{"messages":[{"role":"assistant","tool_calls":[' + call + "]}]}").encode()
        await asyncio.gather(*(self.send("/v1/chat/completions", b) for b in [body, calls] * 4))

    async def half_sent_bodies(self):
        body = self.chat("x" * (30 * MIB))
        await asyncio.gather(*(self.send("/v1/chat/completions", body, part=0.5, wait=4) for _ in range(40)))

    async def long_prompts(self):
        dice = random.Random(1)
        words = ["sea", "sort", "tree", "list", "wind", "x = y[0]\n"]
        text = lambda: " ".join(dice.choice(words) for _ in range(2_000))
        more = {"max_tokens": 2, "stream": True}
        bodies = [self.chat(text(), **more) for _ in range(100)]
        # They go before all are answered: what they left must not be worked on any more.
        await asyncio.gather(*(self.send("/v1/chat/completions", body, wait=8) for body in bodies))

    async def large_schemas(self):
        def schema(i, n, kind):
            names = [f"property {i} {k}" for k in range(n)]
            value = {"type": "string", "pattern": "^([a-z]{1,40} ){1,9}[0-9]{2,%d}$" % (i + 3)}
            object_ = {"type": "object", "properties": {name: value for name in names}, "additionalProperties": False}
            return object_ | ({"required": names} if kind else {})

        def body(schema):
            format_ = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
            return self.chat("Fill in", max_tokens=20, response_format=format_)

        bodies = [body(schema(i, n, i % 2)) for i, n in enumerate([400, 480, 2_000, 2_500] * 8)]
        bodies += [body({"enum": [f"value {i} {k}" for k in range(9_000)]}) for i in range(4)]
        bodies += [body(schema(0, 10_000, 0)), body({"enum": list(range(400_000))})] * 4
        await asyncio.gather(*(self.send("/v1/chat/completions", body, wait=120) for body in bodies))


ATTACKS = ["chats_beyond_the_context", "texts_to_tokenize", "values", "half_sent_bodies", "long_prompts", "large_schemas"]


def attack(args, place, model):
    """What each attack did; and whether it was met decently."""
    reports, good = {}, True
    for name in ATTACKS:
        forget_peak(args.pid)
        one = Attack(place, model)
        started = time.monotonic()
        asyncio.run(getattr(one, name)())
        still = settled(args.url)
        peak = process(args.pid)["peak"]
        within = args.budget is None or peak <= args.budget * TOLERANCE
        decent = all(status in DECENT or status == "gone" for status in one.statuses)
        good &= still and within and decent
        reports[name] = {
            "peak_mib": round(peak / MIB, 1),
            "rss_mib": round(process(args.pid)["rss"] / MIB, 1),
            "within_budget": within,
            "settled": still,
            "statuses": {str(status): count for status, count in one.statuses.items()},
            "seconds": round(time.monotonic() - started, 1),
        }
    return reports, good


async def misbehave(host, port, model, dice, counts):
    reader, writer = await asyncio.open_connection(host, port)
    kind = dice.choices(["read", "deaf", "half", "whole"], [6, 2, 1, 1])[0]
    counts[kind] = counts.get(kind, 0) + 1
    words = " ".join(dice.choice(["sea", "sort", "tree", "list", "wind"]) for _ in range(dice.randint(1, 60)))
    body = json.dumps({
        "model": model, "messages": [{"role": "user", "content": words}], "stream": dice.random() < 0.9,
        "max_tokens": 2000 if kind != "whole" else 10, "ignore_eos": True, "n": dice.choice([1, 1, 1, 2]),
    }).encode()  # fmt: skip
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    try:
        writer.write(head.encode() + (body if kind != "half" else body[: len(body) // 2]))
        await writer.drain()
        if kind == "whole":
            answer = await asyncio.wait_for(reader.read(1 << 20), 300)
            status = answer[9:12].decode()
            counts[status] = counts.get(status, 0) + 1
        elif kind == "read":
            end = time.monotonic() + dice.random() * 2
            while (left := end - time.monotonic()) > 0:
                try:
                    if not await asyncio.wait_for(reader.read(4096), left):
                        break
                except asyncio.TimeoutError:
                    break
        else:
            await asyncio.sleep(dice.random() * 2)
    except (ConnectionError, asyncio.TimeoutError):
        counts["broken"] = counts.get("broken", 0) + 1
    finally:
        if dice.random() < 0.5:
            # A reset instead of a polite end.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()


async def storm(host, port, model, streams, seconds, counts):
    end = time.monotonic() + seconds

    async def one(seed):
        dice = random.Random(seed)
        while time.monotonic() < end:
            try:
                await misbehave(host, port, model, dice, counts)
            except ConnectionError:
                counts["refused"] = counts.get("refused", 0) + 1
                await asyncio.sleep(0.1)

    await asyncio.gather(*(one(i) for i in range(streams)))


def slope(values):
    """The median of the slopes between any two: one round that is out of line does not count."""
    pairs = [(j - i, values[j] - values[i]) for i in range(len(values)) for j in range(i + 1, len(values))]
    return statistics.median(grown / apart for apart, grown in pairs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pid", type=int)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20, help="of the storm")
    parser.add_argument("--budget", type=int, help="budget_bytes of the line `startup memory`")
    args = parser.parse_args()
    place = urllib.parse.urlsplit(args.url)
    model = json.load(urllib.request.urlopen(args.url + "/v1/models"))["data"][0]["id"]
    handles = process(args.pid)["handles"]
    attacks, good = attack(args, place, model)

    counts, after, still = {}, [], True
    forget_peak(args.pid)
    for _ in range(ROUNDS):
        asyncio.run(storm(place.hostname, place.port, model, args.streams, args.seconds / ROUNDS, counts))
        still &= settled(args.url)
        time.sleep(0.5)
        after.append(process(args.pid)["rss"])
    last = process(args.pid)
    grown = slope([rss / MIB for rss in after[FILLING:]])
    verdict = {
        "attacks": good,
        "settled": still,
        "handles": last["handles"] <= handles + 8,
        "peak": args.budget is None or last["peak"] <= args.budget * TOLERANCE,
        "slope": grown <= SLOPE_MIB,
    }
    report = {
        "budget_mib": args.budget and round(args.budget / MIB, 1),
        "attacks": attacks,
        "storm": {
            "streams": args.streams,
            "seconds": args.seconds,
            "requests": counts,
            "rss_mib": [round(rss / MIB, 1) for rss in after],
            "slope_mib_a_round": round(grown, 2),
            "peak_mib": round(last["peak"] / MIB, 1),
            "handles": [handles, last["handles"]],
        },
        "verdict": verdict,
    }
    print(json.dumps(report, indent=1))
    return 0 if all(verdict.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
