#!/usr/bin/env python3
"""Two builds of `mach bench` in turn on one checkpoint, so that a slow minute of the machine falls on both.

    scripts/compare_builds.py OLD_MACH NEW_MACH CHECKPOINT [--rounds N] [--only NAME,...]

Prints for each figure the best of every build over all rounds and the ratio new / old, turned so that above 1 is
faster, and how far the rounds of the old build lie apart, which is what a ratio means nothing below."""

import argparse
import json
import subprocess
import sys

BENCHES = {
    "model": [],
    "stream": ["--prompt", "512", "--decode", "64"],
    "prefix": ["--prompts", "1024", "--reps", "3"],
    "specdec": ["--rows", "1,4,8,16", "--reps", "2"],
    "serve": ["--reps", "3"],
}


def figures(name, d):
    """The figures of one run: name, value, whether more is better."""
    if name == "model":
        yield "decode tokens/s", d["decode"]["best"], True
        yield "prefill tokens/s", d["prefill"]["best"], True
    elif name == "stream":
        for phase in ("prefill", "decode"):
            yield f"{phase} tokens/s", max(p["tokens"] / p["seconds"] for p in d[phase]), True
    elif name == "prefix":
        for row in d["prefix"]["rows"]:
            for key in ("cold_seconds", "l1_tail_seconds", "l2_seconds"):
                yield f"{row['tokens']} {key}", row[key], False
    elif name == "specdec":
        for row in d["verify"]:
            yield f"verify {row['rows']} rows, s", row["seconds"], False
        for row in d["draft"]:
            yield f"draft {row['rows']} rows, s", row["seconds"], False
        for row in d["answers"]:
            kind = f"{row.get('category', row.get('name', ''))} t={row['temperature']} {row.get('policy', '')}".strip()
            yield f"answers {kind}, tokens/s", row["tokens_per_second"], True
    else:
        yield "tokens/s", max(d["serve"]["tokens_per_second"]), True


def run(binary, name, checkpoint):
    command = [binary, "bench", *([] if name == "model" else [name]), checkpoint, "--json", *BENCHES[name]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("old", "new", "checkpoint"):
        parser.add_argument(name)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--only", default=",".join(BENCHES))
    arguments = parser.parse_args()
    for name in arguments.only.split(","):
        seen = {}
        for turn in range(arguments.rounds):
            builds = [("old", arguments.old), ("new", arguments.new)]
            for build, binary in builds if turn % 2 == 0 else reversed(builds):
                for figure, value, more in figures(name, run(binary, name, arguments.checkpoint)):
                    seen.setdefault(figure, {"more": more, "old": [], "new": []})[build].append(value)
        for figure, found in seen.items():
            best = max if found["more"] else min
            old, new = best(found["old"]), best(found["new"])
            ratio = new / old if found["more"] else old / new
            spread = max(found["old"]) / min(found["old"]) - 1
            print(f"{name:<8} {figure:<44} {old:12.5g} {new:12.5g}  x{ratio:.3f}  old build's rounds {spread:.0%} apart", flush=True)


if __name__ == "__main__":
    main()
