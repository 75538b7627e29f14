#!/usr/bin/env python3
"""Checks every dependency in Cargo.lock and fuzz/Cargo.lock against the RustSec advisory database.

    scripts/check-advisories.py              the database of today where git can fetch it, else the dated copy
    scripts/check-advisories.py --offline    the dated copy, scripts/advisories.json
    scripts/check-advisories.py --update DIR rewrites the copy from a checkout of the database

Exit code 1 names each package with an advisory that ADMITTED, below, does not give a reason for, and each reason that nothing
needs any more. The copy holds facts only (identifier, package, kind, version ranges; public domain, CC0).
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPY = ROOT / "scripts" / "advisories.json"
DATABASE = "https://github.com/rustsec/advisory-db"

# Advisories that are no reason not to build, and why.
ADMITTED = {
    "RUSTSEC-2024-0436": "paste is unmaintained, not unsafe: a macro that tokenizers expands at compile time, nothing of "
    "which is in the binary. It goes with the first release of tokenizers that drops it.",
}


def number(text):
    """A version as something that sorts as SemVer does. A pre-release sorts before its release."""
    match = re.fullmatch(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:-([0-9A-Za-z.-]+))?(?:\+.*)?", text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a version")
    pre = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in match[4].split(".")] if match[4] else [(2, 0, "")]
    return [int(match[i] or 0) for i in (1, 2, 3)], pre


def bumped(text):
    """The first version that `^text` does not take."""
    parts = [int(p) for p in re.split(r"[-+]", text)[0].split(".")]
    at = next((i for i, p in enumerate(parts) if p), len(parts) - 1)
    return ".".join(map(str, parts[:at] + [parts[at] + 1]))


def meets(version, requirement):
    """Whether a version is in a range such as `>= 1.2, < 2`, `^0.3.1`, `~1.4`, `= 1.0` or `1.2` (a caret's)."""
    for part in requirement.split(","):
        match = re.fullmatch(r"\s*(>=|<=|>|<|=|\^|~)?\s*([^\s]+)\s*", part)
        if not match:
            raise ValueError(f"{requirement!r} is not a range of versions")
        sign, bound = match[1] or "^", match[2]
        if bound == "*":
            continue
        here, there = number(version), number(bound)
        if sign == "~":
            parts = bound.split(".")
            end = ".".join(parts[:1] if len(parts) == 1 else parts[:2])
            upper = end.rsplit(".", 1)
            upper[-1] = str(int(upper[-1]) + 1)
            met = there <= here < number(".".join(upper))
        elif sign == "^":
            met = there <= here < number(bumped(bound))
        else:
            met = {">=": here >= there, "<=": here <= there, ">": here > there, "<": here < there, "=": here == there}[sign]
        if not met:
            return False
    return True


def read(directory):
    """The advisories of a checkout: `[id, package, kind, patched, unaffected]`, withdrawn ones left out."""
    found = []
    for path in sorted(pathlib.Path(directory).glob("crates/*/*.md")):
        block = re.search(r"```toml\n(.*?)```", path.read_text(), re.S)
        if not block:
            continue
        entry = tomllib.loads(block[1])
        advisory, versions = entry["advisory"], entry.get("versions", {})
        if "withdrawn" in advisory:
            continue
        kind = advisory.get("informational", "vulnerability")
        row = [advisory["id"], advisory["package"], kind, versions.get("patched", []), versions.get("unaffected", [])]
        found.append(row)
    if not found:
        raise ValueError(f"no advisories in {directory}")
    return found


def fetched():
    """The database of today and its date, or None if it cannot be had."""
    with tempfile.TemporaryDirectory() as directory:
        clone = ["git", "-c", "credential.helper=", "clone", "--quiet", "--depth", "1", DATABASE, directory]
        silent = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        try:
            subprocess.run(clone, check=True, timeout=60, stderr=subprocess.DEVNULL, env=silent)
            date = ["git", "-C", directory, "log", "-1", "--format=%cs"]
            return read(directory), subprocess.run(date, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None


def packages():
    found = set()
    for lock in (ROOT / "Cargo.lock", ROOT / "fuzz" / "Cargo.lock"):
        for package in tomllib.loads(lock.read_text())["package"]:
            if "source" in package:
                found.add((package["name"], package["version"]))
    return sorted(found)


def hits(advisories, packages):
    by_package = {}
    for row in advisories:
        by_package.setdefault(row[1], []).append(row)
    for name, version in packages:
        for row in by_package.get(name, []):
            if not any(meets(version, fine) for fine in row[3] + row[4]):
                yield f"{name} {version}", row


def self_check():
    for version, requirement, expected in [
        ("1.2.3", ">= 1.2, < 2", True), ("2.0.0", ">= 1.2, < 2", False), ("1.2.3", "^1.2", True), ("2.0.0", "^1.2", False),
        ("0.3.9", "^0.3.1", True), ("0.4.0", "^0.3.1", False), ("0.0.4", "^0.0.3", False), ("1.4.9", "~1.4", True),
        ("1.5.0", "~1.4", False), ("1.0.0-rc.1", ">= 1.0.0", False), ("1.0.0-rc.2", ">= 1.0.0-rc.1", True),
        ("1.0.0+x", "= 1.0.0", True), ("1.10.0", "> 1.9.0", True), ("0.9.4", "*", True),
    ]:  # fmt: skip
        assert meets(version, requirement) is expected, (version, requirement)
    rows = [["A", "x", "vulnerability", [">= 1.1"], ["< 1.0"]], ["B", "y", "unsound", [], []]]
    found = list(hits(rows, [("x", "0.9.0"), ("x", "1.0.5"), ("x", "1.1.0"), ("y", "3.0.0"), ("z", "1.0.0")]))
    assert [(package, row[0]) for package, row in found] == [("x 1.0.5", "A"), ("y 3.0.0", "B")], found


def main():
    self_check()
    if sys.argv[1:2] == ["--update"]:
        directory = sys.argv[2]
        date = subprocess.run(["git", "-C", directory, "log", "-1", "--format=%cs"], check=True, stdout=subprocess.PIPE)
        head = f'{{"date":"{date.stdout.decode().strip()}","advisories":[\n'
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in read(directory))
        COPY.write_text(head + rows + "\n]}\n")
        return 0
    today = None if "--offline" in sys.argv[1:] else fetched()
    if today:
        (advisories, date), origin = today, "fetched"
    else:
        copy = json.loads(COPY.read_text())
        advisories, date, origin = copy["advisories"], copy["date"], "the copy in scripts/advisories.json"
    locked, wrong, needed = packages(), 0, set()
    for package, (name, _, kind, patched, _) in hits(advisories, locked):
        needed.add(name)
        if name in ADMITTED:
            print(f"{package}: {name} ({kind}), admitted: {ADMITTED[name]}")
        else:
            wrong += 1
            print(f"{package}: {name} ({kind}), mended in {', '.join(patched) or 'no version'}")
    for name in sorted(set(ADMITTED) - needed):
        wrong += 1
        print(f"{name} is admitted, but nothing needs it any more")
    print(f"{len(locked)} packages against {len(advisories)} advisories of {date} ({origin}): {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
