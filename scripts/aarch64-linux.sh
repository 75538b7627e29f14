#!/usr/bin/env bash
# Builds for Linux on 64-bit Arm and runs the tests of the arithmetic under qemu, on a processor with every extension
# and on one that has the dot product only; then compares the bits of logits with those of this machine. Installs
# what it needs; says `SKIPPED: why` where that cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib/cross.sh

target=aarch64-unknown-linux-gnu

if [ "$(uname -m)" = aarch64 ]; then skip "this machine is aarch64: the ordinary tests cover it"; fi
apt_install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
prepare_std "$target"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

# The logits of every checkpoint in the project, as digests of their bits.
digests() {
    cargo run --release -q -p mach-cpu --example digest "$@" -- fixtures/qwen3*_moe/*/ fixtures/gpt_oss/mxfp4/ &&
        cargo run --release -q -p mach-cpu --example digest "$@" -- --vector demo
}
here=$(mktemp)
there=$(mktemp)
trap 'rm -f "$here" "$there"' EXIT
echo "== digests of logits on $(uname -m)"
(unset RUSTC_BOOTSTRAP; digests) >"$here"
cat "$here"

for cpu in max cortex-a76; do
    echo "== tests under qemu, cpu $cpu"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu"
    # Of the models, whole test suites take too long in emulation; the digests below stand for them. What has no code of its own for the
    # second processor is tested once.
    if [ "$cpu" = max ]; then
        cargo test --release ${std_flags[@]+"${std_flags[@]}"} --target "$target" -p mach-quant -p mach-kernels --lib --tests
        cargo test --release ${std_flags[@]+"${std_flags[@]}"} --target "$target" -p mach-cpu --lib
    else
        cargo test --release ${std_flags[@]+"${std_flags[@]}"} --target "$target" -p mach-kernels --lib --tests
    fi
    echo "== digests of logits under qemu, cpu $cpu"
    digests ${std_flags[@]+"${std_flags[@]}"} --target "$target" >"$there"
    if ! diff "$here" "$there"; then
        echo "logits differ between $(uname -m) and aarch64, cpu $cpu"
        exit 1
    fi
    echo "the same $(wc -l <"$there") digests"
done
