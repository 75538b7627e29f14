#!/usr/bin/env python3
"""Streams a checkpoint inside a memory limit, and llama.cpp's mapped file on the same weights inside the same limit.

    bench/stream_limited.py CHECKPOINT --gguf TWIN.gguf --python PYTHON-WITH-llama_cpp --label qwen3-30b-a3b

CHECKPOINT is in engine format (`mach convert`), TWIN.gguf is what `bench/gguf_from_synth.py` wrote of its source. Each run is in a
control group of its own (version 1 or 2; needs the right to make one) that is allowed `--share` of the checkpoint, its
file evicted from the page cache first, so that no cache helps. Runs are interleaved, mach first and last. mach gets the
same number as `--memory-gb`. llama.cpp maps its file, as it does by default. `--read-ahead-kib` sets the drive's read-ahead for
the whole comparison (a large one makes a mapped file read much more than it needs) and puts it back; 0 leaves it alone. Raw samples land in
bench/results/ with the facts of the machine and the peaks that the control groups saw.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import bench_common as common

HERE = pathlib.Path(__file__).resolve().parent
CGROUP = pathlib.Path("/sys/fs/cgroup")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--gguf", type=pathlib.Path, help="without it only mach runs")
    parser.add_argument("--mach", type=pathlib.Path, default=HERE.parent / "target" / "release" / "mach")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has llama_cpp")
    parser.add_argument("--label", help="name of the shape, for the result's file name; default: the checkpoint's name")
    parser.add_argument("--share", type=float, default=0.25, help="memory limit as a share of the checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--reps", type=int, default=2)
    parser.add_argument("--peer-prompt", type=int, default=16, help="prompt tokens for llama.cpp, whose prompts are slow here")
    parser.add_argument("--runs", type=int, default=1, help="runs of llama.cpp; mach runs once more")
    parser.add_argument("--read-ahead-kib", type=int, default=128)
    parser.add_argument("--prefix", nargs="*", default=[], help="command that each measurement is run by")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    return parser.parse_args()


class Group:
    """A control group with a memory limit, for one process."""

    def __init__(self, limit):
        if (CGROUP / "cgroup.controllers").exists():
            self.path, names = CGROUP / f"mach-bench-{os.getpid()}", ("memory.max", "memory.peak")
        else:
            self.path = CGROUP / "memory" / f"mach-bench-{os.getpid()}"
            names = ("memory.limit_in_bytes", "memory.max_usage_in_bytes")
        self.peak_file = self.path / names[1]
        self.path.mkdir()
        (self.path / names[0]).write_text(str(limit))

    def enter(self):
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def close(self):
        peak = int(self.peak_file.read_text()) if self.peak_file.exists() else None
        self.path.rmdir()
        return peak


def drives(path):
    """Read-ahead settings of the block devices below a file."""
    device = os.stat(path).st_dev
    link = pathlib.Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    return [d / "queue" / "read_ahead_kb" for d in (link, link.parent) if (d / "queue" / "read_ahead_kb").exists()][:1]


def run(args, name, command, limit):
    common.evict(args.checkpoint)
    if args.gguf:
        common.evict(args.gguf)
    print(f"{common.now()}  {name} in {limit / 1e9:.2f} GB ...", file=sys.stderr, flush=True)
    group = Group(limit)
    try:
        done = subprocess.run([*args.prefix, *map(str, command)], stdout=subprocess.PIPE, preexec_fn=group.enter)
    finally:
        peak = group.close()
    if done.returncode != 0:
        sys.exit(f"{name} failed with exit code {done.returncode}")
    return json.loads(done.stdout) | {"group_peak_bytes": peak}


def median_rate(phases):
    return common.median([phase["tokens"] / phase["seconds"] for phase in phases])


def run_mach(args, limit):
    # What the kernel holds for the process (page tables, buffers of sockets) counts in the group, not in the process.
    budget = limit * 0.98 / 1e9
    found = run(args, "mach", [
        args.mach, "bench", "stream", args.checkpoint, "--streaming", "--memory-gb", f"{budget:.3f}",
        "--threads", args.threads, "--prompt", args.prompt, "--decode", args.decode, "--reps", args.reps,
        "--max-context", max(1024, args.prompt + args.decode), "--json",
    ], limit)  # fmt: skip
    share = common.median([p["bytes"] / p["busy_seconds"] / p["ceiling"] for p in found["decode"]])
    overlap = common.median(
        [max(p["bytes"] / p["ceiling"], p["seconds"] - p["stall_seconds"]) / p["seconds"] for p in found["prefill"]]
    )
    found["summary"] = {
        "prefill_tok_s": median_rate(found["prefill"]),
        "decode_tok_s": median_rate(found["decode"]),
        "drive_share_while_decoding": share,
        "prefill_share_of_limit": overlap,
        "peak_over_budget": found["peak_bytes"] / found["budget_bytes"] - 1,
        "group_peak_over_budget": found["group_peak_bytes"] / found["budget_bytes"] - 1,
    }
    print(f"    {found['summary']}", file=sys.stderr)
    return found


def run_llama(args, limit):
    found = run(args, "llama.cpp", [
        args.python, HERE / "llama_bench.py", args.gguf, "--mmap", "--threads", args.threads,
        "--prompt", args.peer_prompt, "--decode", args.decode, "--reps", args.reps, "--ubatch", 512,
    ], limit)  # fmt: skip
    rate = common.median(found["settings"][0]["decode"])
    print(f"    decode {rate:.2f} tok/s", file=sys.stderr)
    return found


def main():
    args = arguments()
    size = sum(f.stat().st_size for f in args.checkpoint.rglob("*") if f.suffix in (".safetensors", ".experts"))
    limit = int(size * args.share)
    settings = {file: file.read_text() for file in drives(args.checkpoint)} if args.read_ahead_kib else {}
    started = common.now()
    mach, peers = [], []
    try:
        for file in settings:
            file.write_text(str(args.read_ahead_kib))
        mach.append(run_mach(args, limit))
        for _ in range(args.runs if args.gguf else 0):
            peers.append(run_llama(args, limit))
            mach.append(run_mach(args, limit))
    finally:
        for file, value in settings.items():
            file.write_text(value)
    label = args.label or args.checkpoint.resolve().name
    ours = [run["summary"]["decode_tok_s"] for run in mach]
    theirs = [common.median(run["settings"][0]["decode"]) for run in peers]
    verdict = {
        "mach_decode": ours,
        "llama_decode": theirs,
        "ratio": common.median(ours) / common.median(theirs) if theirs else None,
        "mach_drift": max((common.drift(ours[0], value) for value in ours[1:]), default=0.0),
    }
    result = {
        "started": started,
        "finished": common.now(),
        "revision": common.revision(),
        "label": label,
        "random_routing": (args.checkpoint / "synthetic.json").exists(),
        "checkpoint_bytes": size,
        "gguf_bytes": args.gguf.stat().st_size if args.gguf else None,
        "limit_bytes": limit,
        "read_ahead_kib": args.read_ahead_kib or None,
        "machine": mach[0]["machine"],
        "verdict": verdict,
        "mach": mach,
        "llama": peers,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{started.replace(':', '').replace('-', '')}-{label}-stream.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(verdict, indent=1))
    print(file.name)


if __name__ == "__main__":
    main()
