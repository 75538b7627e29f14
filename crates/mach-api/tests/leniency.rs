//! What clients differ in and no meaning is lost by: accepted, and told.

use mach_api::chat::{ChatRequest, Limits, PromptEnd, ResponseFormat, ToolChoice};
use mach_api::{ApiError, CompletionRequest, UnknownFields};
use serde_json::{Value, json};

fn body(fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn parse(fields: Value) -> Result<ChatRequest, ApiError> {
    ChatRequest::parse(body(fields).to_string().as_bytes(), &Limits::default())
}

fn param(fields: Value) -> String {
    parse(fields.clone()).expect_err(&fields.to_string()).param.expect("a field is named")
}

fn function(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

#[test]
fn unknown_fields_are_ignored_and_named_once() {
    let fields = json!({
        "colour": 1, "nothing": null, "empty": [], "user": "known and harmless",
        "messages": [
            {"role": "user", "content": "a", "mood": "x"},
            {"role": "user", "content": [{"type": "text", "text": "b", "font": "serif"}], "mood": "y"},
        ],
        "stream": true, "stream_options": {"include_usage": true, "tempo": 3},
        "response_format": {"type": "text", "x": 1},
    });
    let read = parse(fields.clone()).unwrap();
    let mut ignored = read.notes.ignored().to_vec();
    ignored.sort();
    let named = [
        "colour",
        "messages[].content[].font",
        "messages[].mood",
        "response_format.x",
        "stream_options.tempo",
    ];
    assert_eq!(ignored, named);
    let strict = Limits { unknown_fields: UnknownFields::Refuse, ..Limits::default() };
    for (name, value) in fields.as_object().unwrap().iter().filter(|(name, _)| *name != "stream") {
        let mut one = body(json!({"stream": true}));
        one[name] = value.clone();
        let refused = ChatRequest::parse(one.to_string().as_bytes(), &strict);
        let harmless = ["nothing", "empty", "user"].contains(&name.as_str());
        assert_eq!(refused.is_ok(), harmless, "{name}: {refused:?}");
    }
}

#[test]
fn the_model_is_the_one_that_is_served_unless_named() {
    assert_eq!(parse(json!({})).unwrap().settings.model, None);
    assert_eq!(parse(json!({"model": null})).unwrap().settings.model, None);
    assert_eq!(parse(json!({"model": ""})).unwrap().settings.model, None);
    assert_eq!(parse(json!({"model": "m"})).unwrap().settings.model.as_deref(), Some("m"));
}

#[test]
fn lengths_without_a_bound() {
    let of = |fields: Value| parse(fields).unwrap().settings.max_tokens;
    assert_eq!(of(json!({"max_tokens": -1})), None);
    assert_eq!(of(json!({"max_tokens": null})), None);
    assert_eq!(of(json!({"max_tokens": 9, "max_completion_tokens": 4})), Some(4));
    assert_eq!(of(json!({"max_tokens": 1u64 << 40})), Some(u32::MAX));
    assert_eq!(param(json!({"max_completion_tokens": 0})), "max_completion_tokens");
}

#[test]
fn some_tools_can_be_allowed() {
    let tools = json!([function("f"), function("g"), function("h")]);
    let choice = |choice: Value| parse(json!({"tools": tools, "tool_choice": choice}));
    let names = json!([{"type": "function", "function": {"name": "f"}}, {"type": "function", "name": "h"}]);
    for (given, required) in [
        (json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": names}}), false),
        (json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": names}}), true),
        (json!({"type": "allowed_tools", "mode": "required", "tools": names}), true),
    ] {
        let read = choice(given).unwrap();
        assert_eq!(read.conversation.tools.len(), 3, "the prompt shows all, so that its prefix stays");
        assert_eq!(read.conversation.tool_choice.forces(), required);
        assert!(
            read.conversation.tool_choice.admits("f")
                && !read.conversation.tool_choice.admits("g")
                && read.conversation.tool_choice.admits("h")
        );
    }
    for bad in [
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"name": "x"}]}}),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}),
        json!({"type": "allowed_tools", "allowed_tools": {"mode": "never", "tools": names}}),
        json!({"type": "custom", "custom": {"name": "f"}}),
    ] {
        assert!(choice(bad.clone()).unwrap_err().param.unwrap().starts_with("tool_choice"), "{bad}");
    }
    assert_eq!(choice(json!("any")).unwrap().conversation.tool_choice, ToolChoice::Required);
    assert_eq!(
        choice(json!({"type": "function", "name": "g"})).unwrap().conversation.tool_choice,
        ToolChoice::Function("g".into())
    );
}

