//! Tokenises texts for comparison with other tokenizers: a JSON object a line in, a JSON object a line out.
//!
//! In: `tokenizer`, the path of a `tokenizer.json`, and `texts`. Out: for each text `ids`, `bytes` (of each token, as
//! hexadecimal digits) and `text`, what an answer of these tokens streams.

use std::fmt::Write as _;
use std::io::{BufRead, Write};

use mach_engine::TextTokenizer;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let job: Value = serde_json::from_str(&line?)?;
        let inner =
            Tokenizer::from_file(job["tokenizer"].as_str().unwrap_or_default()).map_err(|e| e.to_string())?;
        let size = inner.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let tokenizer = TextTokenizer::new(inner, size)?;
        let texts = job["texts"].as_array().map(Vec::as_slice).unwrap_or_default();
        let answers = texts.iter().map(|text| {
            let ids = tokenizer.encode(text.as_str().unwrap_or_default(), false)?;
            let bytes: Vec<String> = ids.iter().map(|&id| hexadecimal(tokenizer.bytes(id))).collect();
            Ok::<_, mach_engine::TokenizerError>(
                json!({"text": tokenizer.stream(&ids, &[]), "ids": ids, "bytes": bytes}),
            )
        });
        writeln!(out, "{}", Value::from(answers.collect::<Result<Vec<_>, _>>()?))?;
    }
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
