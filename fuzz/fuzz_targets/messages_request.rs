//! Any bytes as a request of the Messages API, read as the server reads it: a turn that holds together, and a prompt; or an error
//! that is a 400. What follows a zero byte is the model's answer: the events that tell it say the same as the document.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mach_api::chat::Limits;
use mach_api::messages::MessagesDialect;
use mach_api::output::{OutputFormat, ReasoningFormat, ReasoningStart, ToolFormat};
use mach_api::turn::{Counts, Head, Input, Parsed, Said, Spoken};
use mach_api::{ApiError, ChatTemplate, Dialect, ErrorKind};
use serde_json::Value;

/// A template that shows all parts of messages.
static TEMPLATE: LazyLock<ChatTemplate> = LazyLock::new(|| {
    ChatTemplate::compile(include_str!("../../demo/chat_template.jinja"), Default::default()).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let (body, answer) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match MessagesDialect::parse(body, &limits) {
        Ok(Parsed { turns, dialect, .. }) => {
            let [turn] = &turns[..] else { panic!("a request is one turn") };
            assert_eq!(turn.settings.n, 1);
            let Input::Conversation(chat) = &turn.input else { panic!("messages are a conversation") };
            assert!(!chat.messages.is_empty());
            let _ = TEMPLATE.render(&chat.messages, &chat.tools, &chat.template_kwargs);
            let Parsed { dialect: second, .. } = MessagesDialect::parse(body, &limits).unwrap();
            answered(dialect, second, &String::from_utf8_lossy(answer));
        }
        Err(error) => {
            assert_eq!(error.kind.status(), 400);
            assert_eq!(MessagesDialect::error(&error)["type"], "error");
        }
    }
});

/// Streams an answer and writes it as a document, and compares the two.
fn answered(mut stream: MessagesDialect, mut whole: MessagesDialect, answer: &str) {
    let format = OutputFormat { tools: Some(ToolFormat::Hermes), reasoning: Some(ReasoningFormat::Think) };
    let mut parser = format.parser(None, ReasoningStart::Unopened);
    let (mut spoken, mut said) = (Spoken::default(), Vec::new());
    let mut parts = Vec::new();
    answer.split_inclusive('\n').for_each(|line| parser.push(line, &mut parts));
    parser.finish(false, &mut parts);
    parts.into_iter().for_each(|part| spoken.take(part, &mut |more| said.push(more)));
    let broken =
        said.iter().filter(|said| matches!(said, Said::CallStart { .. })).count() > spoken.calls().count();
    let (head, ending) = (Head { prompt_tokens: 7, ..Head::default() }, spoken.ending(false));
    let counts = Counts { prompt: 7, cached: 3, completion: 5, reasoning: 1 };

    let mut out = Vec::new();
    stream.begin(head.clone());
    stream.open(&mut out);
    said.into_iter().for_each(|said| stream.said(0, vec![said], Vec::new(), &mut out));
    stream.ended(0, ending.clone(), &mut out);
    stream.close(counts, &mut out);
    let told = replayed(&events(&out));

    whole.begin(head);
    let document = whole.document(vec![(spoken, Vec::new(), ending)], counts);
    for of in ["thinking", "text"] {
        assert_eq!(texts(blocks(&told), of), texts(blocks(&document), of));
    }
    // A call that was none after all was told before that was known.
    if !broken {
        let calls =
            |message| blocks(message).iter().filter(|b| b["type"] == "tool_use").cloned().collect::<Vec<_>>();
        assert_eq!(calls(&told), calls(&document));
    }
    for field in ["stop_reason", "stop_sequence", "usage", "role"] {
        assert_eq!(told[field], document[field], "{field}");
    }

    out.clear();
    stream.fail(&ApiError::new(ErrorKind::Internal, answer), &mut out);
    assert_eq!(events(&out)[0]["error"]["message"], answer);
}

fn blocks(message: &Value) -> &[Value] {
    message["content"].as_array().unwrap()
}

fn texts(blocks: &[Value], of: &str) -> String {
    blocks.iter().filter(|block| block["type"] == of).filter_map(|block| block[of].as_str()).collect()
}

/// The data of server-sent events, each of which bears the name of its event.
fn events(out: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(out).unwrap();
    let events = text.strip_suffix("\n\n").unwrap().split("\n\n");
    events
        .map(|event| {
            let (name, data) = event.split_once('\n').unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"]);
            data
        })
        .collect()
}

/// The message that a client puts together out of events; one block is open at a time, and each that was opened is closed.
fn replayed(events: &[Value]) -> Value {
    let mut message = Value::Null;
    let (mut content, mut open): (Vec<Value>, Option<String>) = (Vec::new(), None);
    for event in events {
        let kind = event["type"].as_str().unwrap();
        if kind.starts_with("content_block") {
            let index = content.len() - usize::from(open.is_some());
            assert_eq!(event["index"], index, "{kind}");
        }
        match kind {
            "message_start" => message = event["message"].clone(),
            "ping" => {}
            "content_block_start" => {
                assert!(open.replace(String::new()).is_none());
                content.push(event["content_block"].clone());
            }
            "content_block_delta" => {
                let (json, block) = (open.as_mut().unwrap(), content.last_mut().unwrap());
                let (of, field) = match event["delta"]["type"].as_str().unwrap() {
                    "thinking_delta" => ("thinking", "thinking"),
                    "signature_delta" => ("thinking", "signature"),
                    "text_delta" => ("text", "text"),
                    _ => ("tool_use", "partial_json"),
                };
                assert_eq!(block["type"], of);
                let more = event["delta"][field].as_str().unwrap();
                match of {
                    "tool_use" => json.push_str(more),
                    _ => block[field] = (block[field].as_str().unwrap().to_owned() + more).into(),
                }
            }
            "content_block_stop" => {
                let (json, block) = (open.take().unwrap(), content.last_mut().unwrap());
                if block["type"] == "tool_use" {
                    // One that broke ends in the middle.
                    block["input"] =
                        serde_json::from_str(&json).unwrap_or_else(|_| Value::Object(Default::default()));
                }
                assert!(block["type"] != "thinking" || block["signature"] != "");
            }
            "message_delta" => {
                message["usage"] = event["usage"].clone();
                for field in ["stop_reason", "stop_sequence"] {
                    message[field] = event["delta"][field].clone();
                }
            }
            "message_stop" => assert!(open.is_none()),
            other => panic!("no event of the API: {other}"),
        }
    }
    message["content"] = content.into();
    message
}
