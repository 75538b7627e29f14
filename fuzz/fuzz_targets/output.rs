//! Any text as an answer, in any pieces, to every parser: the same parts as the whole says, and arguments that can be read.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use mach_api::output::{OutputFormat, Part, ReasoningFormat, ReasoningStart, ToolFormat, ToolSchemas};

const FORMATS: [(ToolFormat, ReasoningFormat); 5] = [
    (ToolFormat::QwenXml, ReasoningFormat::Think),
    (ToolFormat::Hermes, ReasoningFormat::Think),
    (ToolFormat::Harmony, ReasoningFormat::Harmony),
    (ToolFormat::Gemma4, ReasoningFormat::Gemma4),
    (ToolFormat::Dsml, ReasoningFormat::Think),
];

fn read<'a>(format: OutputFormat, pieces: impl Iterator<Item = &'a str>, cut: bool) -> Vec<Part> {
    let schemas = Arc::new(ToolSchemas::default());
    let mut parser = format.parser(Some(schemas), ReasoningStart::Unopened);
    let mut parts = Vec::new();
    // Neighbours of a kind are joined as they come.
    pieces.for_each(|piece| parser.push(piece, &mut parts));
    parser.finish(cut, &mut parts);
    parts
}

fuzz_target!(|input: (bool, u8, &str)| {
    let (cut, size, text) = input;
    let size = usize::from(size).max(1);
    for (tools, reasoning) in FORMATS {
        let format = OutputFormat { tools: Some(tools), reasoning: Some(reasoning) };
        let whole = read(format, std::iter::once(text), cut);
        let letters: Vec<char> = text.chars().collect();
        let pieces: Vec<String> = letters.chunks(size).map(|piece| piece.iter().collect()).collect();
        assert_eq!(read(format, pieces.iter().map(String::as_str), cut), whole);
        let mut arguments = String::new();
        for part in whole {
            match part {
                Part::CallStart { .. } => arguments.clear(),
                Part::Arguments(more) => arguments.push_str(&more),
                Part::CallEnd => {
                    let _: serde_json::Map<String, serde_json::Value> =
                        serde_json::from_str(&arguments).unwrap();
                }
                _ => {}
            }
        }
    }
});
