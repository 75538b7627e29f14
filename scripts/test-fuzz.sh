#!/usr/bin/env bash
# Builds the fuzz targets and runs each for SECONDS, as many at a time as there are cores. A crash, a hang of ten seconds, or more
# than 2 GiB of memory is a failure, and the input that causes it is kept in target/fuzz/artifacts.
# Usage: scripts/test-fuzz.sh [SECONDS] [TARGET...]        (60 and all if not given)
#
# This is what `cargo fuzz run --sanitizer none` does, without the tool: coverage flags of a stable compiler and libFuzzer.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
command -v c++ >/dev/null || { echo "SKIPPED: there is no C++ compiler for libFuzzer"; exit 0; }
if [ $# -gt 0 ]; then
    targets=("$@")
else
    mapfile -t targets < <(cd fuzz/fuzz_targets && ls -- *.rs | sed 's/\.rs$//')
fi

# Named, so that build scripts and macros are built without instrumentation.
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=$PWD/target/fuzz
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"
binaries=()
for target in "${targets[@]}"; do binaries+=(--bin "$target"); done
${CARGO:-cargo} build --release --manifest-path fuzz/Cargo.toml --target "$host" "${binaries[@]}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
artifacts=$CARGO_TARGET_DIR/artifacts
mkdir -p "$artifacts"

# Seeds and findings of earlier runs come in; what is found goes to a corpus that is thrown away.
run() {
    local target=$1 dictionary=() seeds=()
    mkdir -p "$work/$target"
    [ -f "fuzz/dictionaries/$target" ] && dictionary=(-dict="fuzz/dictionaries/$target")
    [ -d "fuzz/seeds/$target" ] && seeds=("fuzz/seeds/$target")
    if "$CARGO_TARGET_DIR/$host/release/$target" "$work/$target" "${seeds[@]}" "${dictionary[@]}" \
        -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="$artifacts/$target-" -print_final_stats=1 >"$work/$target.log" 2>&1; then
        local runs coverage
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/$target.log")
        coverage=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) .*/\1 edges, \2 features/p' "$work/$target.log" | tail -n 1)
        printf '%-20s %9s runs, %s\n' "$target" "$runs" "$coverage"
        [ "${runs:-0}" -gt 0 ] && return
        echo "$target: nothing ran"
    fi
    echo "$target: FAILED"
    tail -n 60 "$work/$target.log"
    return 1
}

failed=0
jobs=0
for target in "${targets[@]}"; do
    if [ "$jobs" -ge "$(nproc)" ]; then
        wait -n || failed=1
        jobs=$((jobs - 1))
    fi
    run "$target" &
    jobs=$((jobs + 1))
done
while [ "$jobs" -gt 0 ]; do
    wait -n || failed=1
    jobs=$((jobs - 1))
done
[ "$failed" = 0 ] && echo "fuzz: ${#targets[@]} targets, $seconds s each: passed"
exit "$failed"
