#!/usr/bin/env bash
# Faults put in one by one, and whether a test notices: cargo-mutants on the crates whose faults nobody would see.
#
#   scripts/mutants.sh [--shard K/N] [--in-place] [CRATE...] [-- ARGUMENTS OF cargo test]
#
# Without crates: mach-quant, mach-prefix, mach-experts, mach-specdec, mach-engine. `--shard 0/20` takes every twentieth
# fault. A crate's own tests are run; with `-- --lib`, those beside the code alone. `--in-place` works in this checkout
# instead of a copy, with what is built there: quicker, and nothing else may touch the sources meanwhile. Prints one row a
# crate; the lists of what was missed are in target/mutants/CRATE.
set -euo pipefail
cd "$(dirname "$0")/.."

shard=() place=() crates=() tests=()
while [ $# -gt 0 ]; do
    case $1 in
        --shard) shard=(--shard "$2" --sharding round-robin); shift ;;
        --in-place) place=(--in-place) ;;
        --) tests=("$@"); break ;;
        -*) echo "unknown option $1" >&2; exit 2 ;;
        *) crates+=("$1") ;;
    esac
    shift
done
[ ${#crates[@]} -gt 0 ] || crates=(mach-quant mach-prefix mach-experts mach-specdec mach-engine)
cargo=${CARGO:-cargo}
# A fault is in one file: what the compiler knows of the others makes a build a matter of seconds.
export CARGO_INCREMENTAL=1
$cargo mutants --version >/dev/null 2>&1 || $cargo install cargo-mutants --locked

failed=0
rows=()
for crate in "${crates[@]}"; do
    out=target/mutants/$crate
    mkdir -p "$out"
    # 2: some were missed, 3: some took too long; both are figures. Anything else is a failure.
    code=0
    $cargo mutants -p "$crate" "${shard[@]}" "${place[@]}" --profile release --output "$out" \
        --minimum-test-timeout 60 --no-shuffle --colors never "${tests[@]}" || code=$?
    case $code in 0 | 2 | 3) ;; *) failed=1; rows+=("$crate: failed ($code)"); continue ;; esac
    list=$out/mutants.out
    count() { wc -l <"$list/$1.txt"; }
    caught=$(($(count caught) + $(count timeout)))
    tried=$((caught + $(count missed)))
    rows+=("$(printf '%-14s %4d tried, %4d caught (%s %%), %d missed, %d did not build' "$crate" "$tried" "$caught" \
        "$((tried ? 100 * caught / tried : 0))" "$(count missed)" "$(count unviable)")")
done
echo
printf '%s\n' "${rows[@]}"
for crate in "${crates[@]}"; do
    sed "s/^/missed: /" "target/mutants/$crate/mutants.out/missed.txt" 2>/dev/null || true
done
exit $failed
