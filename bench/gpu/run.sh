#!/usr/bin/env bash
# Times models on a GPU beside what its memory can do, and the CPU of the same machine: one JSON file each under OUT.
#
#   bench/gpu/run.sh MACH OUT [SHAPE...]
#
# MACH is the binary `mach`. Checkpoints of the shapes (qwen3.6-35b-a3b and gpt-oss-20b if none are named) are made below
# TMPDIR and removed again; the first takes 20 GB of disk and as much memory.
set -euo pipefail
mach=$(realpath "$1")
out=$(mkdir -p "$2" && realpath "$2")
shift 2
shapes=("$@")
[ ${#shapes[@]} -gt 0 ] || shapes=(qwen3.6-35b-a3b gpt-oss-20b)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for shape in "${shapes[@]}"; do
    "$mach" synth --shape "$shape" "$work/$shape" >/dev/null
    for device in gpu cpu; do
        "$mach" bench "$work/$shape" --device "$device" --prompt 2048 --chunk 2048 --decode 128 --reps 3 --json \
            >"$out/$shape-$device.json"
    done
    "$mach" bench "$work/$shape" --device gpu --kernels --prompt 512 >"$out/$shape-kernels.txt"
    rm -rf "${work:?}/$shape"
done
