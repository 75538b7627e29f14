#!/usr/bin/env bash
# Serves the demo checkpoint and checks it with the official `openai` packages for Python and Node, at pinned versions.
# What cannot be installed here is skipped with a line that says so.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo build --release --bin mach-serve
work=$(mktemp -d)
target/release/mach-serve demo --no-streaming --port 0 --disk-kv-dir "$work/kv" >"$work/out" 2>"$work/log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

for _ in $(seq 300); do
    grep -q '^startup ready' "$work/out" && break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.2
done
if ! grep -q '^startup ready' "$work/out"; then
    echo "the server did not become ready:"
    cat "$work/log"
    exit 1
fi
url=$(sed -n 's/^startup listening url=\([^ ]*\).*/\1/p' "$work/out")/v1

if python3 -m venv "$work/venv" 2>/dev/null &&
    "$work/venv/bin/pip" install -q -r clients/python/requirements.txt 2>"$work/pip.log"; then
    "$work/venv/bin/python" clients/python/check.py "$url"
    echo "python client: passed"
else
    echo "python client: SKIPPED, its packages cannot be installed here"
fi

cp -r clients/node "$work/node"
if command -v npm >/dev/null && (cd "$work/node" && npm install --silent --no-audit --no-fund >"$work/npm.log" 2>&1); then
    (cd "$work/node" && node check.mjs "$url")
    echo "node client: passed"
else
    echo "node client: SKIPPED, its packages cannot be installed here"
fi
