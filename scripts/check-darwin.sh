#!/usr/bin/env bash
# Type-checks the whole workspace for macOS on Apple Silicon; nothing is linked or run. Says `SKIPPED: why` where the
# standard library for it cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib/cross.sh

target=aarch64-apple-darwin
prepare_std "$target"
if [ "$(uname -s)" != Darwin ]; then
    # Some dependencies hold C code; there is no compiler for it here, and checking types needs none.
    export CC_aarch64_apple_darwin=$PWD/scripts/lib/no-cc.sh AR_aarch64_apple_darwin=${AR:-ar}
fi
cargo check --release ${std_flags[@]+"${std_flags[@]}"} --target "$target" --workspace --bins --lib --tests "$@"
