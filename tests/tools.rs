//! Tool calls, reasoning and structured output over HTTP, with the demo checkpoint.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Answer, DEMO, Server};
use serde_json::{Value, json};

fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// The two tools that the demo knows best.
fn tools() -> Value {
    let tool = |name: &str, about: &str, parameter: &str, what: &str| {
        json!({"type": "function", "function": {"name": name, "description": about, "parameters": {
            "type": "object", "properties": {parameter: {"type": "string", "description": what}}, "required": [parameter],
        }}})
    };
    json!([
        tool("get_weather", "Get the current weather for a city.", "city", "The name of the city"),
        tool("read_file", "Read the contents of a file.", "path", "Path of the file to read"),
    ])
}

/// The message that the chunks of choice 0 add up to, and why it ended.
fn assembled(answer: &Answer) -> (Value, Value) {
    let (mut content, mut reasoning, mut finish) = (String::new(), String::new(), Value::Null);
    let mut calls: BTreeMap<u64, (String, String)> = BTreeMap::new();
    for chunk in answer.chunks() {
        let Some(choice) = chunk["choices"].get(0).filter(|choice| choice["index"] == 0) else { continue };
        let delta = &choice["delta"];
        content += delta["content"].as_str().unwrap_or_default();
        reasoning += delta["reasoning_content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let entry = calls.entry(call["index"].as_u64().unwrap()).or_default();
            if let Some(name) = call["function"]["name"].as_str() {
                assert!(entry.0.is_empty() && call["id"].as_str().unwrap().starts_with("call_"), "{call}");
                assert_eq!(call["type"], "function");
                name.clone_into(&mut entry.0);
            }
            entry.1 += call["function"]["arguments"].as_str().unwrap();
        }
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    let calls: Vec<Value> = calls.into_values().map(|(name, arguments)| json!([name, arguments])).collect();
    (json!({"content": content, "reasoning": reasoning, "calls": calls}), finish)
}

/// The same of a whole answer.
fn whole(answer: &Answer) -> (Value, Value) {
    assert_eq!(answer.status, 200, "{}", answer.body);
    let choice = answer.json()["choices"][0].clone();
    let message = &choice["message"];
    let calls: Vec<Value> = message["tool_calls"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|call| json!([call["function"]["name"], call["function"]["arguments"]]))
        .collect();
    let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
    let said = json!({"content": text("content"), "reasoning": text("reasoning_content"), "calls": calls});
    (said, choice["finish_reason"].clone())
}

fn streamed(server: &Server, mut fields: Value) -> Answer {
    fields["stream"] = true.into();
    server.chat(fields)
}

/// The arguments of the only call.
fn arguments(said: &Value) -> Value {
    assert_eq!(said["calls"].as_array().unwrap().len(), 1, "{said}");
    serde_json::from_str(said["calls"][0][1].as_str().unwrap()).unwrap()
}

fn cached(answer: &Answer) -> u64 {
    answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[test]
fn a_tool_round_trip_says_the_same_streamed_and_whole() {
    let server = Server::demo(&[]);
    let ask = json!({"messages": user("What's the weather in Vienna?"), "tools": tools(), "temperature": 0});
    let first = server.chat(ask.clone());
    let (said, finish) = whole(&first);
    assert_eq!((&said["calls"][0][0], &finish), (&json!("get_weather"), &json!("tool_calls")));
    assert_eq!(arguments(&said), json!({"city": "Vienna"}));
    let message = first.json()["choices"][0]["message"].clone();
    assert!(
        message["content"].is_null() && message["tool_calls"][0]["id"].as_str().unwrap().starts_with("call_")
    );
    assert_eq!(assembled(&streamed(&server, ask.clone())), (said, finish));

    let mut messages = user("What's the weather in Vienna?").as_array().unwrap().clone();
    messages.push(message.clone());
    let result = "{\"city\": \"Vienna\", \"temperature\": 17, \"condition\": \"light rain\"}";
    messages.push(json!({"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": result}));
    let second = server.chat(json!({"messages": messages, "tools": tools(), "temperature": 0}));
    let text = second.text();
    assert!(text.contains("17") && text.contains("Vienna"), "{text}");
    // All of the first turn comes from the cache, but for the token that was chosen and not computed.
    assert_eq!(cached(&second), first.json()["usage"]["total_tokens"].as_u64().unwrap() - 1);
    let stats = server.get("/v1/stats").json();
    assert_eq!(stats["tool_calls"], json!({"complete": 2, "malformed": 0}));
}

#[test]
fn a_turn_that_a_template_writes_differently_is_cached_all_the_same() {
    // With JSON of its own spacing, the call comes back in other tokens than the model wrote.
    let server = Server::demo(&[]);
    let tools = json!([{"type": "function", "function": {"name": "set", "strict": true, "parameters": {"type": "object",
        "properties": {"xs": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 3}},
        "required": ["xs"]}}}]);
    let ask = json!({"messages": user("Call set with xs = [1, 2]"), "tools": tools, "tool_choice": "required",
        "temperature": 1.5, "seed": 3});
    let first = server.chat(ask.clone());
    let message = first.json()["choices"][0]["message"].clone();
    let mut messages = ask["messages"].as_array().unwrap().clone();
    messages.push(message.clone());
    messages.push(json!({"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "done"}));
    let second =
        server.chat(json!({"messages": messages, "tools": tools, "temperature": 0, "max_tokens": 4}));
    let (cached, total) = (cached(&second), first.json()["usage"]["total_tokens"].as_u64().unwrap());
    assert!(cached + 1 == total || cached == total, "{cached} of {total}: {message}");
}

#[test]
fn calls_are_forced_and_typed() {
    let server = Server::demo(&[]);
    for seed in 0..3 {
        let ask = |choice: Value, temperature: f64| {
            json!({"messages": user("Hello!"), "tools": tools(), "tool_choice": choice, "temperature": temperature,
                "seed": seed, "max_tokens": 300})
        };
        let (said, finish) = whole(&server.chat(ask(json!("required"), 1.0)));
        assert_eq!(finish, "tool_calls", "{said}");
        assert!(["get_weather", "read_file"].contains(&said["calls"][0][0].as_str().unwrap()), "{said}");
        let named = json!({"type": "function", "function": {"name": "read_file"}});
        let (said, finish) = whole(&server.chat(ask(named, 0.0)));
        assert_eq!((&said["calls"][0][0], finish), (&json!("read_file"), json!("tool_calls")));
        assert!(arguments(&said)["path"].is_string());
        let (said, finish) = whole(&server.chat(ask(json!("none"), 0.0)));
        assert_eq!((&said["calls"], finish), (&json!([]), json!("stop")));
    }
    let typed = json!([{"type": "function", "function": {"name": "f", "strict": true, "parameters": {
        "type": "object", "required": ["n", "b", "kind", "xs", "o"], "properties": {
            "n": {"type": "integer", "minimum": 1, "maximum": 99}, "b": {"type": "boolean"},
            "kind": {"enum": ["red", "green"]}, "xs": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
            "o": {"$ref": "#/$defs/o"}, "z": {"type": ["number", "null"]}},
        "$defs": {"o": {"type": "object", "properties": {"k": {"type": "boolean"}}, "required": ["k"],
            "additionalProperties": false}}}}}]);
    for seed in 0..4 {
        let ask = json!({"messages": user("Do it"), "tools": typed, "tool_choice": "required", "temperature": 1.5,
            "parallel_tool_calls": false, "seed": seed, "max_tokens": 400});
        let (said, finish) = whole(&server.chat(ask.clone()));
        assert_eq!(finish, "tool_calls", "{said}");
        let given = arguments(&said);
        assert!((1..=99).contains(&given["n"].as_i64().unwrap()) && given["b"].is_boolean(), "{given}");
        assert!(["red", "green"].contains(&given["kind"].as_str().unwrap()), "{given}");
        assert!(
            given["xs"].as_array().unwrap().iter().all(Value::is_i64) && given["o"]["k"].is_boolean(),
            "{given}"
        );
        assert_eq!(assembled(&streamed(&server, ask)), (said, finish));
    }
}

#[test]
fn strict_tools_and_single_calls_hold_without_being_forced() {
    let server = Server::demo(&[]);
    let mut strict = tools();
    strict[0]["function"]["strict"] = true.into();
    strict[0]["function"]["parameters"]["properties"]["city"] = json!({"enum": ["Paris", "Rome"]});
    for (tools, parallel) in [(strict, true), (tools(), false)] {
        let ask = |text: &str| {
            json!({"messages": user(text), "tools": tools, "parallel_tool_calls": parallel, "temperature": 0,
                "max_tokens": 200})
        };
        let (said, finish) = whole(&server.chat(ask("What's the weather in Vienna?")));
        assert_eq!((&said["calls"][0][0], finish), (&json!("get_weather"), json!("tool_calls")), "{said}");
        let city = arguments(&said)["city"].as_str().unwrap().to_owned();
        assert!(
            if parallel { ["Paris", "Rome"].contains(&city.as_str()) } else { city == "Vienna" },
            "{city}"
        );
        // And nothing is called where nothing is to be called.
        let (said, finish) = whole(&server.chat(ask("What is the opposite of hot?")));
        assert_eq!(
            (said["content"].as_str().unwrap(), finish),
            ("The opposite of hot is cold.", json!("stop"))
        );
    }
}

fn person() -> Value {
    json!({"type": "object", "additionalProperties": false, "required": ["name", "age", "tags"], "properties": {
        "name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3}}})
}

fn is_person(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let map = value.as_object().unwrap();
    assert_eq!(map.keys().collect::<Vec<_>>(), ["name", "age", "tags"], "{text}");
    assert!(value["name"].as_str().unwrap().chars().count() <= 12, "{text}");
    assert!((0..=150).contains(&value["age"].as_i64().unwrap()), "{text}");
    assert!(
        value["tags"].as_array().unwrap().iter().all(|tag| ["a", "b", "c"].contains(&tag.as_str().unwrap()))
    );
}

fn schema(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}})
}

#[test]
fn json_of_a_schema_is_that_at_any_temperature() {
    let server = Server::demo(&[]);
    for seed in 0..4 {
        let ask = json!({"messages": user("Give me a person as JSON."), "response_format": schema(&person()), "seed": seed,
            "temperature": 1.5, "top_p": 1, "top_k": 0, "n": 2, "logprobs": true, "max_tokens": 300});
        let answer = server.chat(ask.clone());
        assert_eq!(answer.status, 200, "{}", answer.body);
        for choice in answer.json()["choices"].as_array().unwrap() {
            assert_eq!(choice["finish_reason"], "stop");
            is_person(choice["message"]["content"].as_str().unwrap());
            assert!(!choice["logprobs"]["content"].as_array().unwrap().is_empty());
        }
        assert_eq!(assembled(&streamed(&server, ask)), whole(&answer));
    }
    let object = json!({"messages": user("Anything as JSON."), "response_format": {"type": "json_object"},
        "temperature": 0, "max_tokens": 200});
    let (said, finish) = whole(&server.chat(object));
    if finish == "stop" {
        let value: Value = serde_json::from_str(said["content"].as_str().unwrap()).unwrap();
        assert!(value.is_object());
    }
    let stats = server.get("/v1/stats").json();
    assert!(stats["grammar"]["tokens"].as_u64().unwrap() > 100, "{stats}");
}

#[test]
fn grammars_of_ones_own() {
    let server = Server::demo(&[]);
    let ask = |grammar: Value| {
        let answer = server
            .chat(json!({"messages": user("Hello!"), "grammar": grammar, "temperature": 1.5, "seed": 1}));
        whole(&answer).0["content"].as_str().unwrap().to_owned()
    };
    let number = ask(json!({"syntax": "regex", "definition": "[1-9][0-9]{2}-[a-f]{4}"}));
    assert!(number.len() == 8 && number.as_bytes()[3] == b'-', "{number}");
    let sum = ask(json!("start: NUMBER (\" + \" NUMBER){2}\nNUMBER: /[0-9]/"));
    assert_eq!((sum.len(), sum.matches(" + ").count()), (9, 2), "{sum}");
    // The labels of a schema serve the preset that proposes labels.
    let labels = json!({"messages": user("Is the sea red or blue?"), "temperature": 0,
        "response_format": schema(&json!({"type": "object", "properties": {"color": {"enum": ["red", "blue"]}},
            "required": ["color"], "additionalProperties": false}))});
    let plain = whole(&server.chat(labels.clone()));
    let mut preset = labels;
    preset["speculation"] = json!({"preset": "classification"});
    assert_eq!(whole(&server.chat(preset)), plain);
    assert!(plain.0["content"].as_str().unwrap().contains("\"color\""));
}

#[test]
fn grammars_and_drafts_give_the_same_bytes() {
    let drafting =
        Server::demo(&["--serving-adaptive-block-policy", "fixed-8", "--serving-block-guard", "off"]);
    let plain = Server::demo(&["--decode-path", "target-only", "--no-prefix-cache"]);
    for temperature in [0.0, 1.0] {
        for fields in [
            json!({"messages": user("Give me a person as JSON."), "response_format": schema(&person())}),
            json!({"messages": user("What's the weather in Vienna?"), "tools": tools(), "tool_choice": "required"}),
            json!({"messages": user("What's the weather in Rome?"), "tools": tools(), "parallel_tool_calls": false}),
            json!({"messages": user("Hello!"), "grammar": {"syntax": "regex", "definition": "(a|b|[0-9] ){5,40}"}}),
        ] {
            let mut fields = fields;
            fields["temperature"] = temperature.into();
            fields["seed"] = 5.into();
            fields["max_tokens"] = 120.into();
            assert_eq!(whole(&drafting.chat(fields.clone())), whole(&plain.chat(fields)));
        }
    }
}

#[test]
fn grammars_in_a_batch_do_not_see_each_other() {
    let server = Server::demo(&["--no-prefix-cache", "--max-batch", "4"]);
    let asks: Vec<Value> = (0..4)
        .map(|seed| match seed {
            0 => json!({"messages": user("What's the weather in Rome?"), "tools": tools(), "tool_choice": "required"}),
            1 => json!({"messages": user("Tell me about the sea.")}),
            2 => json!({"messages": user("Hello!"), "grammar": {"syntax": "regex", "definition": "(a|b|[0-9] ){20,40}"}}),
            _ => json!({"messages": user("Give me a person as JSON."), "response_format": schema(&person())}),
        })
        .map(|mut fields| {
            (fields["seed"], fields["temperature"], fields["max_tokens"]) = (7.into(), 1.0.into(), 80.into());
            fields
        })
        .collect();
    let alone: Vec<_> = asks.iter().map(|fields| whole(&server.chat(fields.clone()))).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let start = |fields: &Value| {
            let fields = fields.clone();
            scope.spawn(|| whole(&server.chat(fields)))
        };
        let threads: Vec<_> = asks.iter().chain(&asks).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let calls = 3.0 * alone[0].0["calls"].as_array().unwrap().len() as f64;
    assert_eq!(together, [alone.clone(), alone].concat());
    let metrics = server.get("/metrics").body;
    let count = |name: &str| -> f64 {
        let line = metrics
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap_or_else(|| panic!("{name}: {metrics}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(count("mach_batched_passes_total ") > 0.0 && count("mach_grammar_tokens_total ") > 0.0);
    assert_eq!((count("mach_tool_calls_total "), count("mach_tool_calls_malformed_total ")), (calls, 0.0));
}

#[test]
fn what_cannot_be_enforced_is_named() {
    let server = Server::demo(&[]);
    let mut deep = json!({"type": "string"});
    for _ in 0..40 {
        deep = json!({"type": "object", "properties": {"x": deep}});
    }
    let path = "response_format.json_schema.schema";
    let many: Vec<Value> = (0..10_000).map(|_| tools()[0].clone()).collect();
    let mut pattern = tools();
    pattern[0]["function"]["strict"] = true.into();
    pattern[0]["function"]["parameters"]["properties"]["city"]["pattern"] = r"\bword\b".into();
    for (fields, param) in [
        (json!({"response_format": schema(&deep)}), path),
        (
            json!({"response_format": schema(&json!({"type": "array", "contains": {"type": "string"}, "minContains": 2}))}),
            "response_format.json_schema.schema.contains",
        ),
        (
            json!({"response_format": schema(&json!({"$ref": "https://example.com/x"}))}),
            "response_format.json_schema.schema.$ref",
        ),
        (json!({"response_format": schema(&json!({"type": "string", "pattern": "(?=a)b"}))}), path),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"grammar": "start: nothing"}), "grammar"),
        (json!({"grammar": {"syntax": "regex", "definition": "(a"}}), "grammar"),
        (json!({"grammar": {"syntax": "gbnf", "definition": "x"}}), "grammar.syntax"),
        (json!({"grammar": {"syntax": "regex", "definition": "(".repeat(1000)}}), "grammar"),
        (json!({"grammar": "start: \"a\"", "response_format": {"type": "json_object"}}), "grammar"),
        (json!({"tools": many}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"tools": tools(), "tool_choice": "always"}), "tool_choice"),
        (
            json!({"tools": tools(), "tool_choice": {"type": "function", "function": {"name": "other"}}}),
            "tool_choice.function.name",
        ),
        (json!({"tools": pattern}), "tools[0].function.parameters.properties.city.pattern"),
    ] {
        let mut fields = fields;
        fields["messages"] = user("Hello!");
        let answer = server.chat(fields.clone());
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{error}");
    }
    // Costly ones end soon, one way or the other, and do not disturb anybody.
    for fields in [
        json!({"grammar": {"syntax": "regex", "definition": "((a{1,900}){1,900}b?){1,900}"}}),
        json!({"grammar": {"syntax": "regex", "definition": "(x+x+)+y"}}),
        json!({"response_format": schema(&json!({"type": "array", "items": {"type": "string", "maxLength": 999_999_999},
            "minItems": 999_999_999}))}),
        json!({"grammar": "start: a\na: a a | \"x\""}),
    ] {
        let mut fields = fields;
        fields["messages"] = user("Hello!");
        fields["max_tokens"] = 20.into();
        let answer = server.chat(fields);
        assert!([200, 400].contains(&answer.status), "{}", answer.body);
    }
    assert_eq!(server.chat(json!({"messages": user("Hello!"), "max_tokens": 4})).status, 200);
}

#[test]
fn malformed_calls_come_back_as_text_and_are_counted() {
    let ask = json!({"messages": user("What's the weather in Vienna?"), "tools": tools(), "temperature": 0});
    let server = Server::demo(&["--tool-call-parser", "hermes"]);
    let (said, finish) = whole(&server.chat(ask.clone()));
    let text = said["content"].as_str().unwrap();
    assert!(text.starts_with("<tool_call>") && text.ends_with("</tool_call>"), "{text}");
    assert_eq!((&said["calls"], &finish), (&json!([]), &json!("stop")));
    assert_eq!(server.get("/v1/stats").json()["tool_calls"], json!({"complete": 0, "malformed": 1}));
    let plain = Server::demo(&["--tool-call-parser", "none"]);
    assert_eq!(whole(&plain.chat(ask)), (said, finish));
    assert_eq!(plain.get("/v1/stats").json()["tool_calls"], json!({"complete": 0, "malformed": 0}));
    let signal = plain.signals.iter().find(|line| line.starts_with("startup output ")).unwrap();
    assert!(signal.contains("tool_call_parser=none"), "{signal}");
}

/// The demo with a template that makes it think unless told otherwise.
fn thinking(dir: &Path) {
    for entry in std::fs::read_dir(DEMO).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "chat_template.jinja" {
            std::os::unix::fs::symlink(entry.path(), dir.join(entry.file_name())).unwrap();
        }
    }
    let template = std::fs::read_to_string(format!("{DEMO}/chat_template.jinja")).unwrap();
    let opening = "{{- '<|im_start|>assistant\\n' }}\n{%- endif %}";
    let (before, after) = template.rsplit_once(opening).unwrap();
    let thinks = "{{- '<|im_start|>assistant\\n<think>\\n' }}{%- if enable_thinking is defined and not enable_thinking %}\
                  {{- '\\n</think>\\n\\n' }}{%- endif %}\n{%- endif %}";
    std::fs::write(dir.join("chat_template.jinja"), format!("{before}{thinks}{after}")).unwrap();
}

#[test]
fn reasoning_is_apart_from_content() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("demo");
    std::fs::create_dir(&checkpoint).unwrap();
    thinking(&checkpoint);
    let server = Server::start(&checkpoint, &["--no-streaming"]);
    let close = 16376;
    let ask = |more: Value| {
        let mut fields =
            json!({"messages": user("Tell me about the sea."), "temperature": 0, "max_tokens": 12});
        fields.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = whole(&server.chat(fields.clone()));
        assert_eq!(assembled(&streamed(&server, fields)), answer);
        answer.0
    };
    let said = ask(json!({}));
    assert!(said["content"] == "" && !said["reasoning"].as_str().unwrap().is_empty(), "{said}");
    let said = ask(json!({"chat_template_kwargs": {"enable_thinking": false}}));
    assert!(said["reasoning"] == "" && !said["content"].as_str().unwrap().is_empty(), "{said}");
    // A grammar holds for the content; the reasoning before it is free, and its tags are never shown.
    let word = json!({"syntax": "regex", "definition": "[a-z]{3}"});
    let said = ask(json!({"grammar": word, "logit_bias": {close.to_string(): 100}, "max_tokens": 40}));
    assert_eq!(said["content"].as_str().unwrap().len(), 3, "{said}");
    assert!(!said.to_string().contains("think>"), "{said}");
    let off = ask(json!({"grammar": word, "chat_template_kwargs": {"enable_thinking": false}}));
    assert_eq!((off["content"].as_str().unwrap().len(), &off["reasoning"]), (3, &json!("")), "{off}");
}
