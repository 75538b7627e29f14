//! What several targets share.

use std::sync::{Arc, LazyLock};

use mach_api::output::{OutputFormat, Part, ReasoningFormat, ReasoningStart, ToolFormat, ToolSchemas};
use serde_json::{Map, Value, json};

/// Functions whose parameters are of each type that parsers tell apart.
static SCHEMAS: LazyLock<Arc<ToolSchemas>> = LazyLock::new(|| {
    let parameters = json!({"type": "object", "properties": {
        "s": {"type": "string"}, "n": {"type": "integer"}, "x": {"type": "number"}, "b": {"type": "boolean"},
        "o": {"type": "object"}, "l": {"type": "array", "items": {"type": ["string", "null"]}},
        "u": {"anyOf": [{"type": "integer"}, {"type": "string"}]}, "e": {"enum": ["a", 1, null]},
    }});
    let tool = |name| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    Arc::new(ToolSchemas::of(&[tool("f"), tool("write")]))
});

/// Any text as an answer of one format, in pieces of any size: the same parts as the whole says, each call whole, and arguments
/// that can be read. The first byte says how the answer begins and ends, the second how it is cut.
pub fn answer(tools: ToolFormat, reasoning: ReasoningFormat, bytes: &[u8]) {
    let [how, size, text @ ..] = bytes else { return };
    let text = String::from_utf8_lossy(text);
    let start = match how & 3 {
        0 | 1 => ReasoningStart::Unopened,
        2 => ReasoningStart::Open,
        _ => ReasoningStart::Closed,
    };
    let (cut, known, thinks) = (how & 4 != 0, how & 8 != 0, how & 16 != 0);
    let format = OutputFormat { tools: Some(tools), reasoning: thinks.then_some(reasoning) };
    let read = |pieces: &[&str]| {
        let mut parser = format.parser(known.then(|| Arc::clone(&SCHEMAS)), start);
        let mut parts = Vec::new();
        pieces.iter().for_each(|piece| parser.push(piece, &mut parts));
        parser.finish(cut, &mut parts);
        joined(parts)
    };
    let whole = read(&[&text]);
    let size = usize::from(*size).max(1);
    let edges: Vec<usize> = text.char_indices().map(|(at, _)| at).step_by(size).chain([text.len()]).collect();
    let pieces: Vec<&str> = edges.windows(2).map(|edge| &text[edge[0]..edge[1]]).collect();
    assert_eq!(read(&pieces), whole);
    let (mut arguments, mut open) = (String::new(), false);
    for part in whole {
        match part {
            Part::CallStart { .. } => {
                assert!(!std::mem::replace(&mut open, true), "a call inside of a call");
                arguments.clear();
            }
            Part::Arguments(more) => arguments.push_str(&more),
            Part::CallEnd => {
                assert!(std::mem::replace(&mut open, false), "the end of no call");
                let _: Map<String, Value> = serde_json::from_str(&arguments).unwrap();
            }
            Part::CallBroken(_) => open = false,
            _ => {}
        }
    }
    assert!(cut || !open, "a call without an end");
}

/// How much is told at once depends on the pieces; what is told does not.
fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::new();
    for part in parts {
        match (all.last_mut(), part) {
            (Some(Part::Content(text)), Part::Content(more))
            | (Some(Part::Reasoning(text)), Part::Reasoning(more))
            | (Some(Part::Arguments(text)), Part::Arguments(more)) => text.push_str(&more),
            (_, part) => all.push(part),
        }
    }
    all
}
