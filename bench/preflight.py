#!/usr/bin/env python3
"""What `mach check` predicts beside what is measured: memory of a server, and decoding.

    bench/preflight.py CHECKPOINT --banks 1.0 2.0 4.0 [--resident] [--context 2048] [--label NAME]

For each size of the bank in GB (and with all experts in memory): `mach check --probe --json`, a server that is given one
prompt of the context and its peak of resident memory, and `mach bench stream` (or `mach bench`) for the speed of
decoding random tokens, as the forecast assumes. The forecast is made twice: with the hit rate that `mach check`
assumes by itself, and with the one that was measured, which tells the model of time from the guess about routing.
Results land in bench/results/.
"""

import argparse
import json
import pathlib
import re
import signal
import statistics
import subprocess
import urllib.request

import bench_common as common

HERE = pathlib.Path(__file__).resolve().parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("--banks", type=float, nargs="*", default=[], help="sizes of the bank in GB")
    parser.add_argument("--resident", action="store_true", help="with all experts in memory, too")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--decode", type=int, default=48)
    parser.add_argument("--reps", type=int, default=2)
    parser.add_argument("--wired-gb", type=float, default=1000.0)
    parser.add_argument("--bin", type=pathlib.Path, default=HERE.parent / "target" / "release")
    parser.add_argument("--label", help="name for the result's file")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results")
    return parser.parse_args()


def run_json(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if not done.stdout.strip():
        raise SystemExit(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def server_peak(args, flags):
    """Peak of resident memory of a server that has answered one prompt of the context."""
    words = [args.bin / "mach-serve", args.checkpoint, *flags, "--port", 0, "--no-response-store", "--disk-kv-budget-gb", 0]
    words += ["--max-context", args.context]
    server = subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = model = None
        for line in server.stdout:
            if found := re.search(r"url=(\S+)", line):
                url = found[1]
            if found := re.search(r"startup ready models=(\S+)", line):
                model = found[1]
                break
        if model is None:
            raise SystemExit("the server did not start")
        prompt = common.token_ids(7, args.context - 17, 16000)
        body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0}).encode()
        headers = {"content-type": "application/json"}
        urllib.request.urlopen(urllib.request.Request(url + "/v1/completions", body, headers)).read()
        status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1])
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def measured_decode(args, flags, streamed):
    """Tokens a second, and the hit rate."""
    words = ["--prompt", args.context // 2, "--decode", args.decode, "--reps", args.reps, "--json"]
    if not streamed:
        report = run_json(args.bin / "mach", "bench", args.checkpoint, *words)
        return report["decode"]["tokens_per_second"], 1.0
    report = run_json(args.bin / "mach", "bench", "stream", args.checkpoint, *flags, *words)
    phases = report["decode"]
    hits, misses = (sum(phase[key] for phase in phases) for key in ("hits", "misses"))
    return statistics.median(p["tokens"] / p["seconds"] for p in phases), hits / max(hits + misses, 1)


def compare(args, name, flags, part):
    check = [args.bin / "mach", "check", args.checkpoint, *flags, "--context", args.context, "--max-context", args.context]
    check += ["--json", "--disk-kv-budget-gb", 0]
    predicted = run_json(*check, "--probe")
    peak = server_peak(args, flags)
    decode, hits = measured_decode(args, flags, part == "streaming")
    informed = predicted if part == "resident" else run_json(*check, "--probe", "--hit-rate", min(hits, 1.0))
    memory = predicted[part]["expected_peak_bytes"]
    speeds = [report["forecast"][part]["decode"] for report in (predicted, informed)]
    row = {
        "case": name,
        "flags": [str(flag) for flag in flags],
        "peak_bytes": peak,
        "predicted_peak_bytes": memory,
        "peak_ratio": memory / peak,
        "decode": decode,
        "forecast_decode": speeds[0],
        "forecast_decode_with_measured_hits": speeds[1],
        "hit_rate": hits,
        "assumed_hit_rate": predicted["forecast"][part]["hit_rate"],
        "dram_bytes_per_second": predicted["forecast"]["dram_bytes_per_second"],
        "drive_bytes_per_second": predicted["forecast"]["drive_bytes_per_second"],
    }
    print(
        f"{name:>10}  peak {peak / 1e6:9.1f} MB, predicted {100 * memory / peak - 100:+5.1f} %   decode {decode:7.2f} tok/s, "
        f"forecast {100 * speeds[0] / decode - 100:+6.1f} % (hits {row['assumed_hit_rate']:.2f} assumed, {hits:.2f} measured), "
        f"{100 * speeds[1] / decode - 100:+6.1f} % with measured hits",
        flush=True,
    )
    return row


def main():
    args = arguments()
    rows = []
    for bank in args.banks:
        flags = ["--streaming", "--expert-cache-gb", bank, "--wired-gb", args.wired_gb]
        rows.append(compare(args, f"{bank:g} GB", flags, "streaming"))
    if args.resident:
        rows.append(compare(args, "in memory", ["--no-streaming"], "resident"))
    machine = run_json(args.bin / "mach", "bench", "ceilings", "--buffer-mib", 256, "--json").get("machine")
    label = args.label or args.checkpoint.resolve().name
    result = {"label": label, "revision": common.revision(), "machine": machine, "context": args.context, "rows": rows}
    args.out.mkdir(exist_ok=True)
    file = args.out / f"preflight-{label}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(file)


if __name__ == "__main__":
    main()
