//! The Responses API: what clients send, and what comes back.

use std::sync::{Arc, Mutex};

use mach_api::chat::{Content, Limits, PromptEnd, ResponseFormat, Role, ToolChoice};
use mach_api::output::Part;
use mach_api::responses::{
    Backing, CompactionDialect, Keep, Past, Record, ResponsesDialect, ResponsesRequest, Seal,
};
use mach_api::turn::{Conversation, Counts, Dialect, Ending, Head, Input, Said, Spoken};
use mach_api::{ApiError, ErrorKind, UnknownFields};
use serde_json::{Value, json};

const COUNTS: Counts = Counts { prompt: 20, cached: 15, completion: 7, reasoning: 3 };

fn parse_with(body: &Value, backing: &Backing<'_>) -> Result<ResponsesRequest, ApiError> {
    ResponsesRequest::parse(body.to_string().as_bytes(), &Limits::default(), backing)
}

fn parse(body: &Value) -> Result<ResponsesRequest, ApiError> {
    parse_with(body, &Backing::none())
}

fn conversation(request: ResponsesRequest) -> Conversation {
    match request.turn.input {
        Input::Conversation(conversation) => conversation,
        other => panic!("{other:?}"),
    }
}

/// Messages as `role: text`, with thoughts in brackets and calls behind arrows.
fn told(conversation: &Conversation) -> Vec<String> {
    let one = |message: &mach_api::Message| {
        let text = match &message.content {
            Content::None => String::new(),
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => parts.join("|"),
        };
        let thought = message.reasoning_content.as_ref().map(|t| format!("[{t}]")).unwrap_or_default();
        let calls: String = message
            .tool_calls
            .iter()
            .map(|call| format!(" -> {}{}", call.name, Value::from(call.arguments.clone())))
            .collect();
        let answers = message.tool_call_id.as_ref().map(|id| format!("({id})")).unwrap_or_default();
        format!("{}{answers}: {thought}{text}{calls}", message.role.as_str())
    };
    conversation.messages.iter().map(one).collect()
}

