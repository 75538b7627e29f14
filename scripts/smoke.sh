#!/usr/bin/env bash
# Serves the demo checkpoint on a free port, walks every endpoint with examples/curl_smoke.sh, and stops the server
# with SIGTERM: it must drain and exit with code 0.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v curl >/dev/null || { echo "SKIPPED: there is no curl here"; exit 0; }
cargo build --release --bin mach-serve
work=$(mktemp -d)
log=$work/log
port=$((20000 + RANDOM % 20000))
target/release/mach-serve demo --no-streaming --port "$port" --disk-kv-dir "$work/kv" >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

ready=no
for _ in $(seq 300); do
    if curl -sf -o /dev/null "http://127.0.0.1:$port/v1/models"; then ready=yes; break; fi
    kill -0 "$server" 2>/dev/null || break
    sleep 0.2
done
if [ "$ready" = no ]; then
    echo "the server did not become ready:"
    cat "$log"
    exit 1
fi
examples/curl_smoke.sh "http://127.0.0.1:$port" || { echo "server log:"; cat "$log"; exit 1; }

kill -TERM "$server"
code=0
wait "$server" || code=$?
if [ "$code" != 0 ]; then
    echo "the server ended with code $code after SIGTERM:"
    cat "$log"
    exit 1
fi
echo "smoke passed"
