"""The walk of scripts/surface.sh: surface.py DIRECTORY_OF_BINARIES CHECKPOINT."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request

BINARIES, DEMO = (pathlib.Path(argument).resolve() for argument in sys.argv[1:3])
ROWS = []


def row(section, what, check, yet=True):
    """`check` says whether the row is so; `yet=False`: it is documented and known to be missing."""
    try:
        holds, seen = check(), ""
    except Exception as error:  # a row that cannot be walked is not so
        holds, seen = False, f" ({type(error).__name__}: {error})"
    if holds and yet:
        outcome = "ok"
    elif not holds and not yet:
        outcome = "not yet"
    else:
        outcome = "WRONG: works by now, list it as such" if holds else f"WRONG{seen}"
    ROWS.append(outcome)
    print(f"{section:<5} {what:<86} {outcome}")


def run(binary, *arguments, **more):
    # A server that does start is not waited for.
    try:
        return subprocess.run([BINARIES / binary, *map(str, arguments)], capture_output=True, text=True, timeout=60, **more)
    except FileNotFoundError:
        return None


def works(binary, *arguments):
    done = run(binary, *arguments)
    return done is not None and done.returncode == 0


class Server:
    """mach-serve on a free port."""

    def __init__(self, *arguments, checkpoint=DEMO, environment=None):
        self.work = tempfile.TemporaryDirectory()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MACH_", "LME_"))}
        log = open(pathlib.Path(self.work.name) / "log", "w+")
        command = [BINARIES / "mach-serve", checkpoint, "--port", "0", "--disk-kv-dir", self.work.name + "/kv", *arguments]
        self.process = subprocess.Popen(
            [str(word) for word in command], stdout=subprocess.PIPE, stderr=log, text=True, env={**kept, **(environment or {})}
        )
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("startup ready"):
                break
        log.seek(0)
        self.log = log.read()
        listening = self.line("startup listening")
        self.url = re.search(r"url=(\S+)", listening).group(1) if listening else None

    def line(self, begins):
        return next((line for line in self.lines if line.startswith(begins)), "")

    def value(self, begins, key):
        found = re.search(rf"(?:^| ){re.escape(key)}=(\S+)", self.line(begins))
        return found.group(1) if found else None

    def ask(self, path, body=None, headers=None):
        """Status, headers, JSON or text."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **(headers or {})})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, head, text = answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            status, head, text = error.code, error.headers, error.read().decode()
        try:
            return status, head, json.loads(text)
        except ValueError:
            return status, head, text

    def chat(self, **fields):
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "temperature": 0, **fields}
        return self.ask("/v1/chat/completions", body)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.work.cleanup()


def has(value, keys):
    return all(key in value for key in keys)


help_text = " ".join(run("mach-serve", "--help").stdout.split())

# 1 Commands and flags
for flag in (
    "--streaming --no-streaming --port --backend --expert-cache-gb --wired-gb --draft-dir --serving-adaptive-block-policy "
    "--continuous-batching --prefix-cache --no-prefix-cache --disk-kv-dir --disk-kv-budget-gb --prefix-cache-max-entries "
    "--prefix-cache-max-gb --prefix-cache-block-size"
).split():
    row("1.1", f"mach-serve {flag}", lambda: re.search(rf"{flag}\b", help_text))
