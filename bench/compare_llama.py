#!/usr/bin/env python3
"""Compares mach with llama.cpp on the same weights, on this machine, now.

    bench/compare_llama.py CHECKPOINT GGUF --python PYTHON-WITH-llama_cpp --label qwen3-30b-a3b-12l

CHECKPOINT is a directory that `mach bench` takes, GGUF the twin that `bench/gguf_from_synth.py` wrote of it. The runs
are interleaved: mach, llama.cpp in half of its settings, mach, the other half, mach again. If any two of mach's runs
differ by more than 5 % the machine was not quiet and the comparison is void: it is written down as void, and the exit
code is 3. llama.cpp is given its best: weights in memory on huge pages, repacked or not, several batch sizes; its best
setting is taken apart for prefill and for decode. Every raw sample lands in bench/results/ with the facts of the machine.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import bench_common as common

HERE = pathlib.Path(__file__).resolve().parent
LIMIT = 0.05


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--mach", type=pathlib.Path, default=HERE.parent / "target" / "release" / "mach")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has llama_cpp")
    parser.add_argument("--label", help="name of the shape, for the result's file name; default: the checkpoint's name")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ubatch", type=int, nargs="+", default=[512, 128])
    parser.add_argument("--flash", choices=["auto", "on", "off"], nargs="+", default=["auto"])
    parser.add_argument("--with-mmap", action="store_true", help="also time llama.cpp with the file mapped")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    return parser.parse_args()


def sizes(args):
    return [
        "--threads", str(args.threads), "--prompt", str(args.prompt),
        "--decode", str(args.decode), "--reps", str(args.reps), "--seed", str(args.seed),
    ]  # fmt: skip


def run(args, name, command, environment=None):
    """Runs one engine on a page cache without either file and returns the JSON that it prints."""
    common.evict(args.checkpoint)
    common.evict(args.gguf)
    print(f"{common.now()}  {name} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})})
    if done.returncode != 0:
        sys.exit(f"{name} failed with exit code {done.returncode}")
    try:
        return json.loads(done.stdout)
    except ValueError as error:
        sys.exit(f"{name} did not print JSON: {error}")


def run_mach(args):
    found = run(args, "mach", [args.mach, "bench", args.checkpoint, *sizes(args), "--json"])
    print(f"    {speeds(found)}", file=sys.stderr)
    return found


def speeds(found):
    return "  ".join(f"{what} {found[what]['tokens_per_second']:.2f} tok/s" for what in ("prefill", "decode"))


def run_llama(args, repack, mmap):
    flags = [flag for flag, on in (("--repack", repack), ("--mmap", mmap)) if on]
    command = [args.python, HERE / "llama_bench.py", args.gguf, *sizes(args), *flags]
    command += ["--ubatch", *map(str, args.ubatch), "--flash", *args.flash]
    # Its allocator asks for huge pages only when told to; mach's does so by itself.
    found = run(args, f"llama.cpp {flags}", command, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})
    for setting in found["settings"]:
        prefill, decode = common.median(setting["prefill"]), common.median(setting["decode"])
        print(
            f"    ubatch {setting['ubatch']} flash {setting['flash']}:"
            f"  prefill {prefill:.2f} tok/s  decode {decode:.2f} tok/s",
            file=sys.stderr,
        )
    return found


def best(peers, what):
    """The setting with the highest median."""
    settings = [setting for peer in peers for setting in peer["settings"]]
    top = max(settings, key=lambda setting: common.median(setting[what]))
    chosen = {key: top[key] for key in ("repack", "mmap", "ubatch", "flash")}
    return {"tokens_per_second": common.median(top[what]), "setting": chosen}


def verdict(mach, peers):
    """Speeds side by side, and the drift among mach's runs."""
    result = {}
    for what in ("prefill", "decode"):
        ours = [run[what]["tokens_per_second"] for run in mach]
        theirs = best(peers, what)
        mean = common.median(ours)
        result[what] = {
            "mach": mean,
            "mach_runs": ours,
            "mach_drift": max(common.drift(ours[0], value) for value in ours[1:]),
            "mach_fraction_of_ceiling": [run[what]["fraction"] for run in mach],
            "llama_best": theirs["tokens_per_second"],
            "llama_best_setting": theirs["setting"],
            "ratio": mean / theirs["tokens_per_second"],
        }
    result["void"] = any(result[what]["mach_drift"] > LIMIT for what in ("prefill", "decode"))
    return result


def main():
    args = arguments()
    for path in (args.checkpoint, args.gguf, args.mach):
        if not path.exists():
            sys.exit(f"{path} does not exist")
    label = args.label or args.checkpoint.resolve().name
    started = common.now()
    mach, peers = [run_mach(args)], []
    ways = [(True, False), (False, False)] + ([(False, True)] if args.with_mmap else [])
    for repack, mmap in ways:
        peers.append(run_llama(args, repack, mmap))
        mach.append(run_mach(args))
    result = {
        "started": started,
        "finished": common.now(),
        "revision": common.revision(),
        "label": label,
        "machine": mach[0]["machine"],
        "threads": args.threads,
        "prompt": args.prompt,
        "decode": args.decode,
        "reps": args.reps,
        "checkpoint_bytes": sum(f.stat().st_size for f in args.checkpoint.rglob("*.safetensors")),
        "gguf_bytes": args.gguf.stat().st_size,
        "verdict": verdict(mach, peers),
        "mach": mach,
        "llama": peers,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"{started.replace(':', '').replace('-', '')}-{label}-llama.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    for what in ("prefill", "decode"):
        v = result["verdict"][what]
        fraction = v["mach_fraction_of_ceiling"][0]
        share = f" ({100 * fraction:.1f} % of the ceiling)" if fraction else ""
        print(
            f"{what:8} mach {v['mach']:8.2f} tok/s{share}   llama.cpp {v['llama_best']:8.2f} tok/s"
            f" {v['llama_best_setting']}   ratio {v['ratio']:.2f}   drift {100 * v['mach_drift']:.1f} %"
        )
    print(file.name)
    if result["verdict"]["void"]:
        print(f"VOID: mach's own runs differ by more than {100 * LIMIT:.0f} %; the machine was not quiet")
        sys.exit(3)


if __name__ == "__main__":
    main()
