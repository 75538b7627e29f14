#!/usr/bin/env bash
# Has OpenCode complete one turn against a running server, with the repository's configuration. Other addresses than the
# loopback go to a proxy that is not there.
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
