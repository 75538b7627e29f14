#!/usr/bin/env bash
# Runs every test: the workspace's, then the client libraries' if they are there. Ends with plain totals; the exit
# code is that of the tests. Arguments go to `cargo test`.
set -uo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --release --workspace --no-fail-fast "$@" 2>&1 | tee "$log"
code=${PIPESTATUS[0]}

read -r suites passed failed ignored < <(awk '
    /^test result:/ { suites++; passed += $4; failed += $6; ignored += $8 }
    END { print suites + 0, passed + 0, failed + 0, ignored + 0 }' "$log")

clients="not present"
if [ -x scripts/test-clients.sh ]; then
    clients="passed"
    scripts/test-clients.sh || { clients="FAILED"; code=1; }
fi

echo
echo "test suites: $suites"
echo "passed:      $passed"
echo "failed:      $failed"
echo "ignored:     $ignored"
echo "clients:     $clients"
if [ "$code" = 0 ] && [ "$passed" = 0 ] && [ $# = 0 ]; then
    echo "no test ran"
    code=1
fi
exit "$code"
