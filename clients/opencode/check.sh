#!/usr/bin/env bash
# Has OpenCode complete turns against a running server, with the repository's configuration: one without tools, and one with a call of
# a tool by each of its providers, that is by each API. Other addresses than the loopback go to a proxy that is not there.
# Usage: check.sh OPENCODE BASE_URL (ending in /v1)
set -euo pipefail
opencode=$1 base=$2
config=$(cd "$(dirname "$0")/../../.opencode-config" && pwd)
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
mkdir "$home/project"
cd "$home/project"

# Nothing of the user's own settings, and no fetching of model lists; the server's address replaces that of the configuration.
export HOME=$home XDG_CONFIG_HOME=$config XDG_DATA_HOME=$home/data XDG_CACHE_HOME=$home/cache XDG_STATE_HOME=$home/state
export OPENCODE_DISABLE_MODELS_FETCH=1 OPENCODE_DISABLE_AUTOUPDATE=1 OPENCODE_DISABLE_LSP_DOWNLOAD=1
export OPENCODE_CONFIG_CONTENT="{\"provider\":{\"mach\":{\"options\":{\"baseURL\":\"$base\"}}}}"
# Anything else goes to a port where nobody listens.
export HTTPS_PROXY=http://127.0.0.1:9 HTTP_PROXY=http://127.0.0.1:9 NO_PROXY=127.0.0.1,localhost
answer=$(timeout 300 "$opencode" run "Write a binary search in Python" </dev/null 2>"$home/errors") || {
    echo "opencode failed:"
    cat "$home/errors"
    exit 1
}
printf '%s\n' "$answer" | head -n 5
case $answer in
*def*) echo "ok   a turn of OpenCode" ;;
*)
    echo "opencode said nothing of use:"
    cat "$home/errors"
    exit 1
    ;;
esac

# OpenCode calls a tool by the name of its server and its own.
weather=$(cd "$config/../clients/agents" && pwd)/weather.py
for provider in openai-compatible openai anthropic; do
    export OPENCODE_CONFIG_CONTENT="{
      \"mcp\": {\"get\": {\"type\": \"local\", \"enabled\": true,
        \"command\": [\"python3\", \"$weather\", \"$home/$provider\", \"weather\"]}},
      \"provider\": {\"mach\": {\"npm\": \"@ai-sdk/$provider\", \"options\": {\"baseURL\": \"$base\"},
        \"models\": {\"demo\": {\"limit\": {\"context\": 40960, \"output\": 1024}}}}}}"
    timeout 300 "$opencode" run "What is the weather in Paris?" </dev/null >"$home/answer" 2>"$home/errors" || true
    if [ "$(cat "$home/$provider" 2>/dev/null)" != Paris ] || ! grep -q '[a-z]' "$home/answer"; then
        echo "no call of the tool came through @ai-sdk/$provider:"
        cat "$home/answer" "$home/errors"
        exit 1
    fi
    echo "ok   a call of a tool through @ai-sdk/$provider"
done
