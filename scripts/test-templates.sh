#!/usr/bin/env bash
# Renders every chat template of a directory with about 50 conversations, in mach and in transformers, and prints what is
# equal, different or fails on one side alone. Without a directory: the templates that the source of llama-cpp-python
# carries. What cannot be installed here is skipped with a line that says so.
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

directory=${1:-}
if [ -z "$directory" ]; then
    "$pip" download -q --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36 -d "$work" >"$work/pip.log" 2>&1 ||
        skip "the source of the package llama-cpp-python cannot be had here"
    tar -xzf "$work"/llama_cpp_python-*.tar.gz -C "$work" --wildcards '*/models/templates/*'
    directory=$(echo "$work"/llama_cpp_python-*/vendor/llama.cpp/models/templates)
fi

cargo build --release -p mach-api --example render_template
"$work/venv/bin/python" scripts/compare_templates.py target/release/examples/render_template "$directory" "${@:2}" 2>"$work/log" ||
    { code=$?; cat "$work/log"; exit "$code"; }
