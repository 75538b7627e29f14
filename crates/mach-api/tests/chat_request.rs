//! Parsing of chat requests: what is accepted, and which field an error names.

use mach_api::chat::{ChatRequest, Content, Limits, ResponseFormat, Role, SpeculationPreset, ToolChoice};
use mach_api::{ApiError, ErrorKind};
use proptest::prelude::*;
use serde_json::{Value, json};

fn parse(body: &str) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(body.as_bytes(), &Limits::default())
}

/// A minimal request with one more field.
fn with(name: &str, value: Value) -> Result<ChatRequest, ApiError> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body[name] = value;
    parse(&body.to_string())
}

fn param(name: &str, value: Value) -> String {
    let error = with(name, value.clone()).expect_err(&format!("{name}: {value}"));
    assert_eq!(error.kind, ErrorKind::InvalidRequest);
    let param = error.param.expect("a field is named");
    assert!(error.message.starts_with(&param), "{}", error.message);
    param
}

#[test]
fn all_sampling_fields_are_read() {
    let body = json!({
        "model": "m", "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.05,
        "seed": -3, "stop": "x", "frequency_penalty": -2, "presence_penalty": 2.0, "repetition_penalty": 1.1,
        "logit_bias": {"17": -100}, "logprobs": true, "top_logprobs": 20, "n": 2, "stream": true,
        "stream_options": {"include_usage": true}, "user": "u", "metadata": {}, "store": false,
        "service_tier": "auto", "response_format": {"type": "text"}, "tools": null, "ignore_eos": true,
        "stop_token_ids": [3],
    });
    let r = parse(&body.to_string()).unwrap();
    let r = r.settings;
    assert_eq!(r.max_tokens, Some(7));
    assert_eq!(r.sampling.temperature, Some(0.5));
    assert_eq!(r.sampling.top_k, Some(0));
    assert_eq!(r.sampling.seed, Some(u64::MAX - 2));
    assert_eq!(r.sampling.logit_bias, [(17, -100.0)]);
    assert_eq!((r.logprobs, r.n, r.stream, r.include_usage), (Some(20), 2, true, true));
    assert_eq!(r.stop, ["x"]);
    assert_eq!((r.ignore_eos, r.stop_token_ids), (true, vec![3]));
}

#[test]
fn numbers_out_of_range_are_named() {
    for (name, value) in [
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!(1e300)),
        ("temperature", json!("0.5")),
        ("top_p", json!(1.5)),
        ("min_p", json!(-1)),
        ("top_k", json!(-2)),
        ("top_k", json!(1.5)),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-2)),
        ("max_tokens", json!(1e18)),
        ("max_completion_tokens", json!(true)),
        ("frequency_penalty", json!(2.5)),
        ("presence_penalty", json!(-3)),
        ("repetition_penalty", json!(0)),
        ("repetition_penalty", json!(-1)),
        ("n", json!(0)),
        ("n", json!(129)),
        ("top_logprobs", json!(21)),
        ("top_logprobs", json!(1)),
        ("seed", json!(0.5)),
        ("seed", json!(1e30)),
        ("logprobs", json!(3)),
        ("stream", json!("yes")),
        ("stream_options", json!({})),
        ("stop", json!(4)),
        ("messages", json!([])),
        ("messages", json!("hi")),
        ("model", json!(1)),
        ("tools", json!({})),
        ("tool_choice", json!("required")),
        ("chat_template_kwargs", json!([])),
    ] {
        assert_eq!(param(name, value), name);
    }
}

#[test]
fn nested_fields_are_named_by_their_path() {
    for (name, value, want) in [
        ("messages", json!([{"role": "user"}]), "messages[0].content"),
        ("messages", json!([{"content": "x"}]), "messages[0].role"),
        ("messages", json!([{"role": "robot", "content": "x"}]), "messages[0].role"),
        ("messages", json!([{"role": "user", "content": 3}]), "messages[0].content"),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
            "messages[0].content[0].type",
        ),
        (
            "messages",
            json!([{"role": "assistant", "tool_calls": [{"function": {"name": 3}}]}]),
            "messages[0].tool_calls[0].function.name",
        ),
        ("tools", json!([{"type": "function"}]), "tools[0].function"),
        ("tools", json!([{"type": "web"}]), "tools[0].type"),
        ("tools", json!([{"function": {"name": "f", "parameters": 3}}]), "tools[0].function.parameters"),
        ("stop", json!(["a", ""]), "stop[1]"),
        ("logit_bias", json!({"x": 1}), "logit_bias"),
        ("logit_bias", json!({"5": 101}), "logit_bias.5"),
        ("chat_template_kwargs", json!({"messages": []}), "chat_template_kwargs.messages"),
    ] {
        assert_eq!(param(name, value), want);
    }
}

#[test]
fn fields_that_would_change_the_answer_are_refused_by_name() {
    for (name, value) in [
        ("functions", json!([{}])),
        ("best_of", json!(2)),
        ("guided_regex", json!("")),
        ("chat_template", json!("{{ messages }}")),
        ("prompt_logprobs", json!(1)),
        ("use_beam_search", json!(true)),
        ("web_search_options", json!({})),
    ] {
        assert!(param(name, value).starts_with(name));
    }
    for (name, value) in
        [("best_of", json!(1)), ("no_such_field", json!(null)), ("parallel_tool_calls", json!(true))]
    {
        with(name, value).unwrap();
    }
}

