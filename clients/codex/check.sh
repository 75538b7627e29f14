#!/usr/bin/env bash
# Has Codex complete a turn with a call of a tool and a second turn against a running server, with its own instructions and tools (about
# 10,000 tokens), and hear from another server that there is no room for them. The tool is of a tool server, so that Codex offers it in
# a group. Other addresses than the loopback go to a proxy that is not there.
# Usage: check.sh CODEX BASE_URL SHORT_BASE_URL (ending in /v1)
set -euo pipefail
codex=$1 base=$2 short=$3
weather=$(cd "$(dirname "$0")/../agents" && pwd)/weather.py
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
mkdir "$home/project" "$home/.codex"
cd "$home/project"

export HOME=$home CODEX_HOME=$home/.codex
export HTTPS_PROXY=http://127.0.0.1:9 HTTP_PROXY=http://127.0.0.1:9 NO_PROXY=127.0.0.1,localhost
configure() {
    cat >"$CODEX_HOME/config.toml" <<END
model = "demo"
model_provider = "mach"
[model_providers.mach]
name = "mach"
base_url = "$1"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
[mcp_servers.weather]
command = "python3"
args = ["$weather", "$home/calls"]
default_tools_approval_mode = "approve"
END
}
run() {
    timeout 300 "$codex" exec "$@" </dev/null 2>"$home/errors" || true
}
fail() {
    echo "$1:"
    printf '%s\n' "$answer" | tail -n 5
    tail -n 5 "$home/errors"
    exit 1
}

configure "$base"
answer=$(run --json --skip-git-repo-check "What is the weather in Paris?")
[ "$(cat "$home/calls" 2>/dev/null)" = Paris ] || fail "Codex was not told to call the tool"
case $answer in
*'"type":"agent_message"'*'"type":"turn.completed"'*) echo "ok   a turn of Codex with a call of a tool" ;;
*) fail "the turn was not completed" ;;
esac

answer=$(run resume --last --json --skip-git-repo-check "what is the sea?")
cached=$(printf '%s\n' "$answer" | grep -o '"cached_input_tokens":[0-9]*' | tail -n 1 | grep -o '[0-9]*$' || echo 0)
[ "$cached" -gt 9000 ] || fail "the second turn found $cached tokens of the first in the cache"
echo "ok   a second turn, $cached tokens of it from the cache"

configure "$short"
answer=$(run --json --skip-git-repo-check "hello")
case $answer in
*"ran out of room in the model's context window"*) echo "ok   a prompt that is too long is known for one" ;;
*) fail "a prompt that is too long was answered with" ;;
esac