/// A second turn as Codex sends it.
fn second_turn(seal: &Seal) -> Value {
    let sealed = seal.close(mach_api::responses::Kind::Reasoning, "a file");
    json!({
        "model": "m", "stream": true, "store": false, "tool_choice": "auto", "parallel_tool_calls": true,
        "reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "k", "client_metadata": {"x": "y"},
        "input": [
            {"type": "message", "id": "msg_1", "role": "developer", "content": [{"type": "input_text", "text": "You are Codex."}]},
            {"type": "message", "id": "msg_2", "role": "developer", "content": [
                {"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "look"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": null, "encrypted_content": sealed},
            {"type": "message", "id": "msg_3", "role": "assistant", "status": "completed", "phase": "commentary",
             "content": [{"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}]},
            {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "exec", "arguments": "{\"cmd\": \"ls\"}", "status": "completed"},
            {"type": "function_call", "id": "fc_2", "call_id": "c2", "namespace": "agents", "name": "spawn", "arguments": "{}"},
            {"type": "function_call_output", "id": "fo_1", "call_id": "c1", "output": "one"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}, {"type": "input_text", "text": "three"}]},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "reasoning", "id": "rs_2", "summary": [{"type": "summary_text", "text": "hm"}], "content": [], "encrypted_content": "theirs"},
            {"type": "custom_tool_call", "call_id": "c3", "name": "patch", "input": "*** x"},
            {"type": "custom_tool_call_output", "call_id": "c3", "output": "done"},
        ],
        "tools": [
            {"type": "function", "name": "exec", "description": "Runs.", "strict": false,
             "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}}},
            {"type": "namespace", "name": "agents", "description": "d", "tools": [
                {"type": "function", "name": "spawn", "parameters": {"type": "object", "properties": {}}}]},
            {"type": "web_search", "external_web_access": false},
            {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "lark", "definition": "x"}},
            {"type": "image_generation"},
        ],
    })
}

#[test]
fn a_second_turn_of_an_agent_is_understood() {
    let backing = Backing { seal: Arc::new(Seal::new(&[1; 32])), ..Backing::none() };
    let request = parse_with(&second_turn(&backing.seal), &backing).unwrap();
    assert_eq!(
        request.notes.ignored(),
        ["tools[](web_search)", "tools[](custom)", "tools[](image_generation)", "input[](web_search_call)"]
    );
    assert_eq!(request.notes.warnings().len(), 1, "{:?}", request.notes.warnings());
    let conversation = conversation(request);
    assert_eq!(
        told(&conversation),
        [
            "developer: You are Codex.",
            "developer: a|b",
            "user: look",
            "assistant: [a file]I look. -> exec{\"cmd\":\"ls\"} -> spawn{}",
            "tool(c1): one",
            "tool(c2): two\nthree",
            "assistant: [hm] -> patch{\"input\":\"*** x\"}",
            "tool(c3): done",
        ]
    );
    let names: Vec<_> = conversation.tools.iter().map(|t| t["function"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["exec", "spawn"]);
    assert_eq!(conversation.tools[0]["function"].get("strict"), None);
    assert_eq!(conversation.end, PromptEnd::Turn);
}

#[test]
fn thoughts_that_others_sealed_do_not_pass() {
    let (ours, theirs) = (Seal::new(&[1; 32]), Seal::new(&[2; 32]));
    let sealed = |seal: &Seal| seal.close(mach_api::responses::Kind::Reasoning, "secret");
    let backing = Backing { seal: Arc::new(ours), ..Backing::none() };
    let ask = |sealed: String, content: &str| {
        let item = json!({"type": "reasoning", "summary": [], "encrypted_content": sealed,
            "content": [{"type": "reasoning_text", "text": content}]});
        let body =
            json!({"input": [{"role": "user", "content": "a"}, item, {"role": "assistant", "content": "b"}]});
        told(&conversation(parse_with(&body, &backing).unwrap()))[1].clone()
    };
    assert_eq!(ask(sealed(&backing.seal), "open"), "assistant: [secret]b");
    assert_eq!(ask(sealed(&theirs), "open"), "assistant: [open]b");
    assert_eq!(ask(sealed(&theirs), ""), "assistant: b");
    // A summary of a conversation is not taken for thoughts.
    let other = backing.seal.close(mach_api::responses::Kind::Compaction, "x");
    assert_eq!(ask(other, ""), "assistant: b");
}

#[test]
fn settings_are_read_and_repeated() {
    let body = json!({
        "model": "m", "instructions": "Be brief.", "input": "Hello", "max_output_tokens": 5, "temperature": 0.5,
        "top_p": 0.9, "metadata": {"a": "b"}, "user": "u", "truncation": "auto", "top_logprobs": 2,
        "reasoning": {"effort": "none", "summary": "detailed"}, "tool_choice": {"type": "web_search_preview"},
        "text": {"verbosity": "low", "format": {"type": "json_schema", "name": "n", "strict": true, "schema": {"type": "object"}}},
    });
    let request = parse(&body).unwrap();
    let settings = request.turn.settings.clone();
    assert_eq!((settings.max_tokens, settings.logprobs, settings.stream), (Some(5), Some(2), false));
    assert_eq!(
        settings.format,
        Some(ResponseFormat::Json(json!({"type": "object"}), "text.format.schema", true))
    );
    assert_eq!(request.notes.ignored(), ["tool_choice(web_search_preview)"]);
    let conversation = conversation(request);
    assert_eq!(told(&conversation), ["system: Be brief.", "user: Hello"]);
    assert!(conversation.truncate && conversation.tool_choice == ToolChoice::Auto);
    let kwargs = Value::from(conversation.template_kwargs.clone());
    assert_eq!(kwargs, json!({"enable_thinking": false, "reasoning_effort": "none", "verbosity": "low"}));

    let parsed = ResponsesDialect::parse(body.to_string().as_bytes(), &Limits::default()).unwrap();
    let answers = vec![(Spoken::default(), Vec::new(), Ending::Stop)];
    let response = parsed.dialect.document(answers, COUNTS);
    for name in [
        "instructions",
        "max_output_tokens",
        "temperature",
        "top_p",
        "metadata",
        "user",
        "truncation",
        "reasoning",
        "text",
        "tool_choice",
    ] {
        assert_eq!(response[name], body[name], "{name}");
    }
    assert_eq!((&response["store"], &response["parallel_tool_calls"]), (&json!(false), &json!(true)));
}

#[test]
fn what_cannot_be_meant_is_refused_by_name() {
    let user = json!([{"role": "user", "content": "a"}]);
    let tool = json!([{"type": "function", "name": "f", "parameters": {}}]);
    for (body, param) in [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 3}), "input"),
        (json!({"input": user, "background": true}), "background"),
        (json!({"input": user, "conversation": "c"}), "conversation"),
        (json!({"input": user, "prompt": {"id": "p"}}), "prompt"),
        (json!({"input": user, "previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"input": [{"type": "item_reference", "id": "rs_1"}]}), "input[0].id"),
        (json!({"input": [{"content": "x"}]}), "input[0].type"),
        (json!({"input": [{"role": "robot", "content": "x"}]}), "input[0].role"),
        (json!({"input": [{"role": "user"}]}), "input[0].content"),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
            "input[0].content[0].type",
        ),
        (json!({"input": [{"type": "function_call", "arguments": "{}"}]}), "input[0].name"),
        (json!({"input": [{"type": "function_call_output", "output": "x"}]}), "input[0].call_id"),
        (json!({"input": [{"type": "compaction", "encrypted_content": "x"}]}), "input[0].encrypted_content"),
        (json!({"input": user, "text": {"format": {"type": "xml"}}}), "text.format.type"),
        (
            json!({"input": user, "text": {"format": {"type": "json_schema", "name": "n"}}}),
            "text.format.schema",
        ),
        (json!({"input": user, "truncation": "some"}), "truncation"),
        (json!({"input": user, "reasoning": {"summary": "long"}}), "reasoning.summary"),
        (json!({"input": user, "max_output_tokens": 0}), "max_output_tokens"),
        (json!({"input": user, "metadata": 3}), "metadata"),
        (json!({"input": user, "include": [3]}), "include[0]"),
        (json!({"input": user, "tools": [{"type": "function", "name": ""}]}), "tools[0].name"),
        (json!({"input": user, "tools": [{"name": "f"}]}), "tools[0].type"),
        (
            json!({"input": user, "tools": tool, "tool_choice": {"type": "function", "name": "g"}}),
            "tool_choice.function.name",
        ),
        (json!({"input": user, "tool_choice": "required"}), "tool_choice"),
    ] {
        let error = parse(&body).expect_err(&body.to_string());
        assert_eq!(error.param.as_deref(), Some(param), "{body}: {}", error.message);
    }
    let strict = Limits { unknown_fields: UnknownFields::Refuse, ..Limits::default() };
    let body = json!({"input": [{"type": "web_search_call"}]}).to_string();
    let error = ResponsesRequest::parse(body.as_bytes(), &strict, &Backing::none()).unwrap_err();
    assert_eq!(error.param.as_deref(), Some("input[0].type"));
}

#[test]
fn choices_of_tools_in_all_forms() {
    let choice = |choice: Value| {
        let tools = json!([{"type": "function", "name": "f", "parameters": {}},
            {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g", "parameters": {}}]}]);
        conversation(parse(&json!({"input": "a", "tools": tools, "tool_choice": choice})).unwrap())
    };
    assert_eq!(choice(json!("required")).tool_choice, ToolChoice::Required);
    let none = choice(json!("none"));
    assert!(none.tools.is_empty() && none.tool_choice == ToolChoice::None);
    assert_eq!(
        choice(json!({"type": "function", "name": "f"})).tool_choice,
        ToolChoice::Function("f".into())
    );
    let grouped = choice(json!({"type": "function", "name": "g", "namespace": "n"}));
    assert_eq!(grouped.tool_choice, ToolChoice::Function("g".into()));
    let allowed = json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}, {"type": "web_search"}]});
    assert_eq!(choice(allowed).tool_choice, ToolChoice::Allowed { names: vec!["f".into()], required: true });
    assert_eq!(choice(json!({"type": "custom", "name": "p"})).tool_choice, ToolChoice::Auto);
}

fn begin(body: &Value, backing: &Backing<'_>) -> ResponsesDialect {
    let parsed =
        ResponsesDialect::parse_with(body.to_string().as_bytes(), &Limits::default(), backing).unwrap();
    let mut dialect = parsed.dialect;
    dialect.begin(Head { created: 1, model: "m".into(), prompt_tokens: 20, ..Head::default() });
    dialect
}

/// Events of an answer that is made of these parts.
fn stream(mut dialect: ResponsesDialect, parts: Vec<Part>, ending: Ending) -> Vec<Value> {
    let mut out = Vec::new();
    dialect.open(&mut out);
    let mut spoken = Spoken::default();
    for part in parts {
        let mut said: Vec<Said> = Vec::new();
        spoken.take(part, &mut |new| said.push(new));
        dialect.said(0, said, Vec::new(), &mut out);
    }
    dialect.ended(0, ending, &mut out);
    dialect.close(COUNTS, &mut out);
    events(&out)
}

/// Events, numbered from 0, each with the name that its data repeats.
fn events(out: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(out).unwrap();
    let one = |(number, event): (usize, &str)| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(
            (data["type"].as_str(), data["sequence_number"].as_u64()),
            (Some(name), Some(number as u64))
        );
        data
    };
    text.trim_end().split("\n\n").enumerate().map(one).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    events.iter().map(|e| e["type"].as_str().unwrap().trim_start_matches("response.")).collect()
}

