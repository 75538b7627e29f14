//! The HTTP API of a real server process that serves the demo checkpoint.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Answer, DEMO, Server, value};
use serde_json::{Value, json};

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

#[test]
fn models_health_and_unknown_routes() {
    let server = Server::demo(&[]);
    let models = server.get("/v1/models").json();
    assert_eq!((&models["object"], &models["data"][0]["id"]), (&json!("list"), &json!("demo")));
    assert_eq!(models["data"][0]["max_model_len"], 8192);
    assert_eq!(server.get("/v1/models/demo").json(), models["data"][0]);
    // What its template, its context and its files tell.
    let capabilities = &models["data"][0]["capabilities"];
    for (name, value) in [
        ("type", json!("chat")),
        ("family", json!("qwen3_5_moe")),
        ("tools", json!(true)),
        ("reasoning", json!(false)),
        ("images", json!(false)),
    ] {
        assert_eq!(capabilities[name], value, "{name}");
    }
    let codex = &models["models"][0];
    assert_eq!((&codex["slug"], &codex["context_window"]), (&json!("demo"), &json!(8192)));
    assert_eq!(codex["supported_reasoning_levels"], json!([]), "the template takes no effort");
    assert_eq!(server.get("/health").json()["status"], "ok");

    for (answer, status, code) in [
        (server.get("/v1/models/nothing/here"), 404, "model_not_found"),
        (server.get("/v1/nothing"), 404, "unknown_url"),
        (server.get("/v1/chat/completions"), 405, "method_not_allowed"),
        (server.post("/v1/models", "{}"), 405, "method_not_allowed"),
        (
            server
                .post("/v1/chat/completions", r#"{"model":"x","messages":[{"role":"user","content":"a"}]}"#),
            404,
            "model_not_found",
        ),
    ] {
        assert_eq!((answer.status, &answer.json()["error"]["code"]), (status, &json!(code)));
    }
}

#[test]
fn startup_signals_tell_what_runs() {
    let server =
        Server::demo(&["--activations", "f32", "--served-model-name", "a", "--served-model-name", "b"]);
    let line = |topic: &str| {
        let start = format!("startup {topic} ");
        server.signals.iter().find(|l| l.starts_with(&start)).unwrap_or_else(|| panic!("{topic}"))
    };
    assert_eq!(value(line("mode"), "profile"), Some("exact"));
    assert_eq!(value(line("mode"), "production_streaming_mode"), Some("resident"));
    assert_eq!(value(line("mode"), "expert_residency"), Some("stacked"));
    assert_eq!(value(line("mode"), "activations"), Some("f32"));
    assert_eq!(value(line("model"), "threads"), Some("1"));
    assert_eq!(value(line("engine"), "context"), Some("8192"));
    assert_eq!(value(line("sampling"), "temperature"), Some("0.7"));
    let ids: Vec<_> = server.get("/v1/models").json()["data"].as_array().unwrap().clone();
    assert_eq!((&ids[0]["id"], &ids[1]["id"]), (&json!("a"), &json!("b")));
}

fn goldens() -> Vec<Value> {
    let text = std::fs::read_to_string(format!("{DEMO}/golden.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

#[test]
fn exact_answers_begin_as_the_goldens() {
    // Calls are compared as the text that they are.
    let server = Server::demo(&["--activations", "f32", "--tool-call-parser", "none"]);
    for case in goldens() {
        let answer = server.chat(json!({
            "messages": case["messages"], "tools": case["tools"], "temperature": 0, "max_tokens": 12,
        }));
        let text = answer.text();
        assert!(!text.is_empty() && case["greedy_text"].as_str().unwrap().starts_with(&text), "{text}");
        let usage = &answer.json()["usage"];
        assert_eq!(usage["prompt_tokens"], case["prompt_ids"].as_array().unwrap().len());
        assert_eq!(usage["completion_tokens"], case["greedy_ids"].as_array().unwrap().len().min(12));
    }
}

#[test]
fn streams_say_what_whole_answers_say() {
    // The counts are compared too, and a cache would make the second differ.
    let server = Server::demo(&["--no-prefix-cache", "--tool-call-parser", "none"]);
    for case in goldens() {
        let fields =
            json!({"messages": case["messages"], "tools": case["tools"], "seed": 1, "max_tokens": 60});
        let answer = server.chat(fields.clone());
        let mut streamed = fields;
        streamed["stream"] = true.into();
        streamed["stream_options"] = json!({"include_usage": true});
        let chunks = server.chat(streamed).chunks();
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        assert!(chunks[0]["usage"].is_null());
        let text: String =
            chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, answer.text());
        let last = chunks.last().unwrap();
        assert_eq!((&last["usage"], &last["choices"]), (&answer.json()["usage"], &json!([])));
        let finish = &chunks[chunks.len() - 2]["choices"][0]["finish_reason"];
        assert_eq!(finish, &answer.json()["choices"][0]["finish_reason"]);
    }
}

#[test]
fn sampling_repeats_with_its_seed() {
    let server = Server::demo(&[]);
    let ask = |seed: u64, n: u32| {
        let a = server.chat(json!({
            "messages": user("Tell me about the sea."), "max_tokens": 24, "temperature": 1.0, "seed": seed, "n": n,
        }));
        a.json()["choices"].as_array().unwrap().iter().map(|c| c["message"].to_string()).collect::<Vec<_>>()
    };
    let three = ask(5, 3);
    assert_eq!(three, ask(5, 3));
    assert_eq!(three[..1], ask(5, 1));
    assert_ne!(three[0], three[1]);
    assert_ne!(three[0], ask(6, 1)[0]);
}

#[test]
fn stops_logprobs_and_bias() {
    let server = Server::demo(&[]);
    let body = |extra: Value| {
        let mut body =
            json!({"messages": user("Write a binary search in Python"), "temperature": 0, "max_tokens": 40});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let plain = server.chat(body(json!({}))).text();
    let stop: String = plain.chars().skip(20).take(7).collect();
    let cut = server.chat(body(json!({"stop": [stop], "logprobs": true, "top_logprobs": 3})));
    assert_eq!(cut.text(), plain.split(&stop).next().unwrap());
    let choice = &cut.json()["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    let tokens = choice["logprobs"]["content"].as_array().unwrap();
    for token in tokens {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 3);
        assert_eq!(token["top_logprobs"][0]["token"], token["token"], "greedy takes the best");
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        let bytes: Vec<u8> = serde_json::from_value(token["bytes"].clone()).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes), token["token"].as_str().unwrap());
    }
    let biased = server.chat(body(json!({"logit_bias": {"16370": 100}})));
    assert_eq!((biased.text().as_str(), &biased.json()["usage"]["completion_tokens"]), ("", &json!(1)));
    assert!(biased.json()["choices"][0]["logprobs"].is_null());
}

#[test]
fn bad_requests_name_the_field_and_leave_the_server_well() {
    let server = Server::demo(&["--max-body-mib", "1", "--max-context", "100"]);
    let long = "word ".repeat(200);
    for (fields, param) in [
        (json!({"messages": user("a"), "temperature": -1}), json!("temperature")),
        (json!({"messages": user("a"), "max_completion_tokens": 0}), json!("max_completion_tokens")),
        (json!({"messages": user("a"), "best_of": 2}), json!("best_of")),
        (json!({"messages": user("a"), "logit_bias": {"99999": 1}}), json!("logit_bias.99999")),
        (json!({"messages": user("a"), "stop_token_ids": [99999]}), json!("stop_token_ids[0]")),
        (json!({"messages": []}), json!("messages")),
    ] {
        let answer = server.chat(fields);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &param));
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    // The demo's template takes instructions at the beginning alone.
    let late = json!([{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]);
    assert_eq!(server.chat(json!({"messages": late, "max_tokens": 1})).status, 200);
    let too_long = server.chat(json!({"messages": user(&long)}));
    let error = too_long.json()["error"].clone();
    assert_eq!((too_long.status, &error["code"]), (400, &json!("context_length_exceeded")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("has 208 tokens") && message.contains("holds 100,"), "{message}");

    // What no context of this size can hold is refused by its length alone.
    for (path, body) in [
        ("/v1/chat/completions", json!({"messages": user(&"word ".repeat(100_000))})),
        ("/v1/completions", json!({"prompt": "word ".repeat(100_000)})),
    ] {
        let error = server.post(path, &body.to_string()).json()["error"].clone();
        assert_eq!(error["code"], "context_length_exceeded");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(" bytes, more than this model's context of 100 tokens"), "{message}");
    }

    assert_eq!(server.post("/v1/chat/completions", "{\"model\":").status, 400);
    let form = server.request("POST", "/v1/chat/completions", &[("content-type", "text/plain")], b"{}");
    assert_eq!(form.status, 415);
    let huge = server.post("/v1/chat/completions", &"x".repeat(2 << 20));
    assert_eq!((huge.status, &huge.json()["error"]["code"]), (413, &json!("request_too_large")));
    assert_eq!(server.chat(json!({"messages": user("hi"), "max_tokens": 1})).status, 200);
}

#[test]
fn a_key_is_asked_for_when_set() {
    let server = Server::demo(&["--api-key", "sesame"]);
    let with = |key: &str| server.request("GET", "/v1/models", &[("authorization", key)], b"").status;
    assert_eq!(
        (with("Bearer sesame"), with("Bearer open"), server.get("/v1/models").status),
        (200, 401, 401)
    );
    assert_eq!(server.chat(json!({"messages": user("hi")})).json()["error"]["code"], "invalid_api_key");
    assert_eq!(server.get("/health").status, 200);
}

/// A request that runs until the context is full.
fn endless(server: &Server) -> TcpStream {
    let body =
        json!({"model": "demo", "messages": user("Tell me a story"), "stream": true, "ignore_eos": true});
    let mut stream = server.send(
        "POST",
        "/v1/chat/completions",
        &[("content-type", "application/json")],
        body.to_string().as_bytes(),
    );
    let mut some = [0; 4096];
    while stream.read(&mut some).unwrap() == 0 {}
    stream
}

#[test]
fn a_full_queue_answers_429_and_leaving_frees_a_place() {
    let server = Server::demo(&["--max-queue", "1", "--max-batch", "1"]);
    let running = endless(&server);
    let waiting = endless_waiting(&server);
    let refused = server.chat(json!({"messages": user("hi"), "max_tokens": 1}));
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (429, &json!("queue_full")));
    assert!(refused.head.contains("retry-after: "));
    drop(waiting);
    drop(running);
    // Both are gone within a step, so this is answered at once instead of after thousands of tokens.
    let mut status = 429;
    for _ in 0..200 {
        status = server.chat(json!({"messages": user("hi"), "max_tokens": 1})).status;
        if status == 200 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(status, 200);
}

/// A second endless request, once the server reports that it waits.
fn endless_waiting(server: &Server) -> TcpStream {
    let body = json!({"model": "demo", "messages": user("x"), "ignore_eos": true}).to_string();
    let headers = [("content-type", "application/json")];
    loop {
        let stream = server.send("POST", "/v1/chat/completions", &headers, body.as_bytes());
        for _ in 0..100 {
            if server.get("/health").json()["queued"] == 1 {
                return stream;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn sigterm_finishes_what_runs_and_exits_0() {
    let mut server = Server::demo(&[]);
    let body = json!({"model": "demo", "messages": user("Hi"), "max_tokens": 60, "stream": true, "ignore_eos": true});
    let headers = [("content-type", "application/json")];
    let mut stream = server.send("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes());
    let mut first = [0; 1];
    stream.read_exact(&mut first).unwrap();
    server.signal("TERM");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.contains(r#""finish_reason":"length""#) && rest.contains("[DONE]"), "{rest}");
    assert_eq!(server.wait(Duration::from_secs(20)), 0);
}

#[test]
fn the_drain_timeout_cuts_endless_answers_off() {
    let mut server = Server::demo(&["--drain-timeout", "0"]);
    let stream = endless(&server);
    server.signal("INT");
    assert_eq!(server.wait(Duration::from_secs(20)), 0);
    drop(stream);
}

#[test]
fn half_a_request_does_not_disturb() {
    let server = Server::demo(&[]);
    let mut half = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    half.write_all(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 50\r\n").unwrap();
    drop(half);
    let mut noise = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    noise.write_all(b"\x16\x03\x01\x02\x00nonsense\r\n\r\n").unwrap();
    drop(noise);
    let wrong_length = [("content-type", "application/json"), ("content-length", "10")];
    let answer = server.send("POST", "/v1/chat/completions", &wrong_length, b"{}");
    answer.shutdown(std::net::Shutdown::Write).unwrap();
    drop(answer);
    assert_eq!(server.get("/v1/models").status, 200);
}

/// Runs the server on a checkpoint that it must refuse.
fn refused(dir: &std::path::Path) -> (i32, String, String) {
    refused_with(dir, &["--no-streaming"])
}

fn refused_with(dir: &std::path::Path, arguments: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_mach-serve"))
        .arg(dir)
        .args(["--port", "0"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = |b: Vec<u8>| String::from_utf8(b).unwrap();
    (out.status.code().unwrap_or(-1), text(out.stdout), text(out.stderr))
}

fn copy_of_demo(change: impl Fn(&str, Vec<u8>) -> Option<Vec<u8>>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(DEMO).unwrap().map(Result::unwrap).filter(|e| e.path().is_file()) {
        let name = entry.file_name().into_string().unwrap();
        if let Some(bytes) = change(&name, std::fs::read(entry.path()).unwrap()) {
            std::fs::write(dir.path().join(name), bytes).unwrap();
        }
    }
    dir
}

#[test]
fn bad_checkpoints_are_refused_with_exit_code_2() {
    let broken_template =
        |n: &str, b| Some(if n == "chat_template.jinja" { b"{% if %}".to_vec() } else { b });
    let small_vocabulary = |n: &str, b: Vec<u8>| {
        let b = if n == "config.json" {
            String::from_utf8(b)
                .unwrap()
                .replace("\"vocab_size\": 16384", "\"vocab_size\": 16000")
                .into_bytes()
        } else {
            b
        };
        Some(b)
    };
    let no_tokenizer = |n: &str, b| (n != "tokenizer.json").then_some(b);
    let cases = [
        (copy_of_demo(broken_template), "chat_template.jinja"),
        (copy_of_demo(small_vocabulary), "16000"),
        (copy_of_demo(no_tokenizer), "tokenizer.json"),
    ];
    for (dir, named) in cases {
        let (code, stdout, stderr) = refused(dir.path());
        assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
        assert!(stderr.contains(named) && !stderr.contains("panicked"), "{stderr}");
    }
    let (code, _, stderr) = refused(std::path::Path::new("no/such/directory"));
    assert_eq!(code, 2, "{stderr}");
}

#[test]
fn generate_prints_the_golden_answer() {
    let out = Command::new(env!("CARGO_BIN_EXE_mach-generate"))
        .args([
            DEMO,
            "--activations",
            "f32",
            "--chat",
            "Write a binary search in Python",
            "--temperature",
            "0",
        ])
        .args(["--max-tokens", "12", "--stats", "--log-level", "error", "--threads", "1"])
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert!(out.status.success(), "{stderr}");
    assert!(stdout.starts_with("```python\ndef binary_search("), "{stdout}");
    assert!(stderr.contains("prompt   14 tokens"), "{stderr}");
}

#[test]
fn hosts_read_the_reply_as_plain_http() {
    let server = Server::demo(&[]);
    let answer: Answer = server.chat(json!({"messages": user("hi"), "max_tokens": 1, "stream": true}));
    assert!(answer.head.contains("cache-control: no-cache"));
    assert!(answer.events().len() >= 3);
}

fn streamed(arguments: &[&str]) -> Server {
    Server::start(DEMO.as_ref(), &[&["--streaming"], arguments].concat())
}

/// The text of one greedy answer.
fn greedy(server: &Server) -> (u16, Value) {
    let body =
        json!({"messages": user("Write a binary search in Python"), "max_tokens": 24, "temperature": 0});
    let answer = server.chat(body);
    (answer.status, answer.json())
}

#[test]
fn streamed_experts_answer_as_resident_ones() {
    let (status, resident) = greedy(&Server::demo(&[]));
    assert_eq!(status, 200);
    for arguments in [
        &["--expert-cache-gb", "0"][..],
        &["--expert-cache-gb", "0.004", "--bank-eviction", "lookahead"],
        &["--memory-gb", "1", "--io", "pread", "--bank-eviction", "lfu"],
    ] {
        let server = streamed(arguments);
        let line = |topic: &str| {
            let found = server.signals.iter().find(|l| l.starts_with(&format!("startup {topic} ")));
            found.unwrap_or_else(|| panic!("no {topic}: {:?}", server.signals)).clone()
        };
        assert_eq!(value(&line("mode"), "production_streaming_mode"), Some("streaming"));
        let drive = line("direct-pread");
        for (key, wanted) in [
            ("expected", "1"),
            ("sidecar_present", "1"),
            ("sidecar_valid", "1"),
            ("native_extension", "ready"),
            ("fallback_policy", "fail-fast"),
        ] {
            assert_eq!(value(&drive, key), Some(wanted), "{drive}");
        }
        let budget: usize = value(&line("memory"), "budget_bytes").unwrap().parse().unwrap();
        let (status, answer) = greedy(&server);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["choices"][0]["message"], resident["choices"][0]["message"]);
        let stats = server.get("/v1/cache/stats").json();
        let summary = &stats["streaming_summary"];
        assert!(stats["generation_in_flight"].is_boolean());
        assert!(summary["total"]["bytes_read"].as_u64().unwrap() > 0, "{stats}");
        assert_eq!(summary["layers"].as_array().unwrap().len(), 8);
        for key in ["hits", "misses", "evictions", "resident_slots", "stall_seconds", "bytes_read", "reads"] {
            assert!(summary["total"][key].is_number() && summary["layers"][7][key].is_number(), "{key}");
        }
        for key in ["active", "mode", "depth", "read_kib"] {
            assert!(!summary["direct_pread"][key].is_null(), "{key}");
        }
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap_or_default();
        let peak =
            status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        if let Some(kib) = peak {
            let kib: usize = kib;
            assert!(kib * 1024 <= budget + budget / 33, "{kib} KiB held, {budget} announced");
        }
    }
    assert!(Server::demo(&[]).get("/v1/cache/stats").json()["streaming_summary"].is_null());
}

#[test]
fn statistics_answer_while_something_is_generated() {
    let server = streamed(&["--expert-cache-gb", "0"]);
    let body = json!({"model": "demo", "messages": user("Tell me a story"), "max_tokens": 3000,
        "ignore_eos": true, "stream": true});
    let body = body.to_string();
    let headers = [("content-type", "application/json")];
    let running = server.send("POST", "/v1/chat/completions", &headers, body.as_bytes());
    let mut seen = false;
    for _ in 0..200 {
        let stats = server.get("/v1/cache/stats").json();
        seen |= stats["generation_in_flight"] == true
            && stats["streaming_summary"]["total"]["reads"].as_u64() > Some(0);
        if seen {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(seen, "a snapshot during a generation");
    drop(running);
}

#[test]
fn a_drive_that_fails_is_500_with_names_and_the_next_request_is_right() {
    let dir = copy_of_demo(|_, bytes| Some(bytes));
    let sidecar = dir.path().join("expert_sidecar");
    std::fs::create_dir(&sidecar).unwrap();
    for entry in std::fs::read_dir(format!("{DEMO}/expert_sidecar")).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), sidecar.join(entry.file_name())).unwrap();
    }
    let server =
        Server::start(dir.path(), &["--streaming", "--expert-cache-gb", "0", "--served-model-name", "demo"]);
    let (status, right) = greedy(&server);
    assert_eq!(status, 200, "{right}");
    let file = sidecar.join("layer-003.experts");
    let good = std::fs::read(&file).unwrap();

    let mut flipped = good.clone();
    for at in (100..flipped.len()).step_by(16 << 10) {
        flipped[at] ^= 1;
    }
    std::fs::write(&file, &flipped).unwrap();
    let (status, answer) = greedy(&server);
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 500);
    assert!(message.contains("layer-003.experts") && message.contains("of layer 3 is damaged"), "{message}");
    std::fs::write(&file, &good[..good.len() / 64]).unwrap();
    let (status, answer) = greedy(&server);
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 500);
    assert!(message.contains("layer-003.experts: truncated"), "{message}");
    std::fs::write(&file, &good).unwrap();
    let (status, answer) = greedy(&server);
    assert_eq!((status, &answer["choices"][0]["message"]), (200, &right["choices"][0]["message"]));
    drop(server);

    std::fs::write(&file, &good[..good.len() - 1]).unwrap();
    let (code, stdout, stderr) = refused_with(dir.path(), &["--streaming"]);
    assert_eq!(code, 2, "{stderr}");
    assert!(stdout.contains("sidecar_present=1 sidecar_valid=0"), "{stdout}");
    assert!(stderr.contains("layer-003.experts") && stderr.contains("mach convert SOURCE"), "{stderr}");
    std::fs::write(&file, &good).unwrap();
    let (code, _, stderr) = refused_with(dir.path(), &["--streaming", "--memory-gb", "0.01"]);
    assert_eq!(code, 2);
    assert!(
        stderr.contains("streaming needs at least") && stderr.contains("--memory-gb allows 10.00 MB"),
        "{stderr}"
    );
    let (code, _, stderr) = refused_with(dir.path(), &["--no-streaming", "--memory-gb", "0.02"]);
    assert_eq!(code, 2);
    assert!(stderr.contains("all experts in memory need") && stderr.contains("--streaming"), "{stderr}");
}
