//! What is no text is refused with its path, its type and what is read instead, whatever the API.

use mach_api::ApiError;
use mach_api::chat::{ChatDialect, Limits};
use mach_api::messages::MessagesDialect;
use mach_api::turn::Dialect;
use serde_json::{Value, json};

fn refused<D: Dialect>(body: &Value) -> ApiError {
    match D::parse(body.to_string().as_bytes(), &Limits::default()) {
        Ok(_) => panic!("it was taken: {body}"),
        Err(error) => error,
    }
}

fn says(error: &ApiError, path: &str, kind: &str, supported: &[&str]) {
    assert_eq!((error.kind.status(), error.param.as_deref()), (400, Some(path)), "{error}");
    for words in supported.iter().copied().chain([path, &format!("`{kind}` is not supported"), "reads text"])
    {
        assert!(error.message.contains(words), "{words}: {error}");
    }
}

#[test]
fn chat_parts() {
    let text = json!({"type": "text", "text": "What is this?"});
    let base64 = json!({"type": "base64", "media_type": "image/png", "data": "AA=="});
    for part in [
        json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}),
        json!({"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}),
        json!({"type": "file", "file": {"file_id": "f"}}),
        json!({"type": "video_url", "video_url": {"url": "x"}}),
        json!({"type": "image", "source": base64}),
    ] {
        let kind = part["type"].as_str().unwrap();
        for role in ["user", "system", "tool", "assistant"] {
            let message = json!({"role": role, "content": [text, part]});
            let messages = json!({"messages": [{"role": "user", "content": "Hi"}, message]});
            let error = refused::<ChatDialect>(&messages);
            let supported = if role == "assistant" { "text, refusal" } else { "text, input_text" };
            says(&error, "messages[1].content[1].type", kind, &[supported]);
        }
    }
}

#[test]
fn blocks_of_messages() {
    let text = json!({"type": "text", "text": "What is this?"});
    let source = json!({"type": "base64", "media_type": "application/pdf", "data": "AA=="});
    let image = json!({"type": "image", "source": source});
    let of = |role: &str, block: &Value| {
        let message = json!({"role": role, "content": [text, block]});
        refused::<MessagesDialect>(
            &json!({"max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}, message]}),
        )
    };
    says(&of("user", &image), "messages[1].content[1].type", "image", &["tool_result", "document where"]);
    says(&of("assistant", &image), "messages[1].content[1].type", "image", &["tool_use"]);
    let document = json!({"type": "document", "source": source});
    says(&of("user", &document), "messages[1].content[1].source.type", "base64", &["text and content"]);
    let result = json!({"type": "tool_result", "tool_use_id": "a", "content": [text, image]});
    says(&of("user", &result), "messages[1].content[1].content[1].type", "image", &["search_result"]);
    let audio = json!({"type": "container_upload", "file_id": "f"});
    says(&of("user", &audio), "messages[1].content[1].type", "container_upload", &["tool_result"]);
}
