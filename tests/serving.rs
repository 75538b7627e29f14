//! The serving surface beyond chats: requests that share passes, completions, tokens, capabilities, metrics, limits.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{Answer, DEMO, Server};
use serde_json::{Value, json};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn chat_body(text: &str, extra: &Value) -> String {
    let mut body = json!({"model": "demo", "messages": user(text), "temperature": 0.8, "seed": 4});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body.to_string()
}

/// A stream that goes on until it is dropped.
fn endless(server: &Server) -> TcpStream {
    let body = chat_body("Tell me a story", &json!({"stream": true, "ignore_eos": true}));
    let mut stream = server.send("POST", "/v1/chat/completions", &JSON, body.as_bytes());
    let mut some = [0; 1024];
    assert!(stream.read(&mut some).unwrap() > 0);
    stream
}

#[test]
fn chats_at_the_same_time_say_what_they_say_alone() {
    let server = Server::demo(&["--no-prefix-cache"]);
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
        "required": ["city", "people"], "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "city", "strict": true, "schema": schema}});
    let tool = json!({"type": "function", "function": {"name": "look_up", "parameters": schema}});
    let asks: Vec<String> = [
        ("Write a binary search in Python", json!({"max_tokens": 80})),
        ("Name a city", json!({"max_tokens": 60, "response_format": format})),
        ("Tell me about the sea.", json!({"max_tokens": 80})),
        ("Look up a city", json!({"max_tokens": 60, "tools": [tool], "tool_choice": "required"})),
    ]
    .iter()
    .map(|(text, extra)| chat_body(text, extra))
    .collect();
    // Ids of calls are fresh each time.
    let said = |answer: &Answer| {
        assert_eq!(answer.status, 200, "{}", answer.body);
        let mut message = answer.json()["choices"][0]["message"].clone();
        for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
            call["id"] = Value::Null;
        }
        message
    };
    let alone: Vec<Value> = asks.iter().map(|ask| said(&server.post("/v1/chat/completions", ask))).collect();
    let sent: Vec<TcpStream> =
        asks.iter().map(|ask| server.send("POST", "/v1/chat/completions", &JSON, ask.as_bytes())).collect();
    let together: Vec<Answer> = sent.into_iter().map(Answer::read).collect();
    assert_eq!(together.iter().map(said).collect::<Vec<_>>(), alone);
    // Streams tell how they start.
    let running = endless(&server);
    let streamed = server.chat(json!({"messages": user("Hello"), "stream": true, "max_tokens": 5}));
    assert!(streamed.head.contains("x-decode-mode: batched"), "{}", streamed.head);
    assert!(streamed.head.contains("x-active-loops: 2"), "{}", streamed.head);
    drop(running);
    let metrics = server.get("/metrics").body;
    let shared = metric(&metrics, "mach_batched_passes_total");
    assert!(shared > 10.0, "{metrics}");
}

