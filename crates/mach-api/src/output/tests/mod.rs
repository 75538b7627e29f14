//! Every format: what it says, whole and in pieces, and that nothing arbitrary breaks it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

mod others;
mod property;
mod tags;

const ALL: [ToolFormat; 5] =
    [ToolFormat::QwenXml, ToolFormat::Hermes, ToolFormat::Harmony, ToolFormat::Gemma4, ToolFormat::Dsml];

fn schemas() -> Arc<ToolSchemas> {
    let function = |name: &str, properties: Value| json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}});
    let f = function(
        "f",
        json!({
            "s": {"type": "string"}, "n": {"type": "integer"}, "b": {"type": "boolean"}, "x": {"type": ["number", "null"]},
            "a": {"type": "array", "items": {"type": "integer"}}, "o": {"type": "object"},
        }),
    );
    let write = function("write", json!({"path": {"type": "string"}, "body": {"type": "string"}}));
    Arc::new(ToolSchemas::of(&[f, write, function("now", json!({}))]))
}

fn format(tools: ToolFormat) -> OutputFormat {
    let reasoning = match tools {
        ToolFormat::Harmony => ReasoningFormat::Harmony,
        ToolFormat::Gemma4 => ReasoningFormat::Gemma4,
        _ => ReasoningFormat::Think,
    };
    OutputFormat { tools: Some(tools), reasoning: Some(reasoning) }
}

fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut out = Vec::new();
    for part in parts {
        match part {
            Part::Content(text) => content(&mut out, &text),
            Part::Reasoning(text) => reasoning(&mut out, &text),
            Part::Arguments(text) => arguments(&mut out, &text),
            other => out.push(other),
        }
    }
    out
}

fn read<'a>(tools: ToolFormat, pieces: impl IntoIterator<Item = &'a str>, cut: bool) -> Vec<Part> {
    let mut parser = format(tools).parser(Some(schemas()), ReasoningStart::Unopened);
    let mut all = Vec::new();
    for piece in pieces {
        let mut out = Vec::new();
        parser.push(piece, &mut out);
        all.extend(out);
    }
    let mut out = Vec::new();
    parser.finish(cut, &mut out);
    all.extend(out);
    joined(all)
}

fn calls(parts: &[Part]) -> Vec<(String, Value)> {
    let (mut calls, mut text) = (Vec::new(), String::new());
    let mut name = None;
    for part in parts {
        match part {
            Part::CallStart { name: started } => {
                text.clear();
                name = Some(started.clone());
            }
            Part::Arguments(more) => text.push_str(more),
            Part::CallEnd => {
                let arguments = serde_json::from_str(&std::mem::take(&mut text)).expect(&text);
                calls.push((name.take().unwrap(), arguments));
            }
            _ => {}
        }
    }
    calls
}

/// What a text says, whole and however it is cut: its content and its calls.
fn says(tools: ToolFormat, text: &str) -> (String, Vec<(String, Value)>) {
    let whole = read(tools, [text], false);
    let letters: Vec<String> = text.chars().map(String::from).collect();
    assert_eq!(read(tools, letters.iter().map(String::as_str), false), whole, "{tools:?}: {text}");
    for (at, _) in text.char_indices() {
        assert_eq!(read(tools, [&text[..at], &text[at..]], false), whole, "{tools:?} at {at}: {text}");
    }
    (said(&whole), calls(&whole))
}

/// Checks what texts say.
fn check(tools: ToolFormat, cases: &[(&str, &str, Value)]) {
    for (text, content, expected) in cases {
        let (said, calls) = says(tools, text);
        let calls: Vec<Value> = calls.into_iter().map(|(name, arguments)| json!([name, arguments])).collect();
        assert_eq!((said.as_str(), &json!(calls)), (*content, expected), "{tools:?}: {text}");
    }
}

/// Checks that texts are text, as they are written.
fn is_text(tools: ToolFormat, texts: &[&str]) {
    for text in texts {
        assert_eq!(says(tools, text), ((*text).to_owned(), Vec::new()), "{tools:?}");
        let parts = read(tools, [*text], false);
        assert!(
            !parts.iter().any(|part| matches!(part, Part::CallStart { .. })),
            "{tools:?}: {text}: {parts:?}"
        );
    }
}

fn said(parts: &[Part]) -> String {
    let text = |part: &Part| match part {
        Part::Content(text) | Part::CallBroken(text) => text.clone(),
        _ => String::new(),
    };
    parts.iter().map(text).collect()
}

fn thought(parts: &[Part]) -> String {
    let text = |part: &Part| if let Part::Reasoning(text) = part { text.clone() } else { String::new() };
    parts.iter().map(text).collect()
}

