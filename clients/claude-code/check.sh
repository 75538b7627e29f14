#!/usr/bin/env bash
# Has Claude Code complete two turns against a running server, and hear that a prompt is too long. Its full prompt is longer
# than the demo's context, so it gets one tool and short instructions; the demo is too small a model to call it. Other addresses
# than the loopback go to a proxy that is not there.
# Usage: check.sh CLAUDE URL (without /v1)
set -euo pipefail
claude=$1 url=$2
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
mkdir "$home/project"
cd "$home/project"

export HOME=$home ANTHROPIC_BASE_URL=$url ANTHROPIC_AUTH_TOKEN=any
export CLAUDE_CODE_MAX_OUTPUT_TOKENS=400 CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 DISABLE_AUTOUPDATER=1 DISABLE_TELEMETRY=1
export HTTPS_PROXY=http://127.0.0.1:9 HTTP_PROXY=http://127.0.0.1:9 NO_PROXY=127.0.0.1,localhost
run() {
    timeout 300 "$claude" -p "$1" --model demo --output-format stream-json --verbose "${@:2}" </dev/null 2>&1
}

few=(--tools Read --system-prompt "You help.")
answer=$(run "what is 17?" "${few[@]}") || {
    echo "claude failed:"
    printf '%s\n' "$answer" | tail -n 5
    exit 1
}
case $answer in
*'"subtype":"success"'*'"is_error":false'*) echo "ok   a turn of Claude Code" ;;
*)
    echo "the turn was not completed:"
    printf '%s\n' "$answer" | tail -n 3
    exit 1
    ;;
esac

answer=$(run "and what is the sea?" "${few[@]}" --continue) || true
cached=$(printf '%s\n' "$answer" | grep -o '"cache_read_input_tokens":[0-9]*' | tail -n 1 | grep -o '[0-9]*$' || echo 0)
if [ "$cached" -lt 256 ]; then
    echo "the second turn found $cached tokens of the first in the cache:"
    printf '%s\n' "$answer" | tail -n 3
    exit 1
fi
echo "ok   a second turn, $cached tokens of it from the cache"

long=$(run "hello") || true
case $long in
*"Prompt is too long"*) echo "ok   a prompt that is too long is known for one" ;;
*)
    echo "a prompt that is too long was answered with:"
    printf '%s\n' "$long" | tail -n 3
    exit 1
    ;;
esac
