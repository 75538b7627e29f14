#!/bin/sh
# Walks every endpoint of a running server with curl and fails loudly.
# Usage: examples/curl_smoke.sh [URL] [API_KEY]        (URL: http://127.0.0.1:8080 if not given)
set -eu

url=${1:-http://127.0.0.1:8080}
key=${2:-any}
out=$(mktemp)
trap 'rm -f "$out"' EXIT

fail() {
    echo "FAIL: $1" >&2
    cat "$out" >&2
    exit 1
}

# call NAME WANTED_STATUS ARGS...: the response body is left in $out
call() {
    name=$1 wanted=$2
    shift 2
    status=$(curl -sS -o "$out" -w '%{http_code}' --max-time 300 -H "Authorization: Bearer $key" "$@") || fail "$name: curl failed"
    [ "$status" = "$wanted" ] || fail "$name: status $status, wanted $wanted"
}

# has NAME TEXT: $out holds the text
has() {
    grep -qF -- "$2" "$out" || fail "$1: no $2"
    echo "ok   $1"
}

chat() {
    name=$1 wanted=$2 body=$3
    call "$name" "$wanted" "$url/v1/chat/completions" -H 'Content-Type: application/json' -d "$body"
}

tries=0
until [ "$(curl -s -o "$out" -w '%{http_code}' "$url/health" || true)" = 200 ]; do
    tries=$((tries + 1))
    [ "$tries" -lt 600 ] || fail "the server at $url does not become ready"
    sleep 0.5
done
has "GET /health" '"status":"ok"'

call "GET /v1/models" 200 "$url/v1/models"
has "GET /v1/models" '"object":"list"'
model=$(sed -n 's/.*"data":\[{"id":"\([^"]*\)".*/\1/p' "$out")
[ -n "$model" ] || fail "GET /v1/models: no model"

call "GET /v1/models/$model" 200 "$url/v1/models/$model"
has "GET /v1/models/$model" '"object":"model"'

call "GET /v1/stats" 200 "$url/v1/stats"
has "GET /v1/stats" '"adaptive_block_policy"'

call "GET /v1/cache/stats" 200 "$url/v1/cache/stats"
has "GET /v1/cache/stats" '"streaming_summary"'
has "GET /v1/cache/stats" '"generation_in_flight"'

hello="\"model\":\"$model\",\"max_tokens\":16,\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]"

chat "chat" 200 "{$hello,\"temperature\":0}"
has "chat" '"object":"chat.completion"'

chat "chat, streamed" 200 "{$hello,\"stream\":true,\"stream_options\":{\"include_usage\":true}}"
has "chat, streamed: usage" '"total_tokens"'
has "chat, streamed: end" 'data: [DONE]'

chat "chat, two choices with log probabilities" 200 "{$hello,\"n\":2,\"seed\":1,\"logprobs\":true,\"top_logprobs\":2}"
has "chat, two choices with log probabilities" '"top_logprobs"'

chat "chat, content parts, stop and penalties" 200 "{\"model\":\"$model\",\"max_tokens\":16,\"stop\":[\"zzz\"],\"frequency_penalty\":0.5,\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"Hello\"}]}]}"
has "chat, content parts, stop and penalties" '"finish_reason"'

chat "chat, tools" 200 "{$hello,\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"get_time\",\"parameters\":{\"type\":\"object\",\"properties\":{}}}}]}"
has "chat, tools" '"finish_reason"'

weather='"tools":[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}}}]'
ask="\"model\":\"$model\",\"max_tokens\":200,\"messages\":[{\"role\":\"user\",\"content\":\"What's the weather in Vienna?\"}]"

chat "chat, a tool is called" 200 "{$ask,$weather,\"tool_choice\":\"required\"}"
has "chat, a tool is called" '"finish_reason":"tool_calls"'
has "chat, a tool is called: id" '"id":"call_'

chat "chat, a tool is called, streamed" 200 "{$ask,$weather,\"tool_choice\":\"required\",\"stream\":true}"
has "chat, a tool is called, streamed" '"tool_calls":[{"index":0,"id":"call_'

chat "chat, JSON of a schema" 200 "{$hello,\"temperature\":0,\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"schema\":{\"type\":\"object\",\"properties\":{\"ok\":{\"type\":\"boolean\"}},\"required\":[\"ok\"],\"additionalProperties\":false}}}}"
has "chat, JSON of a schema" '\"ok\"'

chat "chat, a regular expression" 200 "{$hello,\"grammar\":{\"syntax\":\"regex\",\"definition\":\"[0-9]{3}\"}}"
has "chat, a regular expression" '"finish_reason":"stop"'

chat "a schema that is not supported is named" 400 "{$hello,\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"schema\":{\"\$ref\":\"https://example.com/x\"}}}}"
has "a schema that is not supported is named" '"param":"response_format.json_schema.schema.$ref"'

chat "chat, speculation preset" 200 "{$hello,\"temperature\":0,\"speculation\":{\"preset\":\"summarization\"}}"
has "chat, speculation preset" '"finish_reason"'

chat "chat, again" 200 "{$hello,\"temperature\":0}"
has "chat, again: nothing is computed twice" '"cached_tokens":'

call "POST /v1/cache/warm_prefix" 200 "$url/v1/cache/warm_prefix" -H 'Content-Type: application/json' -d '{"messages":[{"role":"system","content":"Be brief."}]}'
has "POST /v1/cache/warm_prefix" '"levels":["l1"'

call "GET /v1/cache/warm_prefix" 200 "$url/v1/cache/warm_prefix"
has "GET /v1/cache/warm_prefix" '"object":"list"'

call "GET /v1/cache/stats" 200 "$url/v1/cache/stats"
has "GET /v1/cache/stats" '"prefix_cache"'

call "GET /v1/capabilities" 200 "$url/v1/capabilities"
has "GET /v1/capabilities" '"effective_decode_path_reason"'

call "GET /openapi.json" 200 "$url/openapi.json"
has "GET /openapi.json" '"openapi"'

call "POST /tokenize" 200 "$url/tokenize" -H 'Content-Type: application/json' -d '{"prompt":"Hello"}'
has "POST /tokenize" '"count"'
tokens=$(sed -n 's/.*"tokens":\(\[[^]]*\]\).*/\1/p' "$out")

call "POST /detokenize" 200 "$url/detokenize" -H 'Content-Type: application/json' -d "{\"tokens\":$tokens}"
has "POST /detokenize" '{"prompt":"Hello"}'

call "POST /v1/completions" 200 "$url/v1/completions" -H 'Content-Type: application/json' \
    -d "{\"model\":\"$model\",\"prompt\":[\"Hello\",$tokens],\"max_tokens\":4,\"echo\":true}"
has "POST /v1/completions" '"object":"text_completion"'

call "POST /v1/completions, streamed" 200 "$url/v1/completions" -H 'Content-Type: application/json' \
    -d "{\"model\":\"$model\",\"prompt\":\"Hello\",\"max_tokens\":4,\"stream\":true}"
has "POST /v1/completions, streamed" 'data: [DONE]'

call "POST /v1/completions: suffix is refused by name" 400 "$url/v1/completions" -H 'Content-Type: application/json' \
    -d "{\"model\":\"$model\",\"prompt\":\"Hello\",\"suffix\":\"x\"}"
has "POST /v1/completions: suffix is refused by name" '"param":"suffix"'

call "GET /metrics" 200 "$url/metrics"
has "GET /metrics" 'mach_time_to_first_token_seconds_bucket'
has "GET /metrics" 'mach_num_requests_running'

chat "a field out of range is named" 400 "{$hello,\"temperature\":-1}"
has "a field out of range is named" '"param":"temperature"'

chat "an unknown model is 404" 404 '{"model":"no-such-model","messages":[{"role":"user","content":"Hello"}]}'
has "an unknown model is 404" '"model_not_found"'

chat "broken JSON is 400" 400 '{'
has "broken JSON is 400" '"invalid_request_error"'

call "an unknown route is 404" 404 "$url/v1/no-such-route"
has "an unknown route is 404" '"unknown_url"'

call "a wrong method is 405" 405 "$url/v1/chat/completions"
has "a wrong method is 405" '"method_not_allowed"'

echo "all endpoints answer"
