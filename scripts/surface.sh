#!/usr/bin/env bash
# Walks mach's documented surface row by row against a running build: commands, flags, variables, routes, fields,
# startup lines. Each row prints `ok`, `not yet` (documented, known to be missing) or `WRONG`. Exit code 1 if a row is
# wrong, or if one that is listed as missing works by now.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v python3 >/dev/null || { echo "SKIPPED: there is no Python here"; exit 0; }
cargo build --release --bins
exec python3 scripts/surface.py target/release demo