#[test]
fn functions_are_tools_of_an_older_time() {
    let functions = json!([{"name": "f", "parameters": {"type": "object"}}]);
    let read = parse(json!({"functions": functions})).unwrap();
    assert_eq!(read.conversation.tools, [json!({"type": "function", "function": functions[0]})]);
    assert!(read.legacy_functions && !read.conversation.parallel_tool_calls);
    let named = parse(json!({"functions": functions, "function_call": {"name": "f"}})).unwrap();
    assert_eq!(named.conversation.tool_choice, ToolChoice::Function("f".into()));
    assert!(
        parse(json!({"functions": functions, "function_call": "none"}))
            .unwrap()
            .conversation
            .tools
            .is_empty()
    );
    for (fields, at) in [
        (json!({"functions": functions, "tools": [function("g")]}), "functions"),
        (json!({"functions": functions, "function_call": {"name": "g"}}), "function_call.name"),
        (json!({"functions": functions, "function_call": "required"}), "function_call"),
        (json!({"function_call": {"name": "g"}}), "function_call"),
        (json!({"functions": [{"description": "no name"}]}), "functions[0].name"),
    ] {
        assert_eq!(param(fields), at);
    }
}

#[test]
fn answers_are_guided_by_fields_of_vllm_too() {
    let of = |fields: Value| parse(fields).unwrap().settings.format;
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    for fields in [
        json!({"guided_json": schema}),
        json!({"guided_json": schema.to_string()}),
        json!({"structured_outputs": {"json": schema, "disable_any_whitespace": true}}),
        json!({"response_format": {"type": "json_object", "schema": schema}}),
    ] {
        assert!(matches!(of(fields), Some(ResponseFormat::Json(given, ..)) if given == schema));
    }
    let regex = Some(ResponseFormat::Regex("[0-9]+".into()));
    assert_eq!(of(json!({"guided_regex": "[0-9]+", "guided_decoding_backend": "x"})), regex);
    assert_eq!(of(json!({"structured_outputs": {"regex": "[0-9]+"}})), regex);
    let choice = Some(ResponseFormat::Lark("start: \"a\" | \"b \\\" c\"".into()));
    assert_eq!(of(json!({"guided_choice": ["a", "b \" c"]})), choice);
    assert_eq!(of(json!({"structured_outputs": {"choice": ["a", "b \" c"]}})), choice);
    let lark = Some(ResponseFormat::Lark("start: \"x\"".into()));
    assert_eq!(of(json!({"guided_grammar": "start: \"x\""})), lark);
    assert!(of(json!({"structured_outputs": {"json_object": true}})).is_some());
    assert!(of(json!({"structured_outputs": {}})).is_none());
    for (fields, at) in [
        (json!({"guided_json": "{"}), "guided_json"),
        (json!({"guided_choice": []}), "guided_choice"),
        (json!({"guided_choice": ["a", ""]}), "guided_choice[1]"),
        (json!({"guided_regex": "a", "guided_grammar": "start: \"x\""}), "guided_grammar"),
        (json!({"guided_regex": "a", "structured_outputs": {"regex": "a"}}), "structured_outputs.regex"),
        (json!({"guided_regex": "a", "response_format": {"type": "json_object"}}), "response_format"),
        (json!({"structured_outputs": {"structural_tag": {}}}), "structured_outputs.structural_tag"),
    ] {
        assert_eq!(param(fields), at);
    }
}

#[test]
fn an_assistant_message_can_be_continued() {
    let messages = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Once"}]);
    let end = |fields: Value| parse(fields).unwrap().conversation.end;
    assert_eq!(end(json!({})), PromptEnd::Turn);
    assert_eq!(end(json!({"add_generation_prompt": false})), PromptEnd::Message);
    assert_eq!(end(json!({"messages": messages, "continue_final_message": true})), PromptEnd::Continue);
    let and = json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": true});
    for fields in [and, json!({"continue_final_message": true})] {
        assert_eq!(param(fields), "continue_final_message");
    }
}

#[test]
fn levels_are_variables_of_the_template() {
    let read = parse(json!({"verbosity": "low", "reasoning_effort": "high"})).unwrap();
    assert_eq!(
        (
            &read.conversation.template_kwargs["verbosity"],
            &read.conversation.template_kwargs["reasoning_effort"]
        ),
        (&json!("low"), &json!("high"))
    );
    assert_eq!(param(json!({"verbosity": 3})), "verbosity");
}

#[test]
fn plain_prompts_take_the_same_fields() {
    let parse = |fields: Value| {
        let mut body = json!({"prompt": "a"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        CompletionRequest::parse(body.to_string().as_bytes(), &Limits::default())
    };
    let read = parse(json!({"guided_regex": "a+", "x": 1})).unwrap();
    assert_eq!(read.settings.format, Some(ResponseFormat::Regex("a+".into())));
    assert_eq!(read.notes.ignored(), ["x"]);
    assert_eq!(
        parse(json!({"continue_final_message": true})).unwrap_err().param.as_deref(),
        Some("continue_final_message")
    );
}
