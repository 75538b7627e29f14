#!/usr/bin/env python3
"""Holds the project's documents to what is there: relative links and paths in backticks lead to files, lines are at most
100 columns wide outside of tables, code and links, every crate and every command stands in the README."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
WIDTH = 100
# Texts of models, line by line as they came.
AS_WRITTEN = {"demo/samples.md"}
# What a path in backticks begins with, to be one.
TOP = ("crates/", "src/", "docs/", "scripts/", "tests/", "fixtures/", "demo/", "bench/", "clients/", "examples/", "fuzz/", ".ci/")


def documents():
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split()]


def leads_somewhere(path):
    """A word in capitals, as in `src/NAME.rs`, stands for any name."""
    return any(ROOT.glob(re.sub(r"\b[A-Z]{3,}\b(?=\.\w+$|/|$)", "*", path))) or (ROOT / path).exists()


def faults(document):
    name, text = document.relative_to(ROOT), document.read_text()
    code = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("```"):
            code = not code
        if code or line.startswith("    "):
            continue
        if len(line) > WIDTH and str(name) not in AS_WRITTEN and not line.startswith("|") and "](" not in line and "://" not in line:
            yield f"{name}:{number}: {len(line)} columns"
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", line):
            if "://" not in target and not target.startswith("mailto:") and not (document.parent / target).exists():
                yield f"{name}:{number}: the link to {target} leads nowhere"
        for path in re.findall(r"`([\w./*{}<>$-]+)`", line):
            path = path.rstrip(".")
            if path.startswith(TOP) and not leads_somewhere(path):
                yield f"{name}:{number}: there is no {path}"


def missing_in_readme():
    text = (ROOT / "README.md").read_text()
    for crate in sorted(path.name for path in (ROOT / "crates").iterdir() if (path / "Cargo.toml").is_file()):
        if f"`crates/{crate}`" not in text:
            yield f"README.md: crates/{crate} is not named"
    commands = (ROOT / "src/cli.rs").read_text().split("enum Command {")[1].split("}")[0]
    for variant in re.findall(r"^    (\w+)\(", commands, re.M):
        command = re.sub(r"(?<!^)(?=[A-Z])", "-", variant).lower()
        if f"mach {command}" not in text:
            yield f"README.md: `mach {command}` is not named"
    for binary in sorted((ROOT / "src/bin").glob("*.rs")):
        if f"`{binary.stem}" not in text:
            yield f"README.md: `{binary.stem}` is not named"


def main():
    found = [fault for document in documents() for fault in faults(document)] + list(missing_in_readme())
    print("\n".join(found) or "documents: nothing wrong")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
