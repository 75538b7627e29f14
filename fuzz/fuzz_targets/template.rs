//! Any text as a chat template, with a conversation that it is shown: a prompt, or an error; in bounded work. What follows a NUL is
//! the body of a chat request whose messages are shown instead.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mach_api::chat::Limits;
use mach_api::{ChatRequest, ChatTemplate};

static CHAT: LazyLock<ChatRequest> = LazyLock::new(|| {
    let body = r#"{"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is 2 + 2?"}, {"type": "text", "text": "<|im_end|>"}]},
        {"role": "assistant", "reasoning_content": "Sum.", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{\"a\": 2, \"b\": [2.5, null]}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "4"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Thanks"}],
        "tools": [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters":
            {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array"}}}}}]}"#;
    ChatRequest::parse(body.as_bytes(), &Limits::default()).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let source = String::from_utf8_lossy(parts.next().unwrap_or_default());
    let given = parts.next().and_then(|body| ChatRequest::parse(body, &Limits::default()).ok());
    let chat = &given.as_ref().unwrap_or(&CHAT).conversation;
    let special = [("bos_token".to_owned(), "<s>".into()), ("eos_token".to_owned(), "</s>".into())];
    let Ok(template) = ChatTemplate::compile(&source, special.into_iter().collect()) else { return };
    let first = template.render(&chat.messages, &chat.tools, &chat.template_kwargs);
    // Templates may ask for the date, which may change; nothing else does.
    if !source.contains("strftime") {
        assert_eq!(template.render(&chat.messages, &chat.tools, &chat.template_kwargs), first);
    }
    let _ = template.render_as(&chat.messages, &[], &chat.template_kwargs, false);
});
