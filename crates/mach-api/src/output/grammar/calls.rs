//! Calls in the format of a family.

use serde_json::{Value, json};

use super::ToolFormat;
use super::lark::{Lark, quoted};
use super::schema::{GrammarWriter, Notation, Schemas, Tagged, Unsupported, document};
use crate::chat::function_name;

/// How closely arguments follow their schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exact {
    /// In everything; what cannot be enforced is an error.
    Strict,
    /// In everything that can be enforced.
    Lenient,
    /// The model writes what it likes, up to the call's end.
    Loose,
}

/// What stands around calls.
pub(super) struct Shape {
    open: &'static str,
    close: &'static str,
    /// Between two calls.
    between: &'static str,
    /// Each call has an opening and a closing of its own.
    each: bool,
    /// One answer can hold more than one.
    pub(super) several: bool,
}

/// How a family's calls stand in the answer.
pub(super) fn shape(format: ToolFormat) -> Shape {
    match format {
        ToolFormat::QwenXml | ToolFormat::Hermes => {
            Shape { open: "<tool_call>\n", close: "\n</tool_call>", between: "\n", each: true, several: true }
        }
        ToolFormat::Gemma4 => {
            Shape { open: "<|tool_call>", close: "<tool_call|>", between: "", each: true, several: true }
        }
        ToolFormat::Dsml => Shape {
            open: "<｜DSML｜tool_calls>\n",
            close: "\n</｜DSML｜tool_calls>",
            between: "\n",
            each: false,
            several: true,
        },
        // A call ends the answer.
        ToolFormat::Harmony => Shape {
            open: "<|channel|>commentary to=functions.",
            close: "",
            between: "",
            each: true,
            several: false,
        },
    }
}

impl Shape {
    /// One call or, if `several`, more.
    pub(super) fn list(&self, call: &str, several: bool, lark: &mut Lark<'_>) -> String {
        let (open, close) = (lark.text(self.open), lark.text(self.close));
        let between = lark.text(self.between);
        let one = format!("{open} {call} {close}");
        match (several, self.each) {
            (false, _) => lark.rule(&one),
            (true, true) => {
                let one = lark.rule(&one);
                lark.rule(&format!("{one} ({between} {one})*"))
            }
            (true, false) => lark.rule(&format!("{open} {call} ({between} {call})* {close}")),
        }
    }

    /// Text in which a call may begin; whatever begins like one is one.
    pub(super) fn among_text(&self, call: &str, several: bool, lark: &mut Lark<'_>) -> String {
        let head = lark.until(self.open.trim_end());
        let gap = lark.text(self.open.strip_prefix(self.open.trim_end()).unwrap_or_default());
        let close = lark.text(self.close);
        let rest = match (several, self.each) {
            (true, false) => format!("{gap} {call} ({} {call})* {close}", lark.text(self.between)),
            _ => format!("{gap} {call} {close}"),
        };
        let one = lark.rule(&format!("{head} {rest}"));
        if several { format!("{one}* ANY") } else { format!("ANY | {one}") }
    }
}

/// A call's rule, and what was let go of its schema.
pub(super) struct Call {
    pub(super) rule: String,
    pub(super) warnings: Vec<String>,
}

/// One call of a function, without what stands around it.
pub(super) fn call(
    format: ToolFormat,
    tool: &Value,
    exact: Exact,
    lark: &mut Lark<'_>,
) -> Result<Call, Unsupported> {
    let name = function_name(tool).unwrap_or_default();
    let none = json!({"type": "object", "properties": {}});
    let schema = tool.pointer("/function/parameters").unwrap_or(&none);
    if exact == Exact::Loose {
        let body = loose(format, name, lark);
        return Ok(Call { rule: lark.rule(&body), warnings: Vec::new() });
    }
    let document = document(schema);
    let mut schemas = Schemas::new(&document, exact == Exact::Strict);
    let notation = if format == ToolFormat::Gemma4 { Notation::Gemma4 } else { Notation::Tight };
    let head = head(format, name, lark);
    let mut writer = GrammarWriter::new(lark, &mut schemas, notation);
    // Arguments are an object, whatever else a schema leaves open.
    let object = json!({"type": "object"});
    let arguments = match format {
        ToolFormat::QwenXml => writer.parameters(&[&document], schema, &Tagged::QWEN),
        ToolFormat::Dsml => writer.parameters(&[&document], schema, &Tagged::DSML),
        _ => writer.rule(&[&document, &object]),
    };
    let arguments = arguments?.ok_or_else(|| (String::new(), "nothing can meet it".to_owned()))?;
    let body = match format {
        ToolFormat::Hermes => format!("{head} {arguments} \"}}\""),
        _ => format!("{head} {arguments}"),
    };
    Ok(Call { rule: lark.rule(&body), warnings: schemas.warnings })
}

/// A call's beginning.
fn head(format: ToolFormat, name: &str, lark: &Lark<'_>) -> String {
    match format {
        ToolFormat::QwenXml => lark.text(&format!("<function={name}>\n")),
        ToolFormat::Dsml => lark.text(&format!("<｜DSML｜invoke name=\"{name}\">\n")),
        ToolFormat::Hermes => quoted(&format!("{{\"name\": {}, \"arguments\": ", Value::from(name))),
        ToolFormat::Harmony => lark.text(&format!("{name} <|constrain|>json<|message|>")),
        ToolFormat::Gemma4 => lark.text(&format!("call:{name}")),
    }
}

/// A call whose arguments are held to nothing but the format.
/// Anything up to a tag where the format writes it, at the beginning of a line; inside a line it is text.
fn until_line(close: &str, lark: &mut Lark<'_>) -> String {
    let (at_once, later) = (lark.text(close), lark.until(&format!("\n{close}")));
    lark.rule(&format!("{at_once} | {later}"))
}

fn loose(format: ToolFormat, name: &str, lark: &mut Lark<'_>) -> String {
    let head = head(format, name, lark);
    let object = json!({"type": "object"});
    let any = |notation: Notation, lark: &mut Lark<'_>| {
        let mut schemas = Schemas::new(&object, false);
        // Nothing can go wrong with so little.
        GrammarWriter::new(lark, &mut schemas, notation).rule(&[&object]).ok().flatten().unwrap_or_default()
    };
    match format {
        ToolFormat::QwenXml => format!("{head} {}", until_line(Tagged::QWEN.call_close, lark)),
        ToolFormat::Dsml => format!("{head} {}", until_line(Tagged::DSML.call_close, lark)),
        ToolFormat::Hermes => format!("{head} {} \"}}\"", any(Notation::Tight, lark)),
        ToolFormat::Harmony => format!("{head} {}", any(Notation::Tight, lark)),
        ToolFormat::Gemma4 => format!("{head} {}", any(Notation::Gemma4, lark)),
    }
}
