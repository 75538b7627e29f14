#!/usr/bin/env bash
# What a Mac must pass before mach says that it runs on Metal: shaders compile, kernels give the bits of the scalar twin,
# the probe finds the adapter exact, and the demo's text is the CPU's. Stops at the first failure.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf '\n=== %s\n' "$*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }

[ "$(uname -s)" = Darwin ] || fail "this is not a Mac"
say "system"
sw_vers
sysctl -n machdep.cpu.brand_string hw.memsize
version=$(sw_vers -productVersion)
# Before 15 the compiler ignores the pragmas that switch fast math off.
[ "${version%%.*}" -ge 15 ] || fail "macOS $version: 15 or later is needed"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

say "kernels on this GPU beside the scalar twin"
cargo test --release -p mach-gpu -- --nocapture 2>&1 | tee "$work/kernels"
if grep -q '^SKIPPED:' "$work/kernels"; then
    fail "tests were skipped: $(grep -m1 '^SKIPPED:' "$work/kernels")"
fi
grep -q 'Exactness' "$work/kernels" || fail "the probe did not say what it found"

say "the demo's text on both"
cargo build --release --bin mach
prompt="Write a binary search in Python"
for device in cpu gpu; do
    target/release/mach generate demo "$prompt" --no-streaming --device "$device" \
        >"$work/$device" 2>"$work/$device.log" || { cat "$work/$device.log"; fail "--device $device"; }
done
grep 'startup device' "$work/gpu.log" || true
cmp "$work/cpu" "$work/gpu" || fail "the GPU's text is not the CPU's"

say "passed"
