//! Calls in the format of a family.

use serde_json::{Map, Value, json};

use super::super::values::Types;
use super::lark::{Lark, quoted};
use super::{ToolFormat, gemma4, guided};
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

/// A path below `parameters`, and what is wrong there.
pub(super) type Unsupported = (String, String);

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

/// One call of a function, without what stands around it.
pub(super) fn call(
    format: ToolFormat,
    tool: &Value,
    exact: Exact,
    lark: &mut Lark<'_>,
) -> Result<String, Unsupported> {
    let name = function_name(tool).unwrap_or_default();
    let none = json!({"type": "object", "properties": {}});
    let schema = tool.pointer("/function/parameters").unwrap_or(&none);
    let body = match format {
        ToolFormat::QwenXml => {
            let head = lark.text(&format!("<function={name}>\n"));
            let parameters = tagged(schema, exact, lark, &Tagged::QWEN)?;
            format!("{head} {parameters}")
        }
        ToolFormat::Dsml => {
            let head = lark.text(&format!("<｜DSML｜invoke name=\"{name}\">\n"));
            let parameters = tagged(schema, exact, lark, &Tagged::DSML)?;
            format!("{head} {parameters}")
        }
        ToolFormat::Hermes => {
            let head = quoted(&format!("{{\"name\": {}, \"arguments\": ", Value::from(name)));
            let arguments = lark.rule(&arguments(schema, exact));
            format!("{head} {arguments} \"}}\"")
        }
        ToolFormat::Harmony => {
            let head = lark.text(&format!("{name} <|constrain|>json<|message|>"));
            let arguments = lark.rule(&arguments(schema, exact));
            format!("{head} {arguments}")
        }
        ToolFormat::Gemma4 => {
            let head = lark.text(&format!("call:{name}"));
            let arguments = gemma4::arguments(schema, exact, lark)?;
            format!("{head} {arguments}")
        }
    };
    Ok(lark.rule(&body))
}

/// All arguments as one JSON object, written as templates write it.
fn arguments(schema: &Value, exact: Exact) -> String {
    match exact {
        Exact::Loose => value(&json!({"type": "object"}), schema, exact),
        _ => value(schema, schema, exact),
    }
}

/// A value as JSON. `root` holds the definitions that it may refer to.
pub(super) fn value(schema: &Value, root: &Value, exact: Exact) -> String {
    let settings = json!({
        "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "lenient": exact != Exact::Strict,
    });
    let mut schema = schema.clone();
    if let (Value::Object(schema), Value::Object(root)) = (&mut schema, root) {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(key) {
                schema.entry(key).or_insert_with(|| definitions.clone());
            }
        }
    }
    format!("%json {}", guided(&schema, &settings))
}

/// How a format writes parameters as tags.
struct Tagged {
    /// Around the name of a parameter: for text, for JSON.
    open: [(&'static str, &'static str); 2],
    close: &'static str,
    /// What ends a call.
    call_close: &'static str,
}

impl Tagged {
    const QWEN: Self = Self {
        open: [("<parameter=", ">\n"), ("<parameter=", ">\n")],
        close: "\n</parameter>\n",
        call_close: "</function>",
    };
    const DSML: Self = Self {
        open: [
            ("<｜DSML｜parameter name=\"", "\" string=\"true\">"),
            ("<｜DSML｜parameter name=\"", "\" string=\"false\">"),
        ],
        close: "</｜DSML｜parameter>\n",
        call_close: "</｜DSML｜invoke>",
    };
}

/// Parameters in the schema's order, those that are not required may be left out; and the call's end.
fn tagged(schema: &Value, exact: Exact, lark: &mut Lark<'_>, tags: &Tagged) -> Result<String, Unsupported> {
    if exact == Exact::Loose {
        return Ok(lark.until(tags.call_close));
    }
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let mut out = Vec::new();
    for (name, property) in properties {
        if name.contains(['>', '<', '\n', '"']) {
            let reason = "this name cannot be written in the model's format".to_owned();
            return Err((format!(".properties.{name}"), reason));
        }
        let parameter = parameter(name, property, schema, exact, lark, tags)?;
        out.push(if required(schema, name) { parameter } else { format!("{parameter}?") });
    }
    out.push(lark.text(tags.call_close));
    Ok(out.join(" "))
}

pub(super) fn required(schema: &Value, name: &str) -> bool {
    let list = schema.get("required").and_then(Value::as_array);
    list.is_some_and(|list| list.iter().any(|item| item == name))
}

fn parameter(
    name: &str,
    property: &Value,
    root: &Value,
    exact: Exact,
    lark: &mut Lark<'_>,
    tags: &Tagged,
) -> Result<String, Unsupported> {
    let types = Types::of_schema(property, root);
    let text = types.includes(Types::STRING);
    let (before, after) = if text { tags.open[0] } else { tags.open[1] };
    let head = lark.text(&format!("{before}{name}{after}"));
    let body = if let Some(choices) = strings(property) {
        let choices: Vec<String> = choices.iter().map(|choice| lark.text(choice)).collect();
        format!("({}) {}", choices.join(" | "), lark.text(tags.close))
    } else if text {
        unconstrained(name, property, exact)?;
        lark.until(tags.close)
    } else {
        let value = lark.rule(&value(property, root, exact));
        format!("{value} {}", lark.text(tags.close))
    };
    Ok(lark.rule(&format!("{head} {body}")))
}

/// The strings that a schema lists, if it lists nothing else.
pub(super) fn strings(schema: &Value) -> Option<Vec<&str>> {
    let list = match schema.get("enum") {
        Some(list) => list.as_array()?.iter().collect(),
        None => vec![schema.get("const")?],
    };
    let strings: Option<Vec<&str>> = list.into_iter().map(Value::as_str).collect();
    strings.filter(|list| !list.is_empty() && list.iter().all(|text| !text.is_empty()))
}

/// Text stands in these formats as it is, so its letters cannot be held to a schema.
pub(super) fn unconstrained(name: &str, property: &Value, exact: Exact) -> Result<(), Unsupported> {
    let key =
        ["pattern", "format", "minLength", "maxLength"].into_iter().find(|key| property.get(key).is_some());
    match key.filter(|_| exact == Exact::Strict) {
        None => Ok(()),
        Some(key) => {
            let reason =
                "cannot be enforced for strings in this model's tool calls; leave it out or `strict` off";
            Err((format!(".properties.{name}.{key}"), reason.to_owned()))
        }
    }
}
