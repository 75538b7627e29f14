#!/usr/bin/env bash
# Builds for Linux on 64-bit Arm and runs the tests of the arithmetic under qemu, on a processor with every extension
# and on one that has the dot product only. Installs what it needs; says `SKIPPED: why` where that cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib/cross.sh

target=aarch64-unknown-linux-gnu
packages=(mach-quant mach-kernels mach-models)

if [ "$(uname -m)" = aarch64 ]; then skip "this machine is aarch64: the ordinary tests cover it"; fi
apt_install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
prepare_std "$target"
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc

for cpu in max cortex-a76; do
    echo "== tests under qemu, cpu $cpu"
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu" \
        cargo test --release ${std_flags[@]+"${std_flags[@]}"} --target "$target" "${packages[@]/#/--package=}" --lib --tests "$@"
done
