#!/usr/bin/env python3
"""Checks that the licence of every dependency is in deny.toml's allow list, and that all come from the registry.

The part of `cargo deny check licenses sources` that matters here, without the minutes that building cargo-deny takes.
Exit code 1 names each offender.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def allowed(expression, allow):
    """Whether an SPDX expression can be met with licences of `allow`. The old form `A/B` means `A OR B`."""
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def choice(at):
        met, at = every(at)
        while at < len(words) and words[at] == "OR":
            right, at = every(at + 1)
            met = met or right
        return met, at

    def every(at):
        met, at = term(at)
        while at < len(words) and words[at] == "AND":
            right, at = term(at + 1)
            met = met and right
        return met, at

    def term(at):
        if at >= len(words) or words[at] in ("OR", "AND", "WITH", ")"):
            raise ValueError(expression)
        if words[at] == "(":
            met, at = choice(at + 1)
            if at >= len(words) or words[at] != ")":
                raise ValueError(expression)
            return met, at + 1
        name, at = words[at], at + 1
        if at + 1 < len(words) and words[at] == "WITH":
            name, at = f"{name} WITH {words[at + 1]}", at + 2
        return name in allow, at

    met, at = choice(0)
    if at != len(words):
        raise ValueError(expression)
    return met


def self_check():
    allow = {"MIT", "Apache-2.0", "X WITH y"}
    for expression, expected in [
        ("MIT", True), ("GPL-3.0", False), ("GPL-3.0 OR MIT", True), ("GPL-3.0 AND MIT", False), ("MIT/GPL-3.0", True),
        ("(MIT OR GPL-3.0) AND Apache-2.0", True), ("(MIT AND GPL-3.0) OR BSD", False), ("X WITH y AND MIT", True),
        ("X", False),
    ]:  # fmt: skip
        assert allowed(expression, allow) is expected, expression


def main():
    self_check()
    allow = set(tomllib.loads((ROOT / "deny.toml").read_text())["licenses"]["allow"])
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    packages = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)["packages"]
    wrong = []
    for package in packages:
        name = f"{package['name']} {package['version']}"
        source = package["source"]
        if source is not None and not source.startswith(("registry+", "sparse+")):
            wrong.append(f"{name}: comes from {source}")
        licence = package["license"]
        try:
            if licence is None or not allowed(licence, allow):
                wrong.append(f"{name}: licence {licence!r} is not allowed by deny.toml")
        except ValueError:
            wrong.append(f"{name}: licence {licence!r} is not an expression that can be read")
    for line in wrong:
        print(line)
    print(f"{len(packages)} packages, {len(wrong)} not allowed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