row("1.1", "exactly one residency flag: both are refused", lambda: run("mach-serve", DEMO, "--streaming", "--no-streaming").returncode == 2)
row("1.1", "--wired-gb is 9 unless given", lambda: re.search(r"9 unless --memory-gb is given", help_text))
row("1.1", "a switch for TurboQuant, off by default", lambda: "--turboquant-kv" in help_text)
row("1.1", "scripts/serve_production.py starts the server", lambda: subprocess.run([sys.executable, "scripts/serve_production.py", "--help"], capture_output=True).returncode == 0)
row("1.1", "--backend openai serves any model", lambda: run("mach-serve", DEMO, "--backend", "openai", "--port", "0").returncode != 2, yet=False)
row("1.2", "mach-archs", lambda: works("mach-archs"))
row("1.2", "mach-archs --json", lambda: len(json.loads(run("mach-archs", "--json").stdout)) > 0)
row("1.2", "mach-generate", lambda: works("mach-generate", DEMO, "--chat", "Hi", "--max-tokens", "2"))
row("1.2", "mach-models", lambda: works("mach-models", "--no-cache"))
row("1.2", "mach check CKPT --expert-cache-gb N", lambda: works("mach", "check", DEMO, "--expert-cache-gb", "0.02"))
row("1.2", "mach convert MASTER --out DIR", lambda: works("mach", "convert", "--help"))
row("1.2", "mach convert --gates full --gptq (2-bit experts)", lambda: "--gptq" in run("mach", "convert", "--help").stdout, yet=False)
row("1.2", "mach-prune", lambda: works("mach-prune", "--help"), yet=False)
row("1.2", "mach-reap", lambda: works("mach-reap", "--help"), yet=False)
row("1.3", "mach export-sidecar writes the sidecar of a checkpoint", lambda: works("mach", "export-sidecar", "--help"))
row("1.3", "examples/curl_smoke.sh BASE_URL", lambda: os.access("examples/curl_smoke.sh", os.X_OK))

