//! From the text of an answer to what it says: content, reasoning and tool calls, as they are written.
//!
//! Each family of models has a way of its own to write a call down ([`ToolFormat`]) and to set its reasoning apart
//! ([`ReasoningFormat`]). An [`OutputParser`] takes the text in pieces of any size and tells [`Part`]s. The parts, neighbours of
//! a kind joined, do not depend on how the text was cut.

mod dsml;
mod format;
mod gemma4;
pub mod grammar;
mod harmony;
mod hermes;
mod lookahead;
mod prose;
mod qwen_xml;
mod relaxed;
mod tags;
mod think;
mod values;

pub use format::{OutputFormat, ReasoningFormat, ReasoningStart, ToolFormat, UnknownParser};
pub use values::ToolSchemas;

/// Part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// What the model says to itself.
    Reasoning(String),
    /// What it says to the user.
    Content(String),
    /// A call begins.
    CallStart {
        /// Name of the function.
        name: String,
    },
    /// More of the arguments of the call that began last, as JSON.
    Arguments(String),
    /// That call is complete: its arguments are a JSON object.
    CallEnd,
    /// That call is none after all: its text, from its beginning on, as the model wrote it.
    CallBroken(String),
    /// What began like a call is none; its text is in the content.
    Malformed,
}

/// Reads an answer piece by piece.
pub trait OutputParser: Send + std::fmt::Debug {
    /// Takes more text and appends what it says.
    fn push(&mut self, text: &str, out: &mut Vec<Part>);

    /// Ends the text. `cut`: the model was stopped in the middle (the length), so that an unfinished call is no fault of its
    /// own; it is left unfinished. Otherwise an end tag that is missing at the very end is forgiven.
    fn finish(&mut self, cut: bool, out: &mut Vec<Part>);

    /// Whether the text so far ends inside a call.
    fn in_call(&self) -> bool {
        false
    }
}

/// A parser for answers that are content alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl OutputParser for Plain {
    fn push(&mut self, text: &str, out: &mut Vec<Part>) {
        content(out, text);
    }

    fn finish(&mut self, _cut: bool, _out: &mut Vec<Part>) {}
}

fn content(out: &mut Vec<Part>, text: &str) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Content(last)) => last.push_str(text),
        _ => out.push(Part::Content(text.to_owned())),
    }
}

fn reasoning(out: &mut Vec<Part>, text: &str) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Reasoning(last)) => last.push_str(text),
        _ => out.push(Part::Reasoning(text.to_owned())),
    }
}

fn arguments(out: &mut Vec<Part>, text: &str) {
    match out.last_mut() {
        _ if text.is_empty() => {}
        Some(Part::Arguments(last)) => last.push_str(text),
        _ => out.push(Part::Arguments(text.to_owned())),
    }
}

/// A text as a JSON string, without its quotes.
fn escaped(text: &str) -> String {
    let mut quoted = serde_json::Value::from(text).to_string();
    quoted.pop();
    quoted.remove(0);
    quoted
}

/// Whether a name can be that of a function.
fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/' | '$');
    !name.is_empty() && name.len() <= 256 && name.chars().all(fits)
}

#[cfg(test)]
mod tests;
