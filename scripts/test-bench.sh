#!/usr/bin/env bash
# Every `mach bench` subcommand on the demo, by its name and with settings that take seconds: each must end well and print
# something. What it prints says nothing of speed.
set -uo pipefail
cd "$(dirname "$0")/.."

cargo build --release --bin mach || exit 1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0

# bench NAME ARGUMENTS...
bench() {
    local name=$1 start=$SECONDS
    shift
    if timeout 300 target/release/mach bench "$@" >"$log" 2>&1 && [ -s "$log" ]; then
        echo "ok      $name ($((SECONDS - start)) s)"
    else
        echo "FAILED  $name: mach bench $*"
        tail -n 20 "$log"
        failed=1
    fi
}

bench model demo --prompt 32 --decode 4 --reps 1 --buffer-mib 32
bench ceilings ceilings --buffer-mib 32
bench stream stream demo --prompt 32 --decode 4 --reps 1
bench prefix prefix demo --prompts 256 --decode 8 --reps 1
bench kv kv demo --context 256 --widths 4
bench grammar grammar demo --max-tokens 8 --reps 1
bench specdec specdec demo --context 32 --rows 2,4 --passes 1 --max-tokens 8 --reps 1 --policies fixed-16
bench serve serve demo --streams 2 --tokens 20 --prompt 64 --reps 1
# With its own defaults as far as arguments go: nothing but the name is needed.
for name in stream prefix kv grammar specdec serve; do
    if target/release/mach bench "$name" --help 2>&1 | grep -q "^Usage: mach bench $name \[OPTIONS\] <C[A-Z]*>"; then
        echo "ok      $name needs a checkpoint and nothing else"
    else
        echo "FAILED  $name needs more than a checkpoint"
        failed=1
    fi
done
exit "$failed"
