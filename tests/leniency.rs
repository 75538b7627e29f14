//! Clients differ: what no meaning is lost by is accepted, and told.

mod common;

use common::{Answer, DEMO, Server};
use serde_json::{Value, json};

const JSON: (&str, &str) = ("content-type", "application/json");

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

fn header<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn unknown_fields_are_named_in_a_header_or_refused_if_asked() {
    let server = Server::demo(&[]);
    let ask = |stream: bool| {
        server.chat(
            json!({"messages": [{"role": "user", "content": "hi", "mood": 1}], "colour": "red", "grün": 2,
            "max_tokens": 2, "stream": stream}),
        )
    };
    for stream in [false, true] {
        let answer = ask(stream);
        assert_eq!(answer.status, 200, "{}", answer.body);
        let named = header(&answer, "x-ignored-fields").unwrap();
        for field in ["messages[].mood", "colour", "gr\\u{fc}n"] {
            assert!(named.contains(field), "{named}");
        }
    }
    for (path, body) in [
        ("/v1/completions", json!({"prompt": "a", "max_tokens": 1, "colour": 1})),
        ("/tokenize", json!({"content": "a", "colour": 1})),
        ("/detokenize", json!({"tokens": [1], "colour": 1})),
    ] {
        let answer = server.post(path, &body.to_string());
        assert_eq!((answer.status, header(&answer, "x-ignored-fields")), (200, Some("colour")), "{path}");
    }
    let clean = server.chat(json!({"messages": user("hi"), "max_tokens": 1, "user": "me"}));
    assert_eq!(header(&clean, "x-ignored-fields"), None);
    let strict = Server::demo(&["--strict-fields"]);
    let refused = strict.chat(json!({"messages": user("hi"), "colour": 1}));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("colour")));
}

#[test]
fn lengths_models_and_keys_as_clients_send_them() {
    let server = Server::demo(&["--max-context", "100", "--api-key", "secret"]);
    let ask = |path: &str, body: Value| {
        server.request("POST", path, &[JSON, ("x-api-key", "secret")], body.to_string().as_bytes())
    };
    // Cut to the context, whatever was asked for.
    let long =
        ask("/v1/chat/completions", json!({"messages": user("a"), "max_tokens": 32000, "ignore_eos": true}));
    assert_eq!((long.status, &long.json()["model"]), (200, &json!("demo")), "{}", long.body);
    assert_eq!(long.json()["usage"]["total_tokens"], 100);
    assert_eq!(long.json()["choices"][0]["finish_reason"], "length");
    for tokens in [json!(-1), Value::Null] {
        let body = json!({"prompt": "a", "max_tokens": tokens, "ignore_eos": true});
        assert_eq!(ask("/v1/completions", body).json()["usage"]["total_tokens"], 100);
    }
    // No tokens: the prompt comes back if asked for, whole and streamed.
    let none = ask("/v1/completions", json!({"prompt": "Once upon", "max_tokens": 0, "echo": true}));
    let choice = &none.json()["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("Once upon"), &json!("length")));
    assert_eq!(none.json()["usage"]["completion_tokens"], 0);
    let streamed = ask("/v1/completions", json!({"prompt": "Once upon", "max_tokens": 0, "stream": true}));
    assert!(streamed.body.ends_with("data: [DONE]\n\n"), "{}", streamed.body);
    let wrong = server.request("GET", "/v1/models", &[("x-api-key", "other")], b"");
    assert_eq!(wrong.status, 401);
    let bearer = server.request("GET", "/v1/models", &[("authorization", "Bearer secret")], b"");
    assert_eq!(bearer.status, 200);
}

#[test]
fn paths_are_found_and_probes_answer() {
    let server = Server::demo(&[]);
    let body = json!({"messages": user("hi"), "max_tokens": 1}).to_string();
    for path in
        ["/chat/completions", "//v1/chat/completions", "/v1//chat/completions", "/v1/v1/chat/completions"]
    {
        assert_eq!(server.post(path, &body).status, 200, "{path}");
    }
    assert_eq!(server.get("/models/demo").json()["id"], "demo");
    let lost = server.post("/api/v1/chat/completions", &body);
    let message = lost.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(lost.status == 404 && message.contains("did you mean /v1/chat/completions?"), "{message}");
    for path in ["/health", "/healthz", "/ping"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    assert_eq!(server.get("/version").json()["version"], env!("CARGO_PKG_VERSION"));
    let plain = server.post("/tokenize", &json!({"prompt": "Hello there"}).to_string()).json();
    assert_eq!(server.post("/tokenize", &json!({"content": "Hello there"}).to_string()).json(), plain);
}

#[test]
fn answers_carry_the_name_of_their_arithmetic() {
    let server = Server::demo(&[]);
    let whole = server.chat(json!({"messages": user("hi"), "max_tokens": 2})).json();
    assert_eq!(whole["system_fingerprint"], "mach-2-int8");
    let chunks = server.chat(json!({"messages": user("hi"), "max_tokens": 2, "stream": true})).chunks();
    assert!(chunks.iter().all(|chunk| chunk["system_fingerprint"] == "mach-2-int8"));
    let plain = server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 1}).to_string()).json();
    assert_eq!(plain["system_fingerprint"], "mach-2-int8");
    let other = Server::demo(&["--turboquant-kv", "k4v3"]);
    let answer = other.chat(json!({"messages": user("hi"), "max_tokens": 1})).json();
    assert_ne!(answer["system_fingerprint"], whole["system_fingerprint"]);
}

