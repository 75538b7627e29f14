//! Grammars that hold an answer to what a request asks for: JSON of a schema, a call of a function, a user's own grammar.
//!
//! Written in llguidance's variant of Lark, in the format that the family itself uses, reasoning included: the model says what it
//! would say, and no more than it may.

mod calls;
mod gemma4;
mod lark;

use serde_json::{Value, json};

use super::{OutputFormat, ReasoningFormat, ReasoningStart, ToolFormat};
use crate::ApiError;
use crate::chat::{ResponseFormat, ToolChoice, function_name};
use calls::Exact;
use lark::Lark;

/// White space inside JSON: one space, or a new line and its indentation. More of it says nothing and may not end.
const JSON_SPACE: &str = "\\x20|\\n[\\x20\\t]{0,32}";

/// A grammar that stands for itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum OwnGrammar {
    /// In llguidance's variant of Lark.
    Lark(String),
    /// A regular expression.
    Regex(String),
}

/// A grammar to be compiled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GrammarSource {
    /// Lark; refers to `own` as `@own`. Empty if `own` is all there is.
    pub lark: String,
    /// The request's own grammar.
    pub own: Option<OwnGrammar>,
}

/// What is asked of an answer.
pub struct Wanted<'a> {
    /// How the model writes.
    pub format: OutputFormat,
    /// Where its reasoning begins.
    pub start: ReasoningStart,
    /// The functions.
    pub tools: &'a [Value],
    /// Whether they are called.
    pub choice: &'a ToolChoice,
    /// Whether more than one call is allowed.
    pub parallel: bool,
    /// What the content must look like.
    pub response: Option<&'a ResponseFormat>,
    /// The id of a control token.
    pub control: &'a dyn Fn(&str) -> Option<u32>,
}

/// The grammar for a request, with the field that asks for it; `None` if anything may be said.
pub fn grammar(wanted: &Wanted<'_>) -> Result<Option<(GrammarSource, &'static str)>, ApiError> {
    let strict = |tool: &Value| tool.pointer("/function/strict") == Some(&Value::Bool(true));
    let offered = !wanted.tools.is_empty();
    let forced = offered && wanted.choice.forces();
    let some = matches!(wanted.choice, ToolChoice::Allowed { .. });
    let checked = offered && (wanted.tools.iter().any(strict) || !wanted.parallel || some);
    if !forced && !checked && wanted.response.is_none() {
        return Ok(None);
    }
    let mut lark = Lark::new(wanted.format.markers(), wanted.control);
    let field = match wanted.response {
        _ if forced => "tool_choice",
        Some(ResponseFormat::Json(_, path)) => path,
        Some(_) => "grammar",
        None => "tools",
    };
    let Some(tools) = wanted.format.tools.filter(|_| offered) else {
        if forced {
            return Err(ApiError::field(
                "tool_choice",
                "calls cannot be enforced: this model has no known way to write them",
            ));
        }
        // Without a format there are no calls to be checked.
        let Some(response) = wanted.response else { return Ok(None) };
        let (body, own) = content(&mut lark, response);
        return Ok(Some((prefixed(lark, wanted, &body, own), field)));
    };
    let call = |tool: &Value, exact: Exact, lark: &mut Lark<'_>| calls::call(tools, tool, exact, lark);
    let mut all = Vec::new();
    for (i, tool) in wanted.tools.iter().enumerate() {
        let named = function_name(tool).is_some_and(|name| wanted.choice.admits(name));
        let exact = match (strict(tool), forced || wanted.response.is_some()) {
            (true, _) => Exact::Strict,
            (false, true) => Exact::Lenient,
            (false, false) => Exact::Loose,
        };
        if named {
            all.push(call(tool, exact, &mut lark).map_err(|(path, reason)| {
                ApiError::field(format!("tools[{i}].function.parameters{path}"), reason)
            })?);
        }
    }
    let any = lark.rule(&all.join(" | "));
    let shape = calls::shape(tools);
    let several = wanted.parallel && !matches!(wanted.choice, ToolChoice::Function(_)) && shape.several;
    if forced || wanted.response.is_some() {
        let calls = shape.list(&any, several, &mut lark);
        let (body, own) = match wanted.response {
            Some(response) if !forced => {
                let (content, own) = content(&mut lark, response);
                let content =
                    if tools == ToolFormat::Harmony { final_channel(&lark, &content) } else { content };
                (format!("{content} | {calls}"), own)
            }
            _ => (calls, None),
        };
        let body = lark.rule(&body);
        return Ok(Some((prefixed_calls(lark, wanted, &body, own), field)));
    }
    let body = if tools == ToolFormat::Harmony {
        let calls = shape.list(&any, several, &mut lark);
        let open = lark.text("<|channel|>commentary<|message|>");
        let close = lark.until("<|end|><|start|>assistant");
        let preamble = lark.rule(&format!("{open} {close}"));
        format!("{} | {preamble}? {calls}", final_channel(&lark, "ANY"))
    } else {
        shape.among_text(&any, several, &mut lark)
    };
    let body = lark.rule(&body);
    Ok(Some((prefixed_calls(lark, wanted, &body, None), field)))
}

