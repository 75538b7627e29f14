//! Any bytes as a request of the Responses API, read as the server reads it: a turn that holds together, and a prompt; or an error
//! that is a 400. What follows a zero byte is the model's answer: the events that tell it say the same as the document, and its items
//! come back as input.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use mach_api::chat::Limits;
use mach_api::output::{OutputFormat, ReasoningFormat, ReasoningStart, ToolFormat};
use mach_api::responses::{Backing, Past, Record, ResponsesDialect, Seal};
use mach_api::turn::{Counts, Head, Input, Parsed, Said, Spoken};
use mach_api::{ApiError, ChatTemplate, Dialect};
use serde_json::{Value, json};

/// A template that shows all parts of messages.
static TEMPLATE: LazyLock<ChatTemplate> = LazyLock::new(|| {
    ChatTemplate::compile(include_str!("../../demo/chat_template.jinja"), Default::default()).unwrap()
});
static SEAL: LazyLock<Arc<Seal>> = LazyLock::new(|| Arc::new(Seal::new(&[1; 32])));
const COUNTS: Counts = Counts { prompt: 7, cached: 3, completion: 5, reasoning: 1 };

/// A server that has kept one response, `resp_1`.
struct One;

impl Past for One {
    fn response(&self, id: &str) -> Result<Option<Record>, ApiError> {
        let message = json!({"type": "message", "id": "msg_1", "role": "assistant", "content": "b"});
        let record = || Record {
            previous: None,
            input: vec![json!({"type": "message", "id": "in_1", "role": "user", "content": "a"})],
            response: json!({"id": "resp_1", "output": [message]}),
        };
        Ok((id == "resp_1").then(record))
    }

    fn response_of_item(&self, id: &str) -> Result<Option<Record>, ApiError> {
        if id == "msg_1" { self.response("resp_1") } else { Ok(None) }
    }
}

fn parse(body: &[u8]) -> Result<Parsed<ResponsesDialect>, ApiError> {
    let backing = Backing { past: Some(&One), keep: None, seal: Arc::clone(&SEAL) };
    ResponsesDialect::parse_with(body, &Limits::default(), &backing)
}

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let (body, answer) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    match parse(body) {
        Ok(Parsed { turns, dialect, .. }) => {
            let [turn] = &turns[..] else { panic!("a request is one turn") };
            let Input::Conversation(chat) = &turn.input else { panic!("items are a conversation") };
            assert!(!chat.messages.is_empty());
            let _ = TEMPLATE.render(&chat.messages, &chat.tools, &chat.template_kwargs);
            answered(dialect, parse(body).unwrap().dialect, &String::from_utf8_lossy(answer));
        }
        Err(error) => assert_eq!(error.kind.status(), 400),
    }
});

/// Streams an answer and writes it as a document, and compares the two.
fn answered(mut stream: ResponsesDialect, mut whole: ResponsesDialect, answer: &str) {
    let format = OutputFormat { tools: Some(ToolFormat::Hermes), reasoning: Some(ReasoningFormat::Think) };
    let mut parser = format.parser(None, ReasoningStart::Unopened);
    let (mut spoken, mut said, mut parts) = (Spoken::default(), Vec::new(), Vec::new());
    answer.split_inclusive('\n').for_each(|line| parser.push(line, &mut parts));
    parser.finish(false, &mut parts);
    parts.into_iter().for_each(|part| spoken.take(part, &mut |more| said.push(more)));
    let begun = said.iter().filter(|said| matches!(said, Said::CallStart { .. })).count();
    let broken = begun > spoken.calls().count();
    let (head, ending) = (Head { prompt_tokens: 7, ..Head::default() }, spoken.ending(false));

    let mut out = Vec::new();
    stream.begin(head.clone());
    stream.open(&mut out);
    said.into_iter().for_each(|said| stream.said(0, vec![said], Vec::new(), &mut out));
    stream.ended(0, ending.clone(), &mut out);
    stream.close(COUNTS, &mut out);
    let told = replayed(&out);

    whole.begin(head);
    let document = whole.document(vec![(spoken, Vec::new(), ending)], COUNTS);
    for of in ["reasoning", "message"] {
        assert_eq!(texts(&told, of), texts(&document, of));
    }
    // A call that was none after all was told before that was known.
    if !broken {
        assert_eq!(calls(&told), calls(&document));
    }
    assert_eq!((&told["usage"], &told["status"]), (&document["usage"], &document["status"]));
    let next = json!({"input": document["output"]}).to_string();
    // What thinks nothing and says nothing is no message.
    if let Err(error) = parse(next.as_bytes()) {
        panic!("{}: {next}", error.message);
    }
}

fn items<'a>(response: &'a Value, of: &'a str) -> impl Iterator<Item = &'a Value> {
    response["output"].as_array().unwrap().iter().filter(move |item| item["type"] == of)
}

fn texts(response: &Value, of: &str) -> String {
    let parts = items(response, of).flat_map(|item| [&item["summary"], &item["content"]]);
    parts.filter_map(Value::as_array).flatten().filter_map(|part| part["text"].as_str()).collect()
}

fn calls(response: &Value) -> Vec<(Value, Value)> {
    items(response, "function_call").map(|item| (item["name"].clone(), item["arguments"].clone())).collect()
}

/// The response at the end of a stream, whose items are those that its events tell.
fn replayed(out: &[u8]) -> Value {
    let text = std::str::from_utf8(out).unwrap();
    let (mut done, mut open, mut last) = (Vec::new(), None::<String>, Value::Null);
    for (number, event) in text.strip_suffix("\n\n").unwrap().split("\n\n").enumerate() {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"]);
        assert_eq!(data["sequence_number"], number);
        if let Some(index) = data.get("output_index") {
            assert_eq!(*index, done.len());
        }
        match data["type"].as_str().unwrap() {
            "response.output_item.added" => assert!(open.replace(String::new()).is_none()),
            "response.output_item.done" => {
                let (said, item) = (open.take().unwrap(), data["item"].clone());
                let own = json!({"output": [item]});
                let whole = match item["type"].as_str().unwrap() {
                    "function_call" => item["arguments"].as_str().unwrap().to_owned(),
                    of => texts(&own, of),
                };
                assert_eq!(said, whole);
                done.push(item);
            }
            kind if kind.ends_with(".delta") => {
                open.as_mut().unwrap().push_str(data["delta"].as_str().unwrap())
            }
            "response.completed" => last = data["response"].clone(),
            _ => {}
        }
    }
    assert!(open.is_none());
    assert_eq!(last["output"], Value::from(done));
    last
}
