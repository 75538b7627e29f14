//! Reads answers as the server does, for comparison with what was meant: a JSON object a line in, a JSON object a line out.
//!
//! In: `tokenizer`, the path of a `tokenizer.json`, `template`, the text of a chat template, and `answers`, each with the
//! `prompt` that it follows, its `text` and the request's `tools`. Out: for each answer `ids`, the tokens of prompt and answer,
//! and what was read: `reasoning`, `content`, and `calls` with `name`, `arguments` and whether they are `whole`.

use std::io::{BufRead, Write};
use std::sync::Arc;

use mach_api::output::{OutputFormat, Part, ReasoningStart, ToolSchemas};
use mach_engine::{TextTokenizer, TokenizerError};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

/// Characters that the parser is given at a time: it is to bear any cut.
const PIECE: usize = 3;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let job: Value = serde_json::from_str(&line?)?;
        let inner = Tokenizer::from_file(text(&job, "tokenizer")).map_err(|e| e.to_string())?;
        let size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let tokenizer = TextTokenizer::new(inner, size)?;
        let format = OutputFormat::detect(text(&job, "template"), OutputFormat::default());
        let answers = job["answers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let read = answers.iter().map(|answer| read(&tokenizer, format, answer));
        writeln!(out, "{}", Value::from(read.collect::<Result<Vec<_>, _>>()?))?;
    }
    Ok(())
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn read(tokenizer: &TextTokenizer, format: OutputFormat, answer: &Value) -> Result<Value, TokenizerError> {
    let (prompt, said) = (text(answer, "prompt"), text(answer, "text"));
    let whole = tokenizer.encode(&format!("{prompt}{said}"), false)?;
    let show: Vec<u32> = format.markers().into_iter().filter_map(|marker| tokenizer.id(marker)).collect();
    let shown: Vec<char> = tokenizer.stream(&tokenizer.encode(said, false)?, &show).chars().collect();

    let tools = answer["tools"].as_array().map(Vec::as_slice).unwrap_or_default();
    let schemas = (!tools.is_empty()).then(|| Arc::new(ToolSchemas::of(tools)));
    let start = format.reasoning.map_or(ReasoningStart::Unopened, |reasoning| reasoning.start(prompt));
    let mut parser = format.parser(schemas, start);
    let mut parts = Vec::new();
    for piece in shown.chunks(PIECE) {
        parser.push(&piece.iter().collect::<String>(), &mut parts);
    }
    parser.finish(false, &mut parts);

    let (mut reasoning, mut content, mut calls) = (String::new(), String::new(), Vec::<Value>::new());
    for part in parts {
        match (part, calls.last_mut()) {
            (Part::Reasoning(text), _) => reasoning.push_str(&text),
            (Part::Content(text), _) => content.push_str(&text),
            (Part::CallStart { name }, _) => {
                calls.push(json!({"name": name, "arguments": "", "whole": false}));
            }
            (Part::Arguments(more), Some(call)) => {
                call["arguments"] = format!("{}{more}", text(call, "arguments")).into();
            }
            (Part::CallEnd, Some(call)) => call["whole"] = true.into(),
            (other, _) => calls.push(json!({"broken": format!("{other:?}")})),
        }
    }
    Ok(json!({"ids": whole, "reasoning": reasoning, "content": content, "calls": calls}))
}