/// The rule for content, and the grammar that it refers to.
fn content(lark: &mut Lark<'_>, response: &ResponseFormat) -> (String, Option<OwnGrammar>) {
    match response {
        ResponseFormat::Json(schema, _) => {
            let rule = format!("%json {}", guided(schema, &json!({"whitespace_pattern": JSON_SPACE})));
            (lark.rule(&rule), None)
        }
        ResponseFormat::Lark(text) => ("@own".to_owned(), Some(OwnGrammar::Lark(text.clone()))),
        ResponseFormat::Regex(text) => ("@own".to_owned(), Some(OwnGrammar::Regex(text.clone()))),
    }
}

/// A schema with settings of how its JSON is written; a request's own are replaced.
fn guided(schema: &Value, settings: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(map) => map.clone(),
        Value::Bool(false) => serde_json::Map::from_iter([("not".to_owned(), json!({}))]),
        _ => serde_json::Map::new(),
    };
    schema.insert("x-guidance".to_owned(), settings.clone());
    schema.into()
}

fn final_channel(lark: &Lark<'_>, body: &str) -> String {
    format!("{} {body}", lark.text("<|channel|>final<|message|>"))
}

/// Puts the model's reasoning before its content.
fn prefixed(mut lark: Lark<'_>, wanted: &Wanted<'_>, body: &str, own: Option<OwnGrammar>) -> GrammarSource {
    if wanted.format.reasoning == Some(ReasoningFormat::Harmony)
        || wanted.format.tools == Some(ToolFormat::Harmony)
    {
        let body = final_channel(&lark, body);
        return prefixed_calls(lark, wanted, &body, own);
    }
    let tags = wanted.format.reasoning.and_then(ReasoningFormat::tags);
    if tags.is_none_or(|_| wanted.start == ReasoningStart::Closed) && own.is_some() {
        return GrammarSource { lark: String::new(), own };
    }
    let body = lark.rule(body);
    prefixed_calls(lark, wanted, &body, own)
}

/// The same where the body says by itself which channel it is on.
fn prefixed_calls(
    mut lark: Lark<'_>,
    wanted: &Wanted<'_>,
    body: &str,
    own: Option<OwnGrammar>,
) -> GrammarSource {
    let channels = wanted.format.tools == Some(ToolFormat::Harmony)
        || wanted.format.reasoning == Some(ReasoningFormat::Harmony);
    let start = if channels {
        let open = lark.text("<|channel|>analysis<|message|>");
        let close = lark.until("<|end|><|start|>assistant");
        let analysis = lark.rule(&format!("{open} {close}"));
        format!("{analysis}? {body}")
    } else {
        match wanted.format.reasoning.and_then(ReasoningFormat::tags) {
            None => body.to_owned(),
            Some(_) if wanted.start == ReasoningStart::Closed => body.to_owned(),
            Some((open, close)) => {
                let gap = lark.rule("\"\\n\" | \"\\n\\n\"");
                let rest = lark.until(close);
                match wanted.start {
                    ReasoningStart::Open => format!("{rest} {gap}? {body}"),
                    _ => {
                        let think = lark.rule(&format!("{} {rest} {gap}?", lark.text(open)));
                        format!("{think}? {body}")
                    }
                }
            }
        }
    };
    GrammarSource { lark: lark.finish(&start), own }
}
