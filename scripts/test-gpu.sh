#!/usr/bin/env bash
# Runs the GPU's tests beside the scalar twin on whatever adapter is here; without one, on Mesa's software rasterizer,
# installed if it can be. Says `SKIPPED: why` where it cannot.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib/cross.sh

if [ "$(uname -s)" = Linux ] && ! ls /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json >/dev/null 2>&1; then
    apt_install mesa-vulkan-drivers libvulkan1
fi
# Mesa's loader says on every start that there is no desktop.
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/tmp}
cargo test --release -p mach-gpu "$@" -- --nocapture
cargo test --release -p mach --test gpu -- --nocapture
# And the build that has none.
cargo clippy --release -p mach --no-default-features -- -D warnings
