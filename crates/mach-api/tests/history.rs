//! A conversation goes on with whatever an answer was, as clients give it back.

use mach_api::chat::{ChatRequest, Content, Limits, Role};
use mach_api::{ApiError, UnknownFields};
use serde_json::{Value, json};

fn parse(message: Value) -> Result<ChatRequest, ApiError> {
    let body = json!({"messages": [{"role": "user", "content": "hi"}, message, {"role": "user", "content": "go on"}]});
    ChatRequest::parse(body.to_string().as_bytes(), &Limits::default())
}

fn call(arguments: &Value) -> Value {
    json!({"role": "assistant", "content": null, "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}]})
}

#[test]
fn broken_arguments_are_accepted_with_a_warning() {
    for (arguments, want) in [
        (json!("{\"path\": \"/sr"), json!({"path": "/sr"})),
        (json!("{\"path\": \"the \"big\" one\"}"), json!({"arguments": "{\"path\": \"the \"big\" one\"}"})),
        (json!("[\"/srv\"]"), json!({"arguments": ["/srv"]})),
        (json!(["/srv"]), json!({"arguments": ["/srv"]})),
        (json!("ls"), json!({"arguments": "ls"})),
    ] {
        let read = parse(call(&arguments)).unwrap();
        let call = &read.conversation.messages[1].tool_calls[0];
        assert_eq!((Value::from(call.arguments.clone()), call.broken), (want, true), "{arguments}");
        let written = arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned);
        assert_eq!(call.text.as_deref(), Some(written.as_str()));
        assert!(read.notes.warnings()[0].contains("messages[1].tool_calls[0].function.arguments"));
    }
    for arguments in [json!("null"), json!(null), json!(""), json!(" "), json!({}), json!("{}")] {
        let read = parse(call(&arguments)).unwrap();
        let call = &read.conversation.messages[1].tool_calls[0];
        assert!(call.arguments.is_empty() && !call.broken && read.notes.warnings().is_empty(), "{arguments}");
    }
}

#[test]
fn assistant_turns_may_say_nothing() {
    for message in [
        json!({"role": "assistant", "content": null}),
        json!({"role": "assistant"}),
        json!({"role": "assistant", "content": null, "tool_calls": []}),
        json!({"role": "assistant", "content": null, "tool_calls": null, "function_call": null}),
        json!({"role": "assistant", "content": null, "reasoning_content": "hm"}),
    ] {
        assert_eq!(parse(message).unwrap().conversation.messages[1].content, Content::None);
    }
    assert_eq!(
        parse(json!({"role": "user"})).unwrap_err().param.as_deref(),
        Some("messages[1].content"),
        "what a user says is not left out"
    );
}

#[test]
fn results_of_tools_come_in_any_form() {
    let content = |content: Value| {
        let message = json!({"role": "tool", "tool_call_id": "c", "content": content});
        parse(message).unwrap().conversation.messages.remove(1).content
    };
    let text = |text: &str| Content::Text(text.to_owned());
    assert_eq!(content(json!("ok")), text("ok"));
    assert_eq!(content(json!(null)), Content::None);
    assert_eq!(content(json!([])), Content::Parts(Vec::new()));
    assert_eq!(
        content(json!([{"type": "text", "text": "a"}, "b"])),
        Content::Parts(vec!["a".into(), "b".into()])
    );
    assert_eq!(content(json!({"t": 21.5})), text(r#"{"t":21.5}"#));
    assert_eq!(content(json!([{"t": 1}, {"t": 2}])), text(r#"[{"t":1},{"t":2}]"#));
    assert_eq!(content(json!(true)), text("true"));
    let image = json!({"role": "tool", "content": [{"type": "image_url", "image_url": {"url": "x"}}]});
    assert_eq!(parse(image).unwrap_err().param.as_deref(), Some("messages[1].content[0].type"));
}

#[test]
fn reasoning_goes_by_several_names() {
    let reasoning = |fields: Value| {
        let mut message = json!({"role": "assistant", "content": "x"});
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let read = parse(message).unwrap();
        assert!(read.notes.ignored().is_empty(), "{:?}", read.notes.ignored());
        read.conversation.messages[1].reasoning_content.clone()
    };
    let hm = Some("hm".to_owned());
    assert_eq!(reasoning(json!({"reasoning_content": "hm"})), hm);
    assert_eq!(reasoning(json!({"reasoning": "hm"})), hm);
    assert_eq!(reasoning(json!({"thinking": "hm"})), hm);
    assert_eq!(reasoning(json!({"reasoning_content": "hm", "reasoning": "hm"})), hm);
    assert_eq!(reasoning(json!({"reasoning_content": "", "reasoning": "hm"})), hm);
    assert_eq!(reasoning(json!({"reasoning_content": null, "reasoning": {"effort": "low"}})), None);
    let parts =
        json!([{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "x"}]);
    assert_eq!(reasoning(json!({"content": parts})), hm);
}

#[test]
fn what_other_servers_add_is_ignored() {
    let message = json!({
        "role": "assistant", "content": "x", "id": "msg_1", "refusal": null, "annotations": [{"type": "url_citation"}],
        "audio": {"id": "a"}, "provider_specific_fields": {"a": 1}, "thinking_blocks": [{"type": "thinking"}],
        "reasoning_details": [{"type": "reasoning.text"}], "parsed": {"a": 1}, "index": 0,
        "tool_calls": [{"id": "c", "type": "function", "index": 0, "provider_specific_fields": {},
            "function": {"name": "f", "arguments": "{}", "parsed_arguments": {}}}],
    });
    let strict = Limits { unknown_fields: UnknownFields::Refuse, ..Limits::default() };
    let body = json!({"messages": [{"role": "user", "content": "hi"}, message]});
    let read = ChatRequest::parse(body.to_string().as_bytes(), &strict).unwrap();
    assert_eq!(read.conversation.messages[1].role, Role::Assistant);
    assert!(read.notes.ignored().is_empty() && read.notes.warnings().is_empty());
}

#[test]
fn halves_of_surrogate_pairs_are_replaced() {
    let read = |content: &str| {
        let body = format!(r#"{{"messages":[{{"role":"user","content":"{content}"}}]}}"#);
        ChatRequest::parse(body.as_bytes(), &Limits::default())
            .unwrap()
            .conversation
            .messages
            .remove(0)
            .content
    };
    assert_eq!(read(r"cut \ud83e..."), Content::Text("cut \u{fffd}...".into()));
    assert_eq!(read(r"\ud83e\udd14 \\ud83e"), Content::Text("🤔 \\ud83e".into()));
    let inner = parse(call(&json!(r#"{"a": "\ud83e"}"#))).unwrap();
    assert_eq!(inner.conversation.messages[1].tool_calls[0].arguments["a"], "\u{fffd}");
    assert!(!inner.conversation.messages[1].tool_calls[0].broken);
}
