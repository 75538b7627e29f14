#!/usr/bin/env python3
"""Many concurrent streams that leave whenever they like: no leak of memory, slots or file handles.

abuse.py PID URL [--streams 200] [--seconds 20]

A round is `streams` connections at a time, each of which reads for a random while and then closes or resets; some never
read, some send half a request. Before and after, memory and handles of the server process are read from /proc, and at the
end nothing may be running, waiting or paused. Prints one JSON object; exit code 1 if something leaked.
"""

import argparse
import asyncio
import json
import os
import random
import re
import struct
import socket
import sys
import time
import urllib.parse
import urllib.request


def process(pid):
    status = open(f"/proc/{pid}/status").read()
    rss = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024
    return {"rss_mib": round(rss, 1), "handles": len(os.listdir(f"/proc/{pid}/fd"))}


def metrics(url):
    text = urllib.request.urlopen(url + "/metrics", timeout=30).read().decode()
    found = re.findall(r"^mach_num_(\w+) ([0-9.]+)$", text, re.M)
    return {name: float(value) for name, value in found}


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


def settled(url):
    """Waits until nothing is running or waiting."""
    for _ in range(300):
        now = metrics(url)
        if not any(now[name] for name in ("requests_running", "requests_waiting", "sequences_paused")):
            return True
        time.sleep(0.1)
    return False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pid", type=int)
    parser.add_argument("url")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    place = urllib.parse.urlsplit(args.url)
    model = json.load(urllib.request.urlopen(args.url + "/v1/models"))["data"][0]["id"]
    counts = {}
    run = lambda seconds: asyncio.run(storm(place.hostname, place.port, model, args.streams, seconds, counts))
    # The first round fills buffers and pools to their size; what grows after it leaks.
    run(args.seconds / 3)
    ok = settled(args.url)
    before = process(args.pid)
    run(args.seconds * 2 / 3)
    ok &= settled(args.url)
    time.sleep(1)
    after = process(args.pid)
    grown = after["rss_mib"] - before["rss_mib"]
    # Threads come and go with the load, each with memory of its own, so that short runs differ by tens of MiB; what
    # grows with the number of requests shows in longer ones.
    leaks = after["handles"] > before["handles"] + 8 or grown > 128 or not ok
    report = {"streams": args.streams, "seconds": args.seconds, "requests": counts, "before": before, "after": after}
    report |= {"settled": bool(ok), "leaks": bool(leaks)}
    print(json.dumps(report))
    return 1 if leaks else 0


if __name__ == "__main__":
    sys.exit(main())