fn metric(text: &str, name: &str) -> f64 {
    let line =
        text.lines().find(|l| l.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{name}: {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn one_after_another_where_batching_is_off() {
    let server =
        Server::demo(&["--no-continuous-batching", "--max-queue", "1", "--decode-path", "target-only"]);
    assert_eq!(server.get("/v1/capabilities").json()["serving"]["continuous_batching"], false);
    let alone = server.chat(json!({"messages": user("Hello"), "max_tokens": 2}));
    assert!(alone.head.contains("x-decode-mode: target_only") && alone.head.contains("x-active-loops: 1"));
    let running = endless(&server);
    let waiting = server.send("POST", "/v1/chat/completions", &JSON, chat_body("x", &json!({})).as_bytes());
    while server.get("/health").json()["queued"] != 1 {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(server.chat(json!({"messages": user("hi")})).status, 429);
    drop((running, waiting));
}

#[test]
fn capabilities_are_those_of_the_running_server() {
    let archs = |args: &[&str]| -> Value {
        let out = Command::new(env!("CARGO_BIN_EXE_mach-archs")).args(args).output().unwrap();
        assert!(out.status.success());
        serde_json::from_slice(&out.stdout).unwrap()
    };
    let server = Server::demo(&[]);
    let all = server.get("/v1/capabilities").json();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&all), ["model", "backend", "supported", "arch", "serving", "grammar"]);
    assert_eq!(all["arch"], archs(&["--json", DEMO]));
    let families = archs(&["--json"]);
    assert!(families.as_array().unwrap().contains(&all["arch"]));
    assert_eq!(
        (&all["arch"]["kv_cache_kind"], &all["arch"]["continuous_batching"]),
        (&json!("hybrid_gdn"), &json!("ok"))
    );
    let serving = &all["serving"];
    let wanted = [
        "expert_residency",
        "serving_mode",
        "decode_path",
        "effective_decode_path",
        "effective_decode_path_reason",
        "continuous_batching",
        "turboquant_kv",
        "decode_policy",
        "speculation",
        "rho_gate",
    ];
    assert_eq!(keys(serving), wanted);
    assert_eq!(
        (&serving["serving_mode"], &serving["effective_decode_path"]),
        (&json!("resident"), &json!("specdec_v7"))
    );
    assert_eq!(serving["speculation"]["supported_presets"].as_array().unwrap().len(), 3);
    assert!(all["grammar"]["llguidance"] == true && serving["rho_gate"].is_null());
    let other = ["--streaming", "--expert-cache-gb", "0.02", "--serving-adaptive-block-policy", "off"];
    let serving = Server::start(DEMO.as_ref(), &other).get("/v1/capabilities").json()["serving"].clone();
    assert_eq!(
        (&serving["expert_residency"], &serving["serving_mode"]),
        (&json!("streaming"), &json!("streaming"))
    );
    assert_eq!(serving["decode_policy"], json!({"mode": "target-only", "engine_mode": "native"}));
    assert_eq!(serving["speculation"]["supported_presets"], json!(["none"]));
}

#[test]
fn plain_prompts_of_every_form() {
    let server = Server::demo(&["--no-prefix-cache"]);
    let ask = |mut fields: Value| {
        fields["model"] = "demo".into();
        server.post("/v1/completions", &fields.to_string())
    };
    let texts = |answer: &Answer| -> Vec<String> {
        assert_eq!(answer.status, 200, "{}", answer.body);
        let choices = answer.json()["choices"].as_array().unwrap().clone();
        let indices: Vec<_> = choices.iter().map(|c| c["index"].as_u64().unwrap()).collect();
        assert_eq!(indices, (0..choices.len() as u64).collect::<Vec<_>>());
        choices.iter().map(|c| c["text"].as_str().unwrap().to_owned()).collect()
    };
    let prompt = "def binary_search(items, target):\n";
    let whole = ask(json!({"prompt": prompt, "temperature": 0}));
    let text = texts(&whole).remove(0);
    assert_eq!(whole.json()["object"], "text_completion");
    assert_eq!(whole.json()["usage"]["completion_tokens"], 16, "{}", whole.body);

    let tokens = server.post("/tokenize", &json!({"prompt": prompt}).to_string()).json()["tokens"].clone();
    assert_eq!(texts(&ask(json!({"prompt": tokens, "temperature": 0}))), [text.as_str()]);
    let echoed = format!("{prompt}{text}");
    assert_eq!(texts(&ask(json!({"prompt": tokens, "temperature": 0, "echo": true}))), [echoed.as_str()]);

    let several =
        json!({"prompt": [prompt, tokens, "Once"], "n": 2, "seed": 3, "max_tokens": 8, "logprobs": 2});
    let answer = ask(several.clone());
    let all = texts(&answer);
    assert_eq!((all.len(), &all[..2]), (6, &all[2..4]), "the same prompt twice");
    assert_ne!(all[0], all[1]);
    let logprobs = &answer.json()["choices"][0]["logprobs"];
    let count = |list: &str| logprobs[list].as_array().unwrap().len();
    assert_eq!(
        (count("tokens"), count("token_logprobs"), count("top_logprobs"), count("text_offset")),
        (8, 8, 8, 8)
    );

    let mut streamed = several;
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let mut said = vec![String::new(); 6];
    let chunks = ask(streamed).chunks();
    for choice in chunks.iter().filter_map(|c| c["choices"].get(0)) {
        said[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(said, all);
    assert_eq!(chunks.last().unwrap()["usage"], answer.json()["usage"]);

    for (fields, param) in [
        (json!({"prompt": "a", "suffix": "b"}), "suffix"),
        (json!({"prompt": [99_999]}), "prompt"),
        (json!({"prompt": "a", "messages": []}), "messages"),
        (json!({"prompt": "word ".repeat(9000)}), "prompt"),
    ] {
        let refused = ask(fields);
        assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!(param)));
    }
    let unknown = server.post("/v1/completions", r#"{"model": "x", "prompt": "a"}"#);
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
}

#[test]
fn text_becomes_tokens_and_tokens_become_text() {
    let server = Server::demo(&[]);
    let post = |path: &str, body: Value| server.post(path, &body.to_string());
    let text = "naïve 日本語 <|im_end|> x";
    let tokens = post("/tokenize", json!({"prompt": text, "return_token_strs": true})).json();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    assert_eq!(
        (tokens["token_strs"].as_array().unwrap().len(), &tokens["max_model_len"]),
        (tokens["count"].as_u64().unwrap() as usize, &json!(8192))
    );
    assert_eq!(post("/detokenize", json!({"tokens": tokens["tokens"]})).json()["prompt"], text);
    let chat = json!({"messages": user("Hello")});
    let prompt = post("/tokenize", chat.clone()).json();
    let answered = server.chat(json!({"messages": user("Hello"), "max_tokens": 1})).json();
    assert_eq!(prompt["count"], answered["usage"]["prompt_tokens"]);
    let rendered = post("/detokenize", json!({"tokens": prompt["tokens"]})).json()["prompt"].clone();
    assert!(rendered.as_str().unwrap().contains("<|im_start|>user\nHello"), "{rendered}");
    let mut closed = chat;
    closed["add_generation_prompt"] = false.into();
    assert!(post("/tokenize", closed).json()["count"].as_u64() < prompt["count"].as_u64());
    assert_eq!(post("/detokenize", json!({"tokens": [99_999]})).json()["error"]["param"], "tokens[0]");
    assert_eq!(post("/tokenize", json!({"prompt": "a", "model": "x"})).status, 404);
}

#[test]
fn ids_and_counters() {
    let server = Server::demo(&[]);
    let given = server.request("GET", "/v1/models", &[("x-request-id", "trace-1")], b"");
    assert!(given.head.contains("x-request-id: trace-1"), "{}", given.head);
    let made = server.request("GET", "/v1/models", &[("x-request-id", "bad id\"")], b"");
    assert!(made.head.contains("x-request-id: ") && !made.head.contains("bad id"), "{}", made.head);
    let before = server.get("/metrics");
    assert!(before.head.contains("openmetrics-text"), "{}", before.head);
    let asked = server.chat(json!({"messages": user("Hello"), "max_tokens": 9, "ignore_eos": true}));
    let usage = asked.json()["usage"].clone();
    let after = server.get("/metrics").body;
    let grown = |name: &str| metric(&after, name) - metric(&before.body, name);
    assert_eq!(grown("mach_generation_tokens_total"), 9.0);
    assert_eq!(grown("mach_prompt_tokens_total"), usage["prompt_tokens"].as_f64().unwrap());
    assert_eq!(grown("mach_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(grown("mach_inter_token_latency_seconds_count"), 8.0);
    assert_eq!(grown("mach_prefix_cache_queries_total"), 1.0);
    assert!(after.contains(r#"mach_request_success_total{finished_reason="length"} 1"#), "{after}");
    assert!(after.contains(r#"handler="/v1/chat/completions",status="200"} 1"#), "{after}");
    assert!(after.ends_with("# EOF\n"));
    for name in [
        "mach_unread_bytes",
        "mach_num_requests_running",
        "mach_num_requests_waiting",
        "mach_spec_decode_num_draft_tokens_total",
    ] {
        metric(&after, name);
    }
}

#[test]
fn limits_have_their_own_answers() {
    let limits = [
        "--queue-timeout",
        "0.2",
        "--request-timeout",
        "2",
        "--max-batch",
        "1",
        "--max-concurrent-per-key",
        "2",
    ];
    let server = Server::demo(
        &[&limits[..], &["--max-context", "100000", "--cors-origin", "https://a.example"]].concat(),
    );
    let with_key = |key: &str, body: &str| {
        let headers = [("content-type", "application/json"), ("authorization", key)];
        server.send("POST", "/v1/chat/completions", &headers, body.as_bytes())
    };
    let story = chat_body("Tell me a story", &json!({"ignore_eos": true}));
    let first = with_key("Bearer a", &story);
    while server.get("/v1/cache/stats").json()["generation_in_flight"] != true {
        std::thread::sleep(Duration::from_millis(2));
    }
    let second = with_key("Bearer a", &chat_body("Hi", &json!({"stream": true})));
    std::thread::sleep(Duration::from_millis(50));
    let third = Answer::read(with_key("Bearer a", &story));
    assert_eq!((third.status, &third.json()["error"]["code"]), (429, &json!("concurrency_limit")));
    assert!(third.head.contains("retry-after: 1"));
    let second = Answer::read(second);
    assert_eq!(
        (second.status, &second.json()["error"]["code"]),
        (503, &json!("queue_timeout")),
        "{}",
        second.body
    );
    let first = Answer::read(first);
    // The demo may fill its context before the limit on a fast machine.
    if first.status != 200 {
        assert_eq!((first.status, &first.json()["error"]["code"]), (504, &json!("request_timeout")));
    }
    assert_eq!(Answer::read(with_key("Bearer a", &chat_body("Hi", &json!({"max_tokens": 1})))).status, 200);

    let preflight = |origin: &str| {
        let headers = [("origin", origin), ("access-control-request-method", "POST")];
        server.request("OPTIONS", "/v1/chat/completions", &headers, b"").head
    };
    assert!(preflight("https://a.example").contains("access-control-allow-origin: https://a.example"));
    assert!(!preflight("https://b.example").contains("access-control-allow-origin"));
    let long_head = "x".repeat(100_000);
    assert_eq!(server.request("GET", "/health", &[("x-long", &long_head)], b"").status, 431);
}

#[test]
fn hostile_bodies_are_named_400s() {
    let server = Server::demo(&[]);
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_schema = (0..5000)
        .fold(json!({"type": "string"}).to_string(), |s, _| format!(r#"{{"type":"array","items":{s}}}"#));
    let head = r#"{"model":"demo","messages":[{"role":"user","content":"a"}],"#;
    let tool = r#"{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}"#;
    let tools = vec![tool; 10_000].join(",");
    let long = "word ".repeat(2_000_000);
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (format!(r#"{{"model":"demo","messages":[{{"role":"user","content":"{long}"}}]}}"#).into(), "messages"),
        (format!(r#"{head}"tools":[{tools}]}}"#).into(), "tools"),
        (format!(r#"{head}"temperature":NaN}}"#).into(), "temperature"),
        (format!(r#"{head}"temperature":1e999}}"#).into(), "temperature"),
        (format!(r#"{head}"logit_bias":{{"5":-Infinity}}}}"#).into(), "logit_bias.5"),
        (format!(r#"{head}"metadata":{deep}}}"#).into(), "metadata"),
        (
            format!(r#"{head}"tools":[{{"type":"function","function":{{"name":"f","parameters":{deep_schema}}}}}]}}"#).into(),
            "tools[0].function.parameters",
        ),
        ([head.as_bytes(), b"\"user\":\"\xff\xfe\"}"].concat(), "user"),
        (b"\xff\xfe\x00{".to_vec(), ""),
        (b"".to_vec(), ""),
    ];
    for (body, field) in cases {
        let start = Instant::now();
        let answer = server.request("POST", "/v1/chat/completions", &JSON, &body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(150)]).into_owned();
        assert_eq!(answer.status, 400, "{shown}: {}", answer.body);
        let param = answer.json()["error"]["param"].as_str().unwrap_or_default().to_owned();
        assert!(param.starts_with(field), "{shown}: {param:?}");
        assert!(start.elapsed() < Duration::from_secs(20), "{shown}");
    }
    assert_eq!(server.chat(json!({"messages": user("hi"), "max_tokens": 1})).status, 200);
}

#[test]
fn readers_that_do_not_read_hold_up_nobody() {
    let server = Server::demo(&["--max-batch", "2"]);
    let body = chat_body(
        "Tell me a story",
        &json!({
            "stream": true, "ignore_eos": true, "max_tokens": 1500, "logprobs": true, "top_logprobs": 20,
        }),
    );
    let lazy: Vec<TcpStream> =
        (0..3).map(|_| server.send("POST", "/v1/chat/completions", &JSON, body.as_bytes())).collect();
    // Half a head, and half a body.
    let mut half = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    half.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n").unwrap();
    let mut slow = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    slow.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{").unwrap();
    assert_eq!(server.get("/health").status, 200);
    // All of them are generated although nobody reads, and then it is this one's turn.
    assert_eq!(server.chat(json!({"messages": user("hi"), "max_tokens": 3})).status, 200);
    drop((lazy, half, slow));
}

#[test]
fn the_messages_api_has_its_own_name_of_the_id() {
    let server = Server::demo(&[]);
    let other = server.request("GET", "/v1/models", &[("x-request-id", "trace-1")], b"");
    assert!(!other.head.contains("\r\nrequest-id: "), "{}", other.head);
    // Also where a request is refused.
    for body in [&br#"{"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}"#[..], b"{}"] {
        let answer = server.request("POST", "/v1/messages", &[JSON[0], ("x-request-id", "trace-2")], body);
        assert!(answer.head.contains("\r\nrequest-id: trace-2"), "{}", answer.head);
    }
}

#[test]
fn the_openapi_document_names_the_routes() {
    let server = Server::demo(&[]);
    let document = server.get("/openapi.json").json();
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let chat = &document["components"]["schemas"]["ChatRequest"]["properties"];
    assert_eq!(chat["model"]["enum"], json!(["demo"]));
    for (path, methods) in document["paths"].as_object().unwrap() {
        let path = path.replace("{id}", "demo").replace("{file}", "app.js");
        for method in methods.as_object().unwrap().keys() {
            let answer = server.request(&method.to_uppercase(), &path, &JSON, b"{}");
            // Nothing is kept here.
            let kept =
                path.starts_with("/v1/responses/") && answer.json()["error"]["code"] == "response_not_found";
            assert!(kept || ![404, 405].contains(&answer.status), "{method} {path}: {}", answer.status);
        }
    }
}
