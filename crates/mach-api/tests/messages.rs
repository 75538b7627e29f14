//! The Messages API: what clients send, and what comes back.

use mach_api::chat::{Content, Limits, PromptEnd, ResponseFormat, Role, ToolChoice};
use mach_api::messages::{MessagesDialect, MessagesRequest, messages_error};
use mach_api::output::Part;
use mach_api::turn::{Conversation, Counts, Dialect, Ending, Head, Input, Said, Spoken};
use mach_api::{ApiError, ErrorKind};
use serde_json::{Value, json};

fn parse(body: &Value) -> Result<MessagesRequest, ApiError> {
    MessagesRequest::parse(body.to_string().as_bytes(), &Limits::default())
}

fn conversation(request: MessagesRequest) -> Conversation {
    match request.turn.input {
        Input::Conversation(conversation) => conversation,
        other => panic!("{other:?}"),
    }
}

fn texts(conversation: &Conversation) -> Vec<(Role, String)> {
    let text = |content: &Content| match content {
        Content::None => String::new(),
        Content::Text(text) => text.clone(),
        Content::Parts(parts) => parts.join("|"),
    };
    conversation.messages.iter().map(|m| (m.role, text(&m.content))).collect()
}

/// A second turn as Claude Code sends it: blocks, marks for the cache, thoughts with a signature, results of tools.
fn second_turn() -> Value {
    json!({
        "model": "m", "max_tokens": 32000, "stream": true,
        "thinking": {"type": "adaptive"}, "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": "{\"session\":\"a\"}"},
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=12;"},
            {"type": "text", "text": "You help.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
            {"type": "text", "text": "Be brief."},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "text", "text": "please"}]},
            {"role": "system", "content": "The date is known."},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "a file", "signature": "mach-1"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "read", "input": {"path": "a"}},
                {"type": "tool_use", "id": "t2", "name": "read", "input": {"path": "b"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "one", "is_error": false},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": true,
                 "content": [{"type": "text", "text": "no such file"}], "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "and now?", "cache_control": {"type": "ephemeral"}},
            ]},
        ],
        "tools": [
            {"name": "read", "description": "Reads.", "input_schema": {"$schema": "s", "type": "object",
             "properties": {"path": {"type": "string"}, "n": {"type": "integer", "exclusiveMinimum": 0}}}},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
    })
}

#[test]
fn a_second_turn_of_an_agent_is_understood() {
    let request = parse(&second_turn()).unwrap();
    assert!(request.marks_cache);
    assert_eq!(request.notes.ignored(), ["tools[](web_search_20250305)"]);
    assert_eq!((request.turn.settings.max_tokens, request.turn.settings.stream), (Some(32000), true));
    let conversation = conversation(request);
    let expected = [
        (Role::System, "You help.\n\nBe brief."),
        (Role::User, "look|please"),
        (Role::System, "The date is known."),
        (Role::Assistant, "I look."),
        (Role::Tool, "one"),
        (Role::Tool, "Error: no such file"),
        (Role::User, "and now?"),
    ];
    assert_eq!(texts(&conversation), expected.map(|(role, text)| (role, text.to_owned())));
    let assistant = &conversation.messages[3];
    assert_eq!(assistant.reasoning_content.as_deref(), Some("a file"));
    let calls: Vec<_> = assistant.tool_calls.iter().map(|c| (c.id.as_deref(), c.name.as_str())).collect();
    assert_eq!(calls, [(Some("t1"), "read"), (Some("t2"), "read")]);
    assert_eq!(conversation.messages[5].tool_call_id.as_deref(), Some("t2"));
    assert_eq!(conversation.template_kwargs["enable_thinking"], json!(true));
    assert_eq!(conversation.template_kwargs["reasoning_effort"], json!("high"));
    assert_eq!(conversation.tools.len(), 1);
    assert_eq!(
        conversation.tools[0]["function"]["parameters"]["properties"]["n"]["exclusiveMinimum"],
        json!(0)
    );
}

/// Marks for the cache move with every turn, and the client's own line changes: neither is in the prompt.
#[test]
fn what_moves_is_not_in_the_prompt() {
    let mut moved = second_turn();
    moved["system"][0]["text"] = json!("x-anthropic-billing-header: cc_version=2.1; cch=99;");
    moved["messages"][3]["content"][1].as_object_mut().unwrap().remove("cache_control");
    moved["messages"][0]["content"][0]["cache_control"] = json!({"type": "ephemeral"});
    moved["metadata"] = json!({"user_id": "other"});
    assert_eq!(conversation(parse(&second_turn()).unwrap()), conversation(parse(&moved).unwrap()));
    let limits = Limits { keep_client_headers: true, ..Limits::default() };
    let kept = MessagesRequest::parse(moved.to_string().as_bytes(), &limits).unwrap();
    assert!(texts(&conversation(kept))[0].1.starts_with("x-anthropic-billing-header"));
}

