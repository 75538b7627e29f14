#!/usr/bin/env bash
# Attacks on the memory of the demo server, and a storm of streams that break off at random: scripts/abuse.py says what must hold.
# Usage: scripts/test-abuse.sh [SECONDS] [STREAMS]        (20 and 200 if not given; minutes for a thorough run)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib/server.sh

[ -d /proc/self/fd ] || { echo "SKIPPED: there is no /proc here"; exit 0; }
command -v python3 >/dev/null || { echo "SKIPPED: there is no python3 here"; exit 0; }
# A small prefix cache is full soon, so that what still grows is a leak; a small budget is soon exceeded.
start_server --log-level warn --prefix-cache-max-gb 0.02 --request-memory-mib 96 --max-connections 300
budget=$(sed -n 's/^startup memory .*budget_bytes=\([0-9]*\).*/\1/p' "$work/out")
scripts/abuse.py "$server" "$url" --seconds "${1:-20}" --streams "${2:-200}" --budget "$budget"
kill -TERM "$server"
code=0
wait "$server" || code=$?
[ "$code" = 0 ] || { echo "the server ended with code $code:"; tail -n 20 "$work/log"; exit 1; }
echo "abuse: passed"