with Server("--streaming", "--expert-cache-gb", "0.02") as server:
    # 3 HTTP surface
    models = server.ask("/v1/models")[2]
    row("3", "GET /v1/models lists the model", lambda: [m["id"] for m in models["data"]] == ["demo"])
    row("3", "any non-empty API key is accepted", lambda: server.ask("/v1/models", headers={"Authorization": "Bearer anything"})[0] == 200)
    row("3", "POST /v1/chat/completions", lambda: server.chat()[2]["object"] == "chat.completion")
    row("3", "... as SSE with stream: true", lambda: server.chat(stream=True)[2].rstrip().endswith("data: [DONE]"))
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    row("3", "... with tool calls", lambda: server.chat(tools=[tool], tool_choice="required", max_tokens=60)[2]["choices"][0]["message"]["tool_calls"])
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["a", "b"]}}}
    row("3", "... with a JSON schema", lambda: json.loads(server.chat(response_format=schema)[2]["choices"][0]["message"]["content"]) in ["a", "b"])
    row("3.2", "X-Decode-Mode, X-Active-Loops", lambda: has(server.chat()[1], ["X-Decode-Mode", "X-Active-Loops"]))
    warm = {"messages": [{"role": "system", "content": "Be brief and kind, and say what you do not know."}]}
    row("3.5", "POST /v1/cache/warm_prefix", lambda: server.ask("/v1/cache/warm_prefix", warm)[0] == 200)
    row("3.5", "GET /v1/cache/warm_prefix", lambda: len(server.ask("/v1/cache/warm_prefix")[2]["data"]) == 1)

    everything = server.ask("/v1/capabilities")[2]
    arch, serving, grammar = everything["arch"], everything["serving"], everything["grammar"]
    row("3.1", "capabilities: model, backend, supported, arch, serving, grammar", lambda: list(everything) == ["model", "backend", "supported", "arch", "serving", "grammar"])
    row("3.1", "arch is what mach-archs --json prints", lambda: arch in json.loads(run("mach-archs", "--json").stdout))
    documented = {"swiglu_variant": "plain_swiglu", "stacked_supported": True, "has_expert_bias": False, "text_config_wrapped": True,
                  "default_bits": 4, "default_group_size": 64, "kv_cache_kind": "hybrid_gdn", "specdec_kind": "specdec_v7", "continuous_batching": "ok"}
    for key, value in {"model_type": "qwen3_5_moe", "model_module": "mach_models::qwen3_5_moe", **documented}.items():
        row("3.1", f"arch.{key} = {json.dumps(value)}", lambda: arch[key] == value)
    for key, value in {
        "expert_residency": "streaming", "serving_mode": "streaming", "decode_path": "specdec-v7", "effective_decode_path": "specdec_v7",
        "effective_decode_path_reason": "specdec_v7 draft is usable", "turboquant_kv": False, "rho_gate": None,
        "speculation": {"supported_presets": ["none", "summarization", "classification"], "additive": True, "exactness_preserving": True},
    }.items():
        row("3.1", f"serving.{key} = {json.dumps(value)}", lambda: serving[key] == value)
    row("3.1", "serving.decode_policy.engine_mode = native_v7", lambda: serving["decode_policy"]["engine_mode"] == "native_v7")
    row("3.1", "serving.decode_policy.mode = greedy-specdec or sampled-specdec", lambda: serving["decode_policy"]["mode"] in ["greedy-specdec", "sampled-specdec"])
    row("3.1", "serving.continuous_batching is the live state (on by default here)", lambda: serving["continuous_batching"] is True)
    row("3.1", "grammar.xgrammar, grammar.lm_format_enforcer; which library enforces", lambda: isinstance(grammar["xgrammar"], bool) and isinstance(grammar["lm_format_enforcer"], bool) and grammar["backend"])

    stats = server.ask("/v1/stats")[2]
    for key in ["specdec_drafted", "specdec_accepted", "recent_alpha", "observed_cycles", "low_cycles"]:
        row("3.3", f"stats.{key}", lambda: key in stats)
    policy = {"name": "opencode-sampled-v1", "alpha_window": 4, "alpha_threshold": 0.40, "low_block": 4, "default_block": 16}
    for key, value in policy.items():
        row("3.3", f"stats.adaptive_block_policy.{key} = {json.dumps(value)}", lambda: abs(stats["adaptive_block_policy"][key] - value) < 1e-6 if isinstance(value, float) else stats["adaptive_block_policy"][key] == value)
    summary = server.ask("/v1/cache/stats")[2]["streaming_summary"]
    row("3.4", "cache stats: streaming_summary.direct_pread.active, .mode", lambda: has(summary["direct_pread"], ["active", "mode"]))
    row("3.4", "cache stats: evictions, misses, hit rate", lambda: has(summary["total"], ["evictions", "misses", "hit_rate"]))
    row("3.4", "cache stats: the state of a request in flight is told", lambda: "generation_in_flight" in server.ask("/v1/cache/stats")[2])

    # 4 Startup lines
    at = [next((i for i, line in enumerate(server.lines) if line.startswith(w)), None) for w in
          ["startup mode ", "production optimizations ", "startup direct-pread ", "startup decode_path="]]
    row("4", "the four lines, in the documented order", lambda: None not in at and at == sorted(at))
    for begins, key, value in [
        ("startup mode", "profile", "production"), ("startup mode", "production_streaming_mode", "streaming"),
        ("startup mode", "transient_prefill", "1"), ("startup mode", "expert_residency", "streaming"),
        ("production optimizations", "direct_pread", "1"), ("production optimizations", "native_prefill_fused", "1"),
        ("production optimizations", "async_prefetch", "0"), ("production optimizations", "resident_metal", "0"),
        ("startup direct-pread", "expected", "1"), ("startup direct-pread", "sidecar_present", "1"),
        ("startup direct-pread", "sidecar_valid", "1"), ("startup direct-pread", "native_extension", "ready"),
        ("startup direct-pread", "fallback_policy", "fail-fast"), ("startup decode_path", "adaptive_block_policy", "opencode-sampled-v1"),
    ]:
        row("4", f"{begins}: {key}={value}", lambda: server.value(begins, key) == value)
    row("4", "startup decode_path=specdec-v7", lambda: server.line("startup decode_path=specdec-v7 "))
    row("8.1", "L2 is on by default, in the directory that was given", lambda: server.value("startup prefix_cache", "disk_kv_dir") == server.work.name + "/kv")

