#!/usr/bin/env bash
# Runs schemathesis against the OpenAPI document that the server serves: requests made from it, valid and not, must never
# bring a 5xx, an answer that the document does not know, or a hang. SECONDS bounds the random part.
# Usage: scripts/test-openapi.sh [SECONDS]        (60 if not given)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib/server.sh

# Short contexts, so that no answer is long; and room for every prefix that is warmed, of which there are many.
start_server --max-context 128 --max-body-mib 1 --prefix-cache-max-gb 2 --log-level warn
if ! { python3 -m venv "$work/venv" && "$work/venv/bin/pip" install -q -r clients/openapi/requirements.txt; } >"$work/pip.log" 2>&1; then
    echo "SKIPPED: schemathesis cannot be installed here"
    exit 0
fi
checks=not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance
(cd "$work" && venv/bin/schemathesis run "$url/openapi.json" --max-time "${1:-60}" --phases examples,coverage,fuzzing --workers 1 \
    --checks "$checks" --request-timeout 60 --suppress-health-check all --warnings off)
kill -0 "$server" || { echo "the server died:"; tail -n 20 "$work/log"; exit 1; }
curl -sf "$url/health" >/dev/null || { echo "the server does not answer any more"; exit 1; }
echo "openapi: passed"
