//! Grammars that hold an answer to what a request asks for: JSON of a schema, a call of a function, a user's own grammar.
//!
//! Written in llguidance's variant of Lark, in the format that the family itself uses, reasoning included: the model says what it
//! would say, and no more than it may.

mod calls;
mod lark;
pub(super) mod schema;

use serde_json::Value;

use super::{OutputFormat, ReasoningFormat, ReasoningStart, ToolFormat};
use crate::ApiError;
use crate::chat::{ResponseFormat, ToolChoice, function_name};
use calls::Exact;
use lark::Lark;
pub use schema::LONGEST as LONGEST_GRAMMAR;
use schema::{GrammarWriter, Notation, Schemas, Unsupported, document};

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
    /// What was let go of the schemas, for it cannot be enforced: fields and reasons.
    pub warnings: Vec<String>,
}

/// What is asked of an answer.
pub struct Wanted<'a> {
    /// How the model writes.
    pub format: OutputFormat,
    /// Where its reasoning begins.
    pub start: ReasoningStart,
    /// Functions of the request, as it wrote them.
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
        Some(ResponseFormat::Json(_, path, _)) => path,
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
        let (body, own, warnings) = content(&mut lark, response)?;
        return Ok(Some((GrammarSource { warnings, ..prefixed(lark, wanted, &body, own) }, field)));
    };
    let (mut all, mut warnings) = (Vec::new(), Vec::new());
    for (i, tool) in wanted.tools.iter().enumerate() {
        let named = function_name(tool).is_some_and(|name| wanted.choice.admits(name));
        let exact = match (strict(tool), forced || wanted.response.is_some()) {
            (true, _) => Exact::Strict,
            (false, true) => Exact::Lenient,
            (false, false) => Exact::Loose,
        };
        if named {
            let parameters = format!("tools[{i}].function.parameters");
            let call = calls::call(tools, tool, exact, &mut lark)
                .map_err(|(path, reason)| ApiError::field(format!("{parameters}{path}"), reason))?;
            warnings.extend(call.warnings.iter().map(|warning| format!("{parameters}{warning}")));
            all.push(call.rule);
        }
    }
    let any = lark.rule(&all.join(" | "));
    let shape = calls::shape(tools);
    let several = wanted.parallel && !matches!(wanted.choice, ToolChoice::Function(_)) && shape.several;
    if forced || wanted.response.is_some() {
        let calls = shape.list(&any, several, &mut lark);
        let (body, own) = match wanted.response {
            Some(response) if !forced => {
                let (content, own, more) = content(&mut lark, response)?;
                warnings.extend(more);
                let content =
                    if tools == ToolFormat::Harmony { final_channel(&lark, &content) } else { content };
                (format!("{content} | {calls}"), own)
            }
            _ => (calls, None),
        };
        let body = lark.rule(&body);
        return Ok(Some((GrammarSource { warnings, ..prefixed_calls(lark, wanted, &body, own) }, field)));
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
    Ok(Some((GrammarSource { warnings, ..prefixed_calls(lark, wanted, &body, None) }, field)))
}

/// A rule, the grammar that it refers to, and what was let go.
type Body = (String, Option<OwnGrammar>, Vec<String>);

/// The rule for content.
fn content(lark: &mut Lark<'_>, response: &ResponseFormat) -> Result<Body, ApiError> {
    match response {
        ResponseFormat::Json(schema, field, strict) => {
            let failed = |(path, reason): Unsupported| ApiError::field(format!("{field}{path}"), reason);
            let document = document(schema);
            let mut schemas = Schemas::new(&document, *strict);
            let mut inner = Lark::new(Vec::new(), &|_| None);
            let rule = GrammarWriter::new(&mut inner, &mut schemas, Notation::Loose)
                .rule(&[&document])
                .map_err(failed)?;
            let rule = rule.ok_or_else(|| failed((String::new(), "nothing can meet it".to_owned())))?;
            let warnings = schemas.warnings.iter().map(|warning| format!("{field}{warning}")).collect();
            Ok((lark.rule(&inner.nested(&rule, JSON_SPACE)), None, warnings))
        }
        ResponseFormat::Lark(text) => {
            Ok(("@own".to_owned(), Some(OwnGrammar::Lark(text.clone())), Vec::new()))
        }
        ResponseFormat::Regex(text) => {
            Ok(("@own".to_owned(), Some(OwnGrammar::Regex(text.clone())), Vec::new()))
        }
    }
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
        return GrammarSource { lark: String::new(), own, warnings: Vec::new() };
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
    GrammarSource { lark: lark.finish(&start), own, warnings: Vec::new() }
}