# Red flags
with tempfile.TemporaryDirectory() as work:
    broken = pathlib.Path(work) / "broken"
    shutil.copytree(DEMO, broken, ignore=shutil.ignore_patterns("train"))
    with open(broken / "expert_sidecar/layer-000.experts", "r+b") as file:
        file.truncate(4096)
    done = run("mach-serve", broken, "--streaming", "--port", "0")
    row("4", "red flags: sidecar_valid=0, native_extension=missing; fail-fast ends the start", lambda: done.returncode == 2 and "sidecar_valid=0 native_extension=missing" in done.stdout)

with Server("--no-streaming", "--decode-path", "target-only") as server:
    serving = server.ask("/v1/capabilities")[2]["serving"]
    row("5.1", "--no-streaming: expert_residency=stacked, all in memory", lambda: server.value("startup mode", "expert_residency") == "stacked" == serving["expert_residency"])
    row("7.2", "target_only when it is asked for, with the reason", lambda: serving["effective_decode_path"] == "target_only" and serving["effective_decode_path_reason"])
with Server("--no-streaming", "--draft-dir", "no-such-draft") as server:
    serving = server.ask("/v1/capabilities")[2]["serving"]
    row("7.2", "a missing draft gives target_only, not an end", lambda: serving["effective_decode_path"] == "target_only")

# 2 Variables
environment = {"LME_TRANSIENT_PREFILL": "1", "LME_DECODE_RESIDENCY": "hot", "LME_BANK_EVICTION_POLICY": "lru", "LME_DISK_KV_EVICTION_POLICY": "value",
               "LME_CONTINUOUS_BATCHING": "1", "LME_CONTINUOUS_BATCHING_MAX_B": "3"}
with Server("--streaming", environment=environment) as server:
    for name in environment:
        row("2", f"{name} is read, with a notice", lambda: f"note: {name}" in server.log)
    row("2", "LME_CONTINUOUS_BATCHING_MAX_B sets the largest batch", lambda: server.value("startup engine", "max_batch") == "3")
with Server("--no-streaming", environment={}) as server:
    row("2", "the largest batch is 4 unless given", lambda: server.value("startup engine", "max_batch") == "4")
row("2", "LME_BF16_STACKED_STREAMING=1 selects bf16_streaming", lambda: "note: LME_BF16_STACKED_STREAMING is read as --expert-residency bf16_streaming" in run("mach-serve", DEMO, "--port", "0", env={**os.environ, "LME_BF16_STACKED_STREAMING": "1"}).stderr)

# 6 Families
families = {card["model_type"]: card for card in json.loads(run("mach-archs", "--json").stdout)}
for name, kind, built in [("qwen3_5_moe", "hybrid_gdn", True), ("qwen3_moe", "standard", True), ("gpt_oss", "rotating", True),
                          ("gemma4", "rotating", True), ("deepseek_v4", "compressed", True)]:
    row("6.2", f"{name}: kv_cache_kind {kind}", lambda: families[name]["kv_cache_kind"] == kind, yet=built)
for key, value in {"swiglu_variant": "silu_limited", "has_expert_bias": True, "text_config_wrapped": False, "specdec_kind": "target-only",
                   "continuous_batching": "ok"}.items():
    row("6.2", f"gpt_oss: {key} {json.dumps(value)}", lambda: families["gpt_oss"][key] == value)
for key, value in {"swiglu_variant": "plain_geglu", "has_expert_bias": False, "text_config_wrapped": True, "specdec_kind": "target-only",
                   "continuous_batching": "ok"}.items():
    row("6.2", f"gemma4: {key} {json.dumps(value)}", lambda: families["gemma4"][key] == value)

for key, value in {"swiglu_variant": "silu_limited", "stacked_supported": False, "has_expert_bias": False, "text_config_wrapped": False,
                   "specdec_kind": "v4_mtp"}.items():
    row("6.2", f"deepseek_v4: {key} {json.dumps(value)}", lambda: families["deepseek_v4"][key] == value)

wrong = sum(outcome.startswith("WRONG") for outcome in ROWS)
print(f"\nsurface: {ROWS.count('ok')} ok, {ROWS.count('not yet')} not yet, {wrong} wrong")
sys.exit(1 if wrong else 0)