/// An answer that reasons, says something and calls `f`, twice where the format can.
fn example(tools: ToolFormat) -> &'static str {
    match tools {
        ToolFormat::QwenXml => {
            "<think>\nHm.\n</think>\n\nWait.\n\n<tool_call>\n<function=f>\n<parameter=s>\na \"b\"\n\n<c>\n</parameter>\n\
             <parameter=n>\n3\n</parameter>\n<parameter=a>\n[1, 2]\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n\
             <function=f>\n<parameter=x>\nNone\n</parameter>\n<parameter=b>\nTrue\n</parameter>\n</function>\n</tool_call>"
        }
        ToolFormat::Hermes => {
            "<think>\nHm.\n</think>\n\nWait.\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"a \\\"b\\\"\\n\\n<c>\", \
             \"n\": 3, \"a\": [1, 2]}}\n</tool_call>\n<tool_call>\n{\"id\": 7, \"arguments\": {\"x\": null, \"b\": true}, \
             \"name\": \"f\"}\n</tool_call>"
        }
        ToolFormat::Harmony => {
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|><|start|>\
             assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"s\": \"a \\\"b\\\"\\n\\n<c>\", \
             \"n\": 3, \"a\": [1, 2]}<|call|><|start|>assistant to=functions.f<|channel|>commentary json<|message|>\
             {\"x\": null, \"b\": true}"
        }
        ToolFormat::Gemma4 => {
            "<|channel>thought\nHm.\n<channel|>Wait.<|tool_call>call:f{s:<|\"|>a \"b\"\n\n<c><|\"|>,n:3,a:[1,2]}<tool_call|>\
             <|tool_call>call:f{x:null,b:true}<tool_call|>"
        }
        ToolFormat::Dsml => {
            "<think>Hm.</think>Wait.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"s\" string=\
             \"true\">a \"b\"\n\n<c></｜DSML｜parameter>\n<｜DSML｜parameter name=\"n\" string=\"false\">3</｜DSML｜parameter>\n\
             <｜DSML｜parameter name=\"a\" string=\"false\">[1, 2]</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name=\"f\">\n\
             <｜DSML｜parameter name=\"x\" string=\"false\">null</｜DSML｜parameter>\n<｜DSML｜parameter name=\"b\" string=\"false\">\
             true</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>"
        }
    }
}

#[test]
fn every_format_says_the_same() {
    for tools in ALL {
        let parts = read(tools, [example(tools)], false);
        assert_eq!(thought(&parts), "Hm.", "{tools:?}");
        assert_eq!(said(&parts), "Wait.", "{tools:?}");
        let first = json!({"s": "a \"b\"\n\n<c>", "n": 3, "a": [1, 2]});
        let second = json!({"x": null, "b": true});
        assert_eq!(calls(&parts), [("f".to_owned(), first), ("f".to_owned(), second)], "{tools:?}");
        assert!(!parts.contains(&Part::Malformed));
    }
}

#[test]
fn arguments_go_out_as_they_are_written() {
    for tools in ALL {
        let mut parser = format(tools).parser(Some(schemas()), ReasoningStart::Unopened);
        let text = example(tools);
        // Up to the middle of the first string.
        let middle = [text.find("b\""), text.find("b\\\"")].into_iter().flatten().min().unwrap();
        let mut out = Vec::new();
        parser.push(&text[..middle], &mut out);
        let Some(Part::Arguments(arguments)) = out.last() else { panic!("{tools:?}: {out:?}") };
        assert!(arguments.ends_with("\"a \\\""), "{tools:?}: {arguments}");
    }
}

#[test]
fn pieces_say_what_the_whole_says() {
    for tools in ALL {
        let text = example(tools);
        let whole = read(tools, [text], false);
        let mut buffer = [0; 4];
        let letters: Vec<String> = text.chars().map(|c| c.encode_utf8(&mut buffer).to_owned()).collect();
        assert_eq!(read(tools, letters.iter().map(String::as_str), false), whole, "{tools:?}");
        for (at, _) in text.char_indices() {
            assert_eq!(read(tools, [&text[..at], &text[at..]], false), whole, "{tools:?} at {at}");
        }
    }
}

#[test]
fn what_is_no_call_is_text() {
    for (tools, text) in [
        (ToolFormat::QwenXml, "a <tool_call>\nnothing"),
        (ToolFormat::QwenXml, "<tool_call>\n<function=\n>x"),
        (ToolFormat::QwenXml, "  <function=a b>"),
        (ToolFormat::Hermes, "a <tool_call>\n[1]</tool_call> b"),
        (ToolFormat::Hermes, "<tool_call>{\"name\": 3}"),
        (ToolFormat::Hermes, "<tool_call>{\"nam"),
        (ToolFormat::Gemma4, "<|tool_call>say:f{}"),
        (ToolFormat::Dsml, "<｜DSML｜tool_calls>\n<｜DSML｜invoke nam=\"f\">"),
        (ToolFormat::QwenXml, "<tool_call>\n<function=f>\n and"),
        (ToolFormat::Dsml, "<｜DSML｜tool_calls><｜DSML｜invoke name=\"f\">and"),
    ] {
        let parts = read(tools, [text], false);
        assert_eq!(said(&parts), text, "{tools:?}");
        assert!(parts.contains(&Part::Malformed), "{tools:?}: {text}");
    }
}