#[test]
fn numbers_that_are_no_numbers_are_named() {
    for text in ["NaN", "1e999", "-1e999", "Infinity"] {
        let body =
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"temperature":{text}}}"#);
        assert_eq!(parse(&body).unwrap_err().param.as_deref(), Some("temperature"), "{text}");
    }
}

#[test]
fn broken_bodies_are_refused() {
    for body in ["", "{", "[]", "3", "{} {}", "\u{1}"] {
        assert_eq!(parse(body).unwrap_err().kind, ErrorKind::InvalidRequest, "{body:?}");
    }
    let deep = format!(
        r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"metadata":{}{}}}"#,
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    assert!(parse(&deep).unwrap_err().message.contains("recursion"));
}

#[test]
fn messages_keep_their_parts_and_calls() {
    let r = parse(
        &json!({"model": "m", "messages": [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [], "audio": null,
             "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":2}"}}]},
            {"role": "tool", "tool_call_id": "c", "content": "ok"},
        ]})
        .to_string(),
    )
    .unwrap();
    assert_eq!(r.conversation.messages[0].role, Role::Developer);
    assert_eq!(r.conversation.messages[1].content, Content::Parts(vec!["a".into(), "b".into()]));
    let keys: Vec<_> = r.conversation.messages[2].tool_calls[0].arguments.keys().collect();
    assert_eq!(keys, ["b", "a"]);
    assert_eq!(r.conversation.messages[3].tool_call_id.as_deref(), Some("c"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop_oneof![Just("user"), Just("tool"), Just("function"), Just("text"), Just("none")]
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let key = prop_oneof![
            "[a-z]{1,6}".boxed(),
            prop::sample::select(vec![
                "role",
                "content",
                "type",
                "text",
                "function",
                "name",
                "arguments",
                "tool_calls",
                "id",
                "parameters",
            ])
            .prop_map(str::to_owned)
            .boxed(),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = ChatRequest::parse(&body, &Limits::default());
    }

    #[test]
    fn arbitrary_fields_never_panic(
        field in prop::sample::select(vec![
            "messages", "tools", "tool_choice", "stop", "seed", "temperature", "max_tokens", "logit_bias", "n",
            "stream_options", "response_format", "chat_template_kwargs", "top_logprobs", "stop_token_ids", "x",
        ]),
        value in any_json(),
    ) {
        let _ = with(field, value);
    }

    #[test]
    fn what_parses_is_in_range(t in any::<f64>(), p in any::<f64>(), n in any::<i64>()) {
        let body = json!({
            "model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": t, "top_p": p, "n": n,
        });
        if let Ok(r) = parse(&body.to_string()) {
            prop_assert!(r.settings.sampling.temperature.is_none_or(|t| (0.0..=2.0).contains(&t)));
            prop_assert!(r.settings.sampling.top_p.is_none_or(|p| (0.0..=1.0).contains(&p)));
            prop_assert!((1..=128).contains(&r.settings.n));
        }
    }
}

#[test]
fn tool_choice_and_formats_are_read() {
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let choice = |choice: Value| {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": tools,
            "tool_choice": choice, "parallel_tool_calls": false});
        parse(&body.to_string())
    };
    let read = choice(json!("required")).unwrap();
    assert_eq!(
        (read.conversation.tool_choice, read.conversation.parallel_tool_calls),
        (ToolChoice::Required, false)
    );
    let named = json!({"type": "function", "function": {"name": "f"}});
    assert_eq!(choice(named).unwrap().conversation.tool_choice, ToolChoice::Function("f".into()));
    let none = choice(json!("none")).unwrap();
    assert!(none.conversation.tool_choice == ToolChoice::None && none.conversation.tools.is_empty());
    let unknown = choice(json!({"type": "function", "function": {"name": "g"}})).unwrap_err();
    assert_eq!(unknown.param.as_deref(), Some("tool_choice.function.name"));
    let schema = json!({"enum": ["a", "b"]});
    let format = with(
        "response_format",
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}),
    );
    assert!(
        matches!(format.unwrap().settings.format, Some(ResponseFormat::Json(given, ..)) if given == schema)
    );
    let regex = with("grammar", json!({"syntax": "regex", "definition": "a+"})).unwrap().settings.format;
    assert_eq!(regex, Some(ResponseFormat::Regex("a+".into())));
    assert_eq!(
        with("grammar", json!("start: \"a\"")).unwrap().settings.format,
        Some(ResponseFormat::Lark("start: \"a\"".into()))
    );
    for (name, value, at) in [
        ("response_format", json!({"type": "json_schema"}), "response_format.json_schema"),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {"schema": 3}}),
            "response_format.json_schema.schema",
        ),
        ("grammar", json!({"syntax": "ebnf", "definition": "x"}), "grammar.syntax"),
        ("grammar", json!("a".repeat(100_000)), "grammar"),
        ("tool_choice", json!("required"), "tool_choice"),
    ] {
        assert_eq!(param(name, value), at);
    }
}

#[test]
fn labels_of_a_schema_serve_the_classification_preset() {
    let ask = |schema: Value| {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}],
            "speculation": {"preset": "classification"},
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
        parse(&body.to_string())
    };
    let preset = ask(json!({"enum": ["a", "b"]})).unwrap().settings.speculation;
    assert_eq!(preset, SpeculationPreset::Classification(vec!["\"a\"".into(), "\"b\"".into()]));
    assert_eq!(ask(json!({"type": "string"})).unwrap_err().param.as_deref(), Some("speculation.preset"));
}
