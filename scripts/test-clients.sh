#!/usr/bin/env bash
# Serves the demo checkpoint and checks it with real clients at pinned versions: the official `openai` and `anthropic` packages for
# Python and Node, what builds on them, OpenCode, Codex, and Claude Code; `mach chat` is driven through a terminal, the page at `/` with
# a headless Chromium. What cannot be installed here is skipped with a line that says so.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib/server.sh

start_server
base=$url/v1
# One that is full at once, for 429s.
target/release/mach-serve demo --no-streaming --port 0 --no-prefix-cache --max-batch 1 --max-queue 1 \
    >"$work/narrow" 2>"$work/narrow.log" &
narrow=$!
# One with a context that holds the instructions and tools of agents.
target/release/mach-serve demo --no-streaming --port 0 --disk-kv-dir "$work/wide-kv" --response-store-dir "$work/wide-store" \
    --max-context 40960 --stretch-context >"$work/wide" 2>"$work/wide.log" &
wide=$!
# One whose prefix cache holds few sessions and has no disk.
target/release/mach-serve demo --no-streaming --port 0 --disk-kv-budget-gb 0 --prefix-cache-max-gb 0.075 --no-response-store \
    >"$work/small" 2>"$work/small.log" &
small=$!
trap 'stop_servers "$server" "$narrow" "$wide" "$small"' EXIT
# address NAME PROCESS: waits until a server is ready.
address() {
    until grep -q '^startup ready' "$work/$1"; do
        kill -0 "$2" || { cat "$work/$1.log"; exit 1; }
        sleep 0.2
    done
    sed -n 's/^startup listening url=\([^ ]*\).*/\1/p' "$work/$1"
}
full=$(address narrow "$narrow")/v1
roomy=$(address wide "$wide")/v1

if command -v python3 >/dev/null; then
    python3 clients/agents/replay.py "$(address small "$small")"
    echo "agents' sessions: passed"
    cargo build --release --bin mach
    python3 clients/terminal/check.py target/release/mach demo
    echo "mach chat on a terminal: passed"
else
    echo "agents' sessions, mach chat on a terminal: SKIPPED, there is no Python here"
fi

if python3 -m venv "$work/venv" 2>/dev/null &&
    "$work/venv/bin/pip" install -q -r clients/python/requirements.txt 2>"$work/pip.log"; then
    "$work/venv/bin/python" clients/python/check.py "$base" "$full"
    "$work/venv/bin/python" clients/python/messages.py "$url"
    "$work/venv/bin/python" clients/python/responses.py "$base"
    echo "python client: passed"
    # All of them, or each that can be had.
    "$work/venv/bin/pip" install -q -r clients/python/frameworks.txt 2>"$work/pip.log" || while read -r package; do
        "$work/venv/bin/pip" install -q "$package" 2>"$work/pip.log" || echo "$package: SKIPPED, it cannot be installed here"
    done <clients/python/frameworks.txt
    "$work/venv/bin/python" -W ignore clients/python/frameworks.py "$url"
    echo "python frameworks: passed"
else
    echo "python client: SKIPPED, its packages cannot be installed here"
fi

# node_packages DIRECTORY: installs what its package.json names, in a copy.
node_packages() {
    cp -r "clients/$1" "$work/$1"
    command -v npm >/dev/null && (cd "$work/$1" && npm install --silent --no-audit --no-fund >"$work/npm.log" 2>&1)
}

if node_packages node; then
    (cd "$work/node" && node check.mjs "$base" "$full" && node messages.mjs "$url" && node responses.mjs "$base")
    echo "node client: passed"
else
    echo "node client: SKIPPED, its packages cannot be installed here"
fi

if node_packages opencode && "$work/opencode/node_modules/.bin/opencode" --version >/dev/null 2>&1; then
    clients/opencode/check.sh "$work/opencode/node_modules/.bin/opencode" "$roomy"
    echo "opencode: passed"
else
    echo "opencode: SKIPPED, its package cannot be installed here"
fi

if node_packages codex && "$work/codex/node_modules/.bin/codex" --version >/dev/null 2>&1; then
    clients/codex/check.sh "$work/codex/node_modules/.bin/codex" "$roomy" "$base"
    echo "codex: passed"
else
    echo "codex: SKIPPED, its package cannot be installed here"
fi

if node_packages claude-code && "$work/claude-code/node_modules/.bin/claude" --version >/dev/null 2>&1; then
    clients/claude-code/check.sh "$work/claude-code/node_modules/.bin/claude" "$url"
    echo "claude code: passed"
else
    echo "claude code: SKIPPED, its package cannot be installed here"
fi

# The page, on a server that streams and drafts whatever that costs, and on one with a key.
if node_packages page && (cd "$work/page" && node browser.mjs --probe >"$work/browser.log" 2>&1); then
    secret=page-check
    target/release/mach-serve demo --streaming --expert-cache-gb 0.02 --serving-block-guard off --port 0 --disk-kv-budget-gb 0 \
        >"$work/drafting" 2>"$work/drafting.log" &
    drafting=$!
    target/release/mach-serve demo --no-streaming --api-key "$secret" --port 0 --disk-kv-budget-gb 0 \
        >"$work/locked" 2>"$work/locked.log" &
    locked=$!
    trap 'stop_servers "$server" "$narrow" "$wide" "$small" "$drafting" "$locked"' EXIT
    for one in drafting locked; do
        until grep -q '^startup ready' "$work/$one"; do
            kill -0 "${!one}" || { cat "$work/$one.log"; exit 1; }
            sleep 0.2
        done
    done
    address() { sed -n 's/^startup listening url=\([^ ]*\).*/\1/p' "$work/$1"; }
    (cd "$work/page" && timeout 180 node check.mjs "$(address drafting)" "$(address locked)" "$secret")
    echo "page: passed"
else
    echo "page: SKIPPED, a headless browser cannot be installed here"
fi