#[test]
fn choices_and_switches_have_their_meaning() {
    let with = |more: Value| {
        let mut body = json!({"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}],
            "tools": [{"name": "f", "input_schema": {"type": "object"}}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        parse(&body)
    };
    let choice = |value: Value| conversation(with(json!({"tool_choice": value})).unwrap());
    assert_eq!(choice(json!({"type": "any"})).tool_choice, ToolChoice::Required);
    assert_eq!(choice(json!({"type": "tool", "name": "f"})).tool_choice, ToolChoice::Function("f".into()));
    assert!(choice(json!({"type": "none"})).tools.is_empty());
    assert!(!choice(json!({"type": "auto", "disable_parallel_tool_use": true})).parallel_tool_calls);
    let bad = with(json!({"tool_choice": {"type": "tool", "name": "g"}})).unwrap_err();
    assert!(bad.message.contains('g'), "{bad}");

    let thinks = |value: Value| {
        let request = with(json!({"thinking": value})).unwrap();
        conversation(request).template_kwargs["enable_thinking"].clone()
    };
    assert_eq!(thinks(json!({"type": "enabled", "budget_tokens": -1})), json!(true));
    assert_eq!(thinks(json!({"type": "disabled"})), json!(false));
    assert_eq!(thinks(Value::Null), json!(false));

    let format = json!({"format": {"type": "json_schema", "schema": {"type": "object"}}});
    let request = with(json!({"output_config": format})).unwrap();
    assert!(matches!(
        request.turn.settings.format,
        Some(ResponseFormat::Json(_, "output_config.format", true))
    ));
    assert_eq!(with(json!({"stop_sequences": ["a", "b"]})).unwrap().turn.settings.stop, ["a", "b"]);
    assert_eq!(with(json!({"top_k": 5})).unwrap().turn.settings.sampling.top_k, Some(5));
}

#[test]
fn an_answer_that_was_begun_is_gone_on_with() {
    let body = json!({"max_tokens": 5, "messages": [
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": [{"type": "text", "text": "{\"a\":"}]}]});
    assert_eq!(conversation(parse(&body).unwrap()).end, PromptEnd::Continue);
}

#[test]
fn refusals_name_the_field() {
    let with = |messages: Value| parse(&json!({"max_tokens": 5, "messages": messages})).unwrap_err();
    let image = with(json!([{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]));
    assert_eq!(image.param.as_deref(), Some("messages[0].content[0].type"));
    assert!(image.message.contains("reads text"), "{image}");
    assert_eq!(with(json!([])).param.as_deref(), Some("messages"));
    assert_eq!(with(json!([{"role": "tool", "content": "x"}])).param.as_deref(), Some("messages[0].role"));
    let pdf = json!({"type": "document", "source": {"type": "base64", "data": "x"}});
    let pdf = with(json!([{"role": "user", "content": [pdf]}]));
    assert_eq!(pdf.param.as_deref(), Some("messages[0].content[0].source.type"));
}

#[test]
fn errors_have_anthropics_shape() {
    let body = messages_error(&ApiError::field("messages", "is required"));
    let expected = json!({"type": "invalid_request_error", "message": "messages: is required"});
    assert_eq!(body, json!({"type": "error", "error": expected}));
    let long = messages_error(&ApiError::new(ErrorKind::ContextLength, "12 tokens of 10"));
    assert_eq!(long["error"]["message"], "prompt is too long: 12 tokens of 10");
    assert_eq!(
        messages_error(&ApiError::new(ErrorKind::Overloaded, "x"))["error"]["type"],
        "rate_limit_error"
    );
}

fn dialect(body: &Value) -> MessagesDialect {
    let parsed = MessagesDialect::parse(body.to_string().as_bytes(), &Limits::default()).unwrap();
    let mut dialect = parsed.dialect;
    dialect.begin(Head { model: "m".into(), prompt_tokens: 20, ..Head::default() });
    dialect
}

/// Names and data of events.
fn events(bytes: &[u8]) -> Vec<(String, Value)> {
    let text = std::str::from_utf8(bytes).unwrap();
    let event = |text: &str| {
        let (name, data) = text.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        (name.to_owned(), data)
    };
    text.split_terminator("\n\n").map(event).collect()
}

fn plain() -> Value {
    json!({"max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]})
}

#[test]
fn a_stream_is_blocks_one_after_the_other() {
    let mut dialect = dialect(&second_turn());
    let mut out = Vec::new();
    dialect.open(&mut out);
    dialect.keep_alive(&mut out);
    let call = |index, id: &str| Said::CallStart { index, id: id.into(), name: "read".into() };
    let arguments = |index, text: &str| Said::Arguments { index, text: text.into() };
    let said = vec![
        Said::Reasoning("a ".into()),
        Said::Reasoning("file".into()),
        Said::Content("I ".into()),
        Said::Content("look.".into()),
        call(0, "t1"),
        arguments(0, "{\"path\":"),
        arguments(0, "\"a\"}"),
        Said::CallEnd { index: 0 },
        call(1, "t2"),
        arguments(1, "{}"),
        Said::CallEnd { index: 1 },
    ];
    for said in said {
        dialect.said(0, vec![said], Vec::new(), &mut out);
    }
    dialect.ended(0, Ending::Calls, &mut out);
    dialect.close(Counts { prompt: 20, cached: 15, completion: 7, ..Counts::default() }, &mut out);

    let events = events(&out);
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    let block = |deltas: usize| {
        let mut names = vec!["content_block_start"];
        names.extend(vec!["content_block_delta"; deltas]);
        names.push("content_block_stop");
        names
    };
    let mut expected = vec!["message_start", "ping", "ping"];
    // Thoughts end with their signature.
    expected.extend([block(3), block(2), block(2), block(1)].concat());
    expected.extend(["message_delta", "message_stop"]);
    assert_eq!(names, expected);

    let usage = &events[0].1["message"]["usage"];
    assert_eq!((&usage["cache_creation_input_tokens"], &usage["output_tokens"]), (&json!(20), &json!(0)));
    let mut index = 0;
    for (name, data) in &events {
        if name.starts_with("content_block") {
            assert_eq!(data["index"], json!(index), "{data}");
        }
        index += usize::from(name == "content_block_stop");
    }
    let joined = |kind: &str, field: &str| -> String {
        let deltas = events.iter().map(|(_, data)| &data["delta"]).filter(|delta| delta["type"] == kind);
        deltas.map(|delta| delta[field].as_str().unwrap()).collect()
    };
    assert_eq!(joined("thinking_delta", "thinking"), "a file");
    assert_eq!(joined("text_delta", "text"), "I look.");
    assert_eq!(joined("input_json_delta", "partial_json"), "{\"path\":\"a\"}{}");
    assert!(!joined("signature_delta", "signature").is_empty());
    let (_, last) = &events[events.len() - 2];
    assert_eq!(last["delta"], json!({"stop_reason": "tool_use", "stop_sequence": null}));
    let usage = json!({"input_tokens": 0, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 15, "output_tokens": 7});
    assert_eq!(last["usage"], usage);
}

#[test]
fn an_answer_that_says_nothing_has_a_block() {
    let mut dialect = dialect(&plain());
    let mut out = Vec::new();
    dialect.ended(0, Ending::StopString("X".into()), &mut out);
    dialect.close(Counts { prompt: 20, cached: 15, completion: 1, ..Counts::default() }, &mut out);
    let events = events(&out);
    assert_eq!(events[0].1["content_block"], json!({"type": "text", "text": ""}));
    assert_eq!(events[1].0, "content_block_stop");
    assert_eq!(events[2].1["delta"], json!({"stop_reason": "stop_sequence", "stop_sequence": "X"}));
    // Nothing is marked for the cache.
    assert_eq!(events[2].1["usage"]["input_tokens"], json!(5));
    assert_eq!(events[2].1["usage"]["cache_creation_input_tokens"], json!(0));
}

#[test]
fn a_failure_is_an_event() {
    let mut out = Vec::new();
    dialect(&plain()).fail(&ApiError::new(ErrorKind::Internal, "broke"), &mut out);
    let events = events(&out);
    assert_eq!(events[0].1["error"], json!({"type": "api_error", "message": "broke"}));
}

/// The document says what the stream says, the thoughts' signature included.
#[test]
fn a_document_and_a_stream_agree() {
    let mut spoken = Spoken::default();
    let mut stream = dialect(&plain());
    let mut out = Vec::new();
    let mut tell = |said| stream.said(0, vec![said], Vec::new(), &mut out);
    for part in [
        Part::Reasoning("a file".into()),
        Part::Content("I look.".into()),
        Part::CallStart { name: "read".into() },
        Part::Arguments("{\"path\":\"a\"}".into()),
        Part::CallEnd,
    ] {
        spoken.take(part, &mut tell);
    }
    stream.ended(0, Ending::Calls, &mut out);

    let document = dialect(&plain()).document(vec![(spoken, Vec::new(), Ending::Calls)], Counts::default());
    let mut blocks: Vec<Value> = Vec::new();
    for (name, data) in events(&out) {
        let at = data["index"].as_u64().unwrap_or_default() as usize;
        match (name.as_str(), data["delta"]["type"].as_str()) {
            ("content_block_start", _) => blocks.push(data["content_block"].clone()),
            (_, Some("thinking_delta")) => blocks[at]["thinking"] = data["delta"]["thinking"].clone(),
            (_, Some("signature_delta")) => blocks[at]["signature"] = data["delta"]["signature"].clone(),
            (_, Some("text_delta")) => blocks[at]["text"] = data["delta"]["text"].clone(),
            (_, Some("input_json_delta")) => {
                let text = data["delta"]["partial_json"].as_str().unwrap();
                blocks[at]["input"] = serde_json::from_str(text).unwrap();
            }
            _ => {}
        }
    }
    assert_eq!(document["content"], Value::Array(blocks));
    assert_eq!((&document["type"], &document["stop_reason"]), (&json!("message"), &json!("tool_use")));
}