#[test]
fn an_answer_goes_on_where_its_beginning_ends() {
    let server = Server::demo(&[]);
    let whole = server.chat(json!({"messages": user("Write a binary search in Python"), "temperature": 0,
        "max_tokens": 40}));
    let text = whole.text();
    let at = text.char_indices().nth(25).unwrap().0;
    // Where a word ends, so that the tokens of the beginning are those that were generated.
    let at = text[..at].rfind('\n').map_or(at, |line| line);
    let messages = json!([{"role": "user", "content": "Write a binary search in Python"},
        {"role": "assistant", "content": text[..at]}]);
    let more = server.chat(json!({"messages": messages, "temperature": 0, "continue_final_message": true,
        "max_tokens": 10}));
    assert_eq!(more.status, 200, "{}", more.body);
    assert!(
        text[at..].starts_with(&more.text()) || more.text().starts_with(&text[at..]),
        "{:?}",
        more.text()
    );
    let refused = server.chat(json!({"messages": user("a"), "continue_final_message": true}));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("continue_final_message")));
}

#[test]
fn answers_are_guided_and_calls_allowed() {
    let server = Server::demo(&[]);
    let guided =
        server.chat(json!({"messages": user("Pick"), "guided_choice": ["red", "blue"], "temperature": 0}));
    assert!(["red", "blue"].contains(&guided.text().as_str()), "{}", guided.body);
    let plain =
        json!({"prompt": "A year: ", "structured_outputs": {"regex": "[12][0-9]{3}"}, "max_tokens": 20});
    let answer = server.post("/v1/completions", &plain.to_string()).json();
    let year = answer["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!(year.len() == 4 && year.parse::<u32>().is_ok(), "{answer}");
    let function = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}});
    let allowed = server.chat(json!({"messages": user("hi"), "temperature": 0, "max_tokens": 60,
        "tools": [function("f"), function("g")],
        "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [function("g")]}}}));
    let calls = allowed.json()["choices"][0]["message"]["tool_calls"].clone();
    assert!(calls.as_array().unwrap().iter().all(|call| call["function"]["name"] == "g"), "{calls}");
}

#[test]
fn functions_of_the_older_kind_are_called() {
    let server = Server::demo(&[]);
    let fields = |stream: bool| {
        json!({"messages": user("hi"), "temperature": 0, "max_tokens": 60, "stream": stream,
            "functions": [{"name": "f", "parameters": {"type": "object", "properties": {}}}],
            "function_call": {"name": "f"}})
    };
    let whole = server.chat(fields(false)).json()["choices"][0].clone();
    assert_eq!(whole["finish_reason"], "function_call", "{whole}");
    assert_eq!(whole["message"]["function_call"], json!({"name": "f", "arguments": "{}"}));
    assert!(whole["message"]["tool_calls"].is_null() && whole["message"]["content"].is_null());
    let chunks = server.chat(fields(true)).chunks();
    // The first chunk says who speaks and whom it calls; no content, not even an empty one.
    let deltas: Vec<&Value> = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"]).collect();
    assert_eq!((&deltas[0]["role"], &deltas[0]["function_call"]["name"]), (&json!("assistant"), &json!("f")));
    assert!(deltas.iter().all(|delta| delta.get("content").is_none()), "{deltas:?}");
    let arguments: String = deltas.iter().filter_map(|d| d["function_call"]["arguments"].as_str()).collect();
    assert_eq!(arguments, "{}");
    // It comes back, and so does its result.
    let messages = json!([{"role": "user", "content": "hi"}, whole["message"],
        {"role": "function", "name": "f", "content": "done"}]);
    assert_eq!(server.chat(json!({"messages": messages, "max_tokens": 2})).status, 200);
}

#[test]
fn what_was_answered_before_does_not_change_a_prompt() {
    // Sampled high, so that the answer's own tokens are not those that its text has.
    let ask = |server: &Server, messages: &Value, fields: &Value| {
        let mut body = json!({"messages": messages, "max_tokens": 40});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        server.chat(body).json()
    };
    let hot = json!({"temperature": 1.6, "top_p": 1, "top_k": 0});
    let (known, fresh) = (Server::demo(&[]), Server::demo(&["--no-prefix-cache"]));
    let remembering = Server::demo(&["--remember-turns"]);
    let mut others = 0;
    for seed in 0..8 {
        let question = json!({"role": "user", "content": format!("Explain topic number {seed} of physics.")});
        let first = |server: &Server| {
            let mut fields = hot.clone();
            fields["seed"] = seed.into();
            ask(server, &json!([question]), &fields)["choices"][0]["message"]["content"].clone()
        };
        let said = first(&known);
        assert_eq!(first(&remembering), said);
        let follow = json!([question, {"role": "assistant", "content": said}, {"role": "user", "content": "Shorter."}]);
        let cold = json!({"temperature": 0});
        let [a, b, c] = [&known, &fresh, &remembering].map(|server| ask(server, &follow, &cold));
        assert_eq!(a["choices"], b["choices"], "seed {seed}");
        assert_eq!(a["usage"]["prompt_tokens"], b["usage"]["prompt_tokens"]);
        others += u32::from(a["usage"]["prompt_tokens"] != c["usage"]["prompt_tokens"]);
    }
    assert!(others > 0, "the option makes a difference, so this test can tell");
}

#[test]
fn the_reason_of_a_refusal_is_in_its_log_line() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let server = Server::logged(DEMO.as_ref(), &["--no-streaming"], log.reopen().unwrap());
    let headers = [JSON, ("x-request-id", "run-7")];
    let body = json!({"messages": user("a"), "temperature": 9}).to_string();
    assert_eq!(server.request("POST", "/v1/chat/completions", &headers, body.as_bytes()).status, 400);
    let text = common::eventually(|| {
        let text = std::fs::read_to_string(log.path()).unwrap();
        text.contains("request ended").then_some(text)
    });
    let line = text.lines().find(|line| line.contains("run-7") && line.contains("request ended")).unwrap();
    assert!(line.contains("temperature: must be between 0 and 2"), "{line}");
}
