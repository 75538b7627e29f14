#!/usr/bin/env python3
"""Pulls the rug: kills, failing disks, little memory, a jumping clock, many clients. Figures are in docs/reliability.md.

    python3 scripts/chaos [PART ...] [--quick] [--kills 1000] [--minutes 30] [--clients 200] ...

Every answer must be the one that a quiet server gives (everything in memory, no cache, no draft), byte for byte, or a refusal
with a reason; what was whole on disk stays whole; the server never ends by itself. Needs the demo, Linux and a C compiler.
Prints one JSON object; exit code 1 if anything was wrong. --quick does a little of everything in about four minutes.
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import server
from parts import PARTS, quiet_judge
from server import ROOT

QUICK = {"kills": 12, "seconds": 1, "sweep": 12, "budgets": 2, "minutes": 0.25, "clients": 50, "requests": 12}


def main():
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"all of them if none is named: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="little of each")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=8, help="of each fault of a disk and each budget of memory")
    parser.add_argument("--sweep", type=int, default=10**9, help="reads of a run that are made to fail in turn, at most")
    parser.add_argument("--budgets", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=40, help="that differ")
    parser.add_argument("--binaries", metavar="DIR", help="a directory of mach-serve, instead of building it here")
    args = parser.parse_args()
    if unknown := set(args.part) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    if args.quick:
        vars(args).update(QUICK)
    if not os.path.isdir("/proc/self/fd") or not shutil.which("cc"):
        print("SKIPPED: this needs Linux and a C compiler")
        return 0
    if args.binaries:
        server.BINARIES = pathlib.Path(args.binaries).resolve()
    else:
        subprocess.run(["cargo", "build", "--release", "--bin", "mach-serve"], cwd=ROOT, check=True)
    reports = {}
    with tempfile.TemporaryDirectory(prefix="mach-chaos-") as work:
        judge = quiet_judge(work, args.requests)
        for name in args.part or PARTS:
            print(f"{name}: {PARTS[name].__doc__}", flush=True)
            start = time.monotonic()
            reports[name] = report = PARTS[name](judge, work, args)
            judge.reset()
            report["seconds"] = round(time.monotonic() - start)
            print(f"  {json.dumps(report)}", flush=True)
            if report.faults:
                with open(os.path.join(work, "log")) as log:
                    print("  the log's end:\n" + log.read()[-3000:])
    print(json.dumps(reports))
    wrong = sum(report["wrong"] for report in reports.values())
    print(f"chaos: {wrong} wrong" if wrong else "chaos: passed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