#[test]
fn calls_that_break_off_give_their_text_back() {
    for (tools, text) in [
        (ToolFormat::QwenXml, "<tool_call>\n<function=f>\n<parameter=s>\nab"),
        (ToolFormat::QwenXml, "<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n and"),
        (ToolFormat::Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\": tru}}"),
        (ToolFormat::Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"s\""),
        (ToolFormat::Gemma4, "<|tool_call>call:f{s:<|\"|>ab"),
        (
            ToolFormat::Dsml,
            "<｜DSML｜tool_calls><｜DSML｜invoke name=\"f\"><｜DSML｜parameter name=\"s\" string=\"true\">a",
        ),
        (ToolFormat::Harmony, "{\"s\""),
    ] {
        // Of a message, its text alone.
        let text = match tools {
            ToolFormat::Harmony => format!("<|channel|>commentary to=functions.f<|message|>{text}"),
            _ => text.to_owned(),
        };
        let text = text.as_str();
        let parts = read(tools, [text], false);
        let expected = text.strip_prefix("<|channel|>commentary to=functions.f<|message|>").unwrap_or(text);
        assert_eq!(said(&parts), expected, "{tools:?}");
        assert_eq!(calls(&parts), [], "{tools:?}");
        assert!(parts.iter().any(|part| matches!(part, Part::CallBroken(_))), "{tools:?}: {text}");
        // At the length, the call is unfinished and no more.
        let cut = read(tools, [text], true);
        assert_ne!(cut.last(), Some(&Part::CallEnd));
    }
}

#[test]
fn missing_ends_are_forgiven_unless_the_answer_was_cut() {
    for (tools, text) in [
        (ToolFormat::QwenXml, "<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n"),
        (ToolFormat::QwenXml, "<function=f>\n<parameter=n>\n3\n</parameter>\n</function>"),
        (ToolFormat::QwenXml, "<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n</tool_call>"),
        (ToolFormat::Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"n\\\": 3}\"}"),
        (ToolFormat::Gemma4, "<|tool_call>call:f{n:3}"),
        (ToolFormat::Harmony, "<|channel|>commentary to=functions.f<|message|>{\"n\": 3}"),
    ] {
        let parts = read(tools, [text], false);
        assert_eq!(calls(&parts), [("f".to_owned(), json!({"n": 3}))], "{text}");
        assert_eq!(said(&parts), "");
    }
    let open =
        read(ToolFormat::QwenXml, ["<tool_call>\n<function=f>\n<parameter=n>\n3\n</parameter>\n"], true);
    assert_eq!(open.last(), Some(&Part::Arguments("{\"n\": 3".to_owned())));
}

#[test]
fn reasoning_is_found_where_the_prompt_left_it() {
    let of = |start, text: &str| {
        let format = OutputFormat { tools: None, reasoning: Some(ReasoningFormat::Think) };
        let mut parser = format.parser(None, start);
        let mut out = Vec::new();
        parser.push(text, &mut out);
        parser.finish(false, &mut out);
        (thought(&out), said(&out))
    };
    let two = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(of(ReasoningStart::Open, "a\n</think>\n\nb "), two("a", "b "));
    assert_eq!(of(ReasoningStart::Open, "a <think> </thin"), two("a <think> </thin", ""));
    assert_eq!(of(ReasoningStart::Open, "<think>\na</think>\n</think>b"), two("a", "b"));
    assert_eq!(of(ReasoningStart::Unopened, "\n<think>\na</think>b"), two("a", "b"));
    assert_eq!(of(ReasoningStart::Unopened, " b <think>"), two("", " b <think>"));
    assert_eq!(of(ReasoningStart::Closed, "<think>"), two("", "<think>"));
    assert_eq!(ReasoningFormat::Think.start("user <think>\n"), ReasoningStart::Open);
    assert_eq!(ReasoningFormat::Think.start("<think>\n\n</think>\n\n"), ReasoningStart::Closed);
    assert_eq!(ReasoningFormat::Gemma4.start("<|turn>model\n"), ReasoningStart::Unopened);
}

#[test]
fn formats_are_detected_and_named() {
    let detect = |template| OutputFormat::detect(template, OutputFormat::default());
    assert_eq!(detect("<tool_call>\\n<function=").tools, Some(ToolFormat::QwenXml));
    let qwen3 = detect("<think> <tool_call>{\"name\"");
    assert_eq!((qwen3.tools, qwen3.reasoning), (Some(ToolFormat::Hermes), Some(ReasoningFormat::Think)));
    // What a family is known for counts where its template shows nothing.
    let usual = OutputFormat { tools: Some(ToolFormat::Dsml), reasoning: Some(ReasoningFormat::Think) };
    assert_eq!(OutputFormat::detect("plain", usual), usual);
    assert_eq!(OutputFormat::detect("<tool_call>\n<function=", usual).tools, Some(ToolFormat::QwenXml));
    assert_eq!(detect("plain"), OutputFormat::default());
    for tools in ALL {
        assert_eq!(tools.name().parse(), Ok(tools));
    }
    let error = "x".parse::<ToolFormat>().unwrap_err().to_string();
    assert!(error.contains("qwen3_xml, qwen3_coder, hermes"), "{error}");
}