fn thinking_and_calling() -> Vec<Part> {
    vec![
        Part::Reasoning("hm".into()),
        Part::Reasoning("m".into()),
        Part::Content("I look.".into()),
        Part::CallStart { name: "g".into() },
        Part::Arguments("{\"a\":".into()),
        Part::Arguments(" 1}".into()),
        Part::CallEnd,
    ]
}

#[test]
fn events_come_in_order_and_complete() {
    let tools = json!([{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g", "parameters": {}}]}]);
    let body = json!({"input": "a", "stream": true, "tools": tools});
    let events = stream(begin(&body, &Backing::none()), thinking_and_calling(), Ending::Calls);
    assert_eq!(
        names(&events),
        [
            "created",
            "in_progress",
            "output_item.added",
            "content_part.added",
            "reasoning_text.delta",
            "reasoning_text.delta",
            "reasoning_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "content_part.added",
            "output_text.delta",
            "output_text.done",
            "content_part.done",
            "output_item.done",
            "output_item.added",
            "function_call_arguments.delta",
            "function_call_arguments.delta",
            "function_call_arguments.done",
            "output_item.done",
            "completed",
        ]
    );
    let indices: Vec<_> = events.iter().filter_map(|e| e["output_index"].as_u64()).collect();
    assert_eq!(indices, [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]);
    let done: Vec<_> = events.iter().filter(|e| e["type"] == "response.output_item.done").collect();
    let last = &events.last().unwrap()["response"];
    let items: Vec<_> = done.iter().map(|e| e["item"].clone()).collect();
    assert_eq!(last["output"], Value::from(items.clone()));
    assert_eq!(items[0]["content"], json!([{"type": "reasoning_text", "text": "hmm"}]));
    assert_eq!((&items[0]["summary"], &items[0]["encrypted_content"]), (&json!([]), &json!(null)));
    assert_eq!(items[1]["content"][0]["text"], "I look.");
    assert_eq!((&items[2]["namespace"], &items[2]["name"]), (&json!("n"), &json!("g")));
    assert_eq!(items[2]["arguments"], "{\"a\": 1}");
    assert!(items.iter().all(|item| item["status"] == "completed"));
    // Each item has one id in all of its events.
    for (index, item) in items.iter().enumerate() {
        for event in events.iter().filter(|e| e["output_index"] == index && e.get("item_id").is_some()) {
            assert_eq!(event["item_id"], item["id"]);
        }
    }
    assert_eq!(
        last["usage"],
        json!({"input_tokens": 20, "input_tokens_details": {"cached_tokens": 15}, "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 27})
    );
    assert_eq!(
        (&events[0]["response"]["status"], &last["status"]),
        (&json!("in_progress"), &json!("completed"))
    );
}

#[test]
fn summaries_and_sealed_thoughts_are_given_where_they_are_asked_for() {
    let body = json!({"input": "a", "stream": true, "reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]});
    let backing = Backing::none();
    let events = stream(begin(&body, &backing), thinking_and_calling(), Ending::Calls);
    assert_eq!(
        names(&events)[2..9],
        [
            "output_item.added",
            "reasoning_summary_part.added",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.delta",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
        ]
    );
    let item = events[8]["item"].clone();
    assert_eq!(item["summary"], json!([{"type": "summary_text", "text": "hmm"}]));
    // It comes back with nothing but what was sealed.
    let mut bare = item;
    bare["summary"] = json!([]);
    let next =
        json!({"input": [{"role": "user", "content": "a"}, bare, {"role": "assistant", "content": "b"}]});
    assert_eq!(told(&conversation(parse_with(&next, &backing).unwrap()))[1], "assistant: [hmm]b");
}

#[test]
fn what_was_cut_is_incomplete() {
    let body = json!({"input": "a", "stream": true});
    let parts =
        vec![Part::Content("I".into()), Part::CallStart { name: "f".into() }, Part::Arguments("{\"a".into())];
    let events = stream(begin(&body, &Backing::none()), parts, Ending::Length);
    let response = &events.last().unwrap()["response"];
    assert_eq!(names(&events).last(), Some(&"incomplete"));
    assert_eq!(
        (&response["status"], &response["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
    let status: Vec<_> =
        response["output"].as_array().unwrap().iter().map(|item| item["status"].clone()).collect();
    assert_eq!(status, ["completed", "incomplete"]);
    assert!(!names(&events).contains(&"function_call_arguments.done"));
    // A call that was none: it is not told as complete, and its text follows.
    let parts = vec![
        Part::CallStart { name: "f".into() },
        Part::Arguments("{".into()),
        Part::CallBroken("<x>{".into()),
    ];
    let events = stream(begin(&body, &Backing::none()), parts, Ending::Stop);
    let output = events.last().unwrap()["response"]["output"].clone();
    assert_eq!(
        (&output[0]["status"], &output[1]["content"][0]["text"]),
        (&json!("incomplete"), &json!("<x>{"))
    );
    // Nothing at all is a message that says nothing.
    let events = stream(begin(&body, &Backing::none()), Vec::new(), Ending::Stop);
    assert_eq!(events.last().unwrap()["response"]["output"][0]["content"][0]["text"], "");
}

#[test]
fn a_failure_is_told_in_the_stream() {
    let mut dialect = begin(&json!({"input": "a", "stream": true}), &Backing::none());
    let mut out = Vec::new();
    dialect.open(&mut out);
    dialect.said(0, vec![Said::Content("x".into())], Vec::new(), &mut out);
    dialect.fail(&ApiError::new(ErrorKind::ContextLength, "too long"), &mut out);
    let events = events(&out);
    let last = events.last().unwrap();
    assert_eq!(names(&events)[5..], ["output_text.done", "content_part.done", "output_item.done", "failed"]);
    assert_eq!(last["response"]["error"], json!({"code": "context_length_exceeded", "message": "too long"}));
    assert_eq!(last["response"]["status"], "failed");
}

#[test]
fn whole_and_streamed_answers_say_the_same() {
    let tools = json!([{"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "g", "parameters": {}}]}]);
    let body = json!({"input": "a", "tools": tools, "include": ["reasoning.encrypted_content"]});
    let backing = Backing::none();
    let mut streamed =
        stream(begin(&body, &backing), thinking_and_calling(), Ending::Calls).pop().unwrap()["response"]
            .take();
    let mut spoken = Spoken::default();
    thinking_and_calling().into_iter().for_each(|part| spoken.take(part, &mut |_| {}));
    let mut whole = begin(&body, &backing).document(vec![(spoken, Vec::new(), Ending::Calls)], COUNTS);
    // Ids are random.
    for response in [&mut streamed, &mut whole] {
        response["id"] = json!("");
        response["completed_at"] = json!(0);
        for item in response["output"].as_array_mut().unwrap() {
            item["id"] = json!("");
            item.as_object_mut().unwrap().remove("call_id");
        }
    }
    assert_eq!(streamed, whole);
}

#[derive(Debug, Default)]
struct Shelf(Mutex<Vec<Record>>);

impl Keep for Shelf {
    fn keep(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

impl Past for Shelf {
    fn response(&self, id: &str) -> Result<Option<Record>, ApiError> {
        Ok(self.0.lock().unwrap().iter().find(|record| record.id() == id).cloned())
    }

    fn response_of_item(&self, id: &str) -> Result<Option<Record>, ApiError> {
        Ok(self.0.lock().unwrap().iter().find(|record| record.item(id).is_some()).cloned())
    }
}

#[test]
fn a_turn_goes_on_from_one_that_was_kept() {
    let shelf = Arc::new(Shelf::default());
    let keep = Arc::clone(&shelf) as Arc<dyn Keep>;
    let backing = Backing { past: Some(&*shelf), keep: Some(keep), ..Backing::none() };
    let first = json!({"instructions": "old", "input": "one"});
    let response =
        stream(begin(&first, &backing), thinking_and_calling(), Ending::Calls).pop().unwrap()["response"]
            .take();
    assert_eq!(response["store"], true);
    let id = response["id"].as_str().unwrap();
    let second = json!({"instructions": "new", "previous_response_id": id, "input": [
        {"type": "function_call_output", "call_id": response["output"][2]["call_id"], "output": "r"}]});
    let request = parse_with(&second, &backing).unwrap();
    let told_second = told(&conversation(request));
    assert_eq!(told_second[..3], ["system: new", "user: one", "assistant: [hmm]I look. -> g{\"a\":1}"]);
    assert!(told_second[3].ends_with("): r"));
    let spoken = |text: &str| {
        let mut spoken = Spoken::default();
        spoken.take(Part::Content(text.into()), &mut |_| {});
        vec![(spoken, Vec::new(), Ending::Stop)]
    };
    let response = begin(&second, &backing).document(spoken("two"), COUNTS);
    assert_eq!(response["previous_response_id"], id);
    let third = json!({"previous_response_id": response["id"], "input": "three", "store": false});
    let told_third = told(&conversation(parse_with(&third, &backing).unwrap()));
    assert_eq!(told_third.len(), 5);
    assert_eq!(told_third[3..], ["assistant: two", "user: three"]);
    begin(&third, &backing).document(spoken("x"), COUNTS);
    assert_eq!(shelf.0.lock().unwrap().len(), 2, "what is not to be kept is not");

    // An item by its id, as clients that rely on the server name those they were given.
    let item = response["output"][0]["id"].clone();
    let body = json!({"input": [{"role": "user", "content": "q"}, {"type": "item_reference", "id": item}, {"role": "user", "content": "r"}]});
    assert_eq!(
        told(&conversation(parse_with(&body, &backing).unwrap())),
        ["user: q", "assistant: two", "user: r"]
    );

    let unknown = parse_with(&json!({"previous_response_id": "resp_x", "input": "a"}), &backing).unwrap_err();
    assert_eq!(
        (unknown.kind, unknown.param.as_deref()),
        (ErrorKind::PreviousResponseNotFound, Some("previous_response_id"))
    );
}

#[test]
fn a_conversation_is_made_shorter_and_goes_on() {
    let backing = Backing::none();
    let body = json!({"instructions": "i", "stream": true, "input": [
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "r"}, {"role": "user", "content": "three"}]});
    let parsed =
        CompactionDialect::parse_with(body.to_string().as_bytes(), &Limits::default(), &backing).unwrap();
    let Input::Conversation(asked) = &parsed.turns[0].input else { panic!() };
    assert!(
        !parsed.turns[0].settings.stream && asked.messages.len() == 6 && asked.messages[5].role == Role::User
    );
    let mut spoken = Spoken::default();
    spoken.take(Part::Content(" notes ".into()), &mut |_| {});
    let shorter = parsed.dialect.document(vec![(spoken, Vec::new(), Ending::Stop)], COUNTS);
    assert_eq!(shorter["object"], "response.compaction");
    let mut input = shorter["output"].as_array().unwrap().clone();
    input.push(json!({"role": "user", "content": "four"}));
    let next = told(&conversation(parse_with(&json!({"input": input}), &backing).unwrap()));
    assert_eq!(
        next,
        ["user: one", "user: three", "user: Summary of the conversation so far:\n\nnotes", "user: four"]
    );
    // Made shorter again, the summary is not kept beside the new one.
    let body = json!({"input": input}).to_string();
    let again = CompactionDialect::parse_with(body.as_bytes(), &Limits::default(), &backing).unwrap();
    let again = again.dialect.document(vec![(Spoken::default(), Vec::new(), Ending::Stop)], COUNTS);
    assert_eq!(again["output"].as_array().unwrap().len(), 4);
}

#[test]
fn functions_of_one_name_are_told_apart_by_their_groups() {
    let group = |name| json!({"type": "namespace", "name": name, "tools": [{"type": "function", "name": "g", "parameters": {}}]});
    let tools = json!([group("a"), {"type": "function", "name": "f", "parameters": {}}, group("b")]);
    let called =
        json!({"type": "function_call", "call_id": "c", "namespace": "b", "name": "g", "arguments": "{}"});
    let gone =
        json!({"type": "function_call", "call_id": "d", "namespace": "x", "name": "g", "arguments": "{}"});
    let body = json!({"tools": tools, "input": [{"role": "user", "content": "q"}, called, gone]});
    let conversation = conversation(parse(&body).unwrap());
    let names: Vec<_> = conversation.tools.iter().map(|t| t["function"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["a__g", "f", "b__g"]);
    assert_eq!(told(&conversation)[1], "assistant:  -> b__g{} -> x__g{}");
    let parts = vec![Part::CallStart { name: "b__g".into() }, Part::Arguments("{}".into()), Part::CallEnd];
    let events = stream(begin(&body, &Backing::none()), parts, Ending::Calls);
    let item = &events.last().unwrap()["response"]["output"][0];
    assert_eq!((&item["namespace"], &item["name"]), (&json!("b"), &json!("g")));
}
