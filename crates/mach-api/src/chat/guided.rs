//! What vLLM calls guided decoding: `guided_json`, `guided_regex`, `guided_choice`, `guided_grammar`, and the same as members
//! of `structured_outputs`.

use serde_json::{Value, json};

use super::constraint::{check_grammar, check_schema};
use super::{Limits, ResponseFormat};
use crate::fields::{Fields, kind};
use crate::{ApiError, memory};

/// Field at the top, its name within `structured_outputs`, and the path that complaints name.
const KINDS: [(&str, &str, Guide); 4] = [
    ("guided_json", "json", Guide::Json),
    ("guided_regex", "regex", Guide::Regex),
    ("guided_choice", "choice", Guide::Choice),
    ("guided_grammar", "grammar", Guide::Grammar),
];

#[derive(Debug, Clone, Copy)]
enum Guide {
    Json,
    Regex,
    Choice,
    Grammar,
}

/// Takes the fields; at most one of them may be given.
pub(super) fn parse(fields: &mut Fields, limits: &Limits) -> Result<Option<ResponseFormat>, ApiError> {
    let mut found = None;
    for (name, _, guide) in KINDS {
        if let Some(value) = fields.take(name) {
            if found.is_some() {
                return Err(fields.error(name, "only one way to guide the answer can be given"));
            }
            found = Some(guide.format(&fields.path(name), value, limits)?);
        }
    }
    let Some(object) = fields.take("structured_outputs") else { return Ok(found) };
    let mut object = fields.nested("structured_outputs", object)?;
    let only_one = |object: &Fields, name: &str| {
        Err(object.error(name, "only one way to guide the answer can be given"))
    };
    for (_, name, guide) in KINDS {
        if let Some(value) = object.take(name) {
            if found.is_some() {
                return only_one(&object, name);
            }
            found = Some(guide.format(&object.path(name), value, limits)?);
        }
    }
    if object.bool("json_object")? == Some(true) {
        if found.is_some() {
            return only_one(&object, "json_object");
        }
        found = Some(ResponseFormat::Json(json!({"type": "object"}), "structured_outputs", false));
    }
    if object.take("structural_tag").is_some() {
        return Err(object.error("structural_tag", "is not supported"));
    }
    // How white space is written is the grammar's own affair; nothing here changes what the answer says.
    object.end(&[
        "disable_any_whitespace",
        "disable_additional_properties",
        "whitespace_pattern",
        "backend",
    ])?;
    Ok(found)
}

impl Guide {
    fn format(self, path: &str, value: Value, limits: &Limits) -> Result<ResponseFormat, ApiError> {
        let text = |value: Value| match value {
            Value::String(text) => Ok(text),
            other => Err(ApiError::field(path, format!("must be a string, not {}", kind(&other)))),
        };
        match self {
            Self::Json => {
                // Clients send the schema as an object or as its text.
                let schema = match value {
                    Value::String(text) if memory::values(text.as_bytes()) > limits.schema_values => {
                        let most = limits.schema_values;
                        return Err(ApiError::field(path, format!("at most {most} values are supported")));
                    }
                    Value::String(text) => serde_json::from_str(&text)
                        .map_err(|e| ApiError::field(path, format!("not valid JSON: {e}")))?,
                    schema => schema,
                };
                check_schema(path, &schema, limits)?;
                Ok(ResponseFormat::Json(schema, "guided_json", false))
            }
            Self::Regex => {
                let regex = text(value)?;
                check_grammar(path, &regex, limits)?;
                Ok(ResponseFormat::Regex(regex))
            }
            Self::Grammar => {
                let grammar = text(value)?;
                check_grammar(path, &grammar, limits)?;
                Ok(ResponseFormat::Lark(grammar))
            }
            Self::Choice => choice(path, value, limits).map(ResponseFormat::Lark),
        }
    }
}

/// A grammar of the texts of a list.
fn choice(path: &str, value: Value, limits: &Limits) -> Result<String, ApiError> {
    let Value::Array(list) = value else {
        return Err(ApiError::field(path, format!("must be an array, not {}", kind(&value))));
    };
    if list.is_empty() || list.len() > limits.token_ids {
        return Err(ApiError::field(path, format!("must hold between 1 and {} texts", limits.token_ids)));
    }
    let text = |(i, value): (usize, &Value)| match value {
        Value::String(text) if !text.is_empty() => Ok(Value::from(text.as_str()).to_string()),
        _ => Err(ApiError::field(format!("{path}[{i}]"), "must be a string that is not empty")),
    };
    let texts = list.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?;
    let grammar = format!("start: {}", texts.join(" | "));
    check_grammar(path, &grammar, limits)?;
    Ok(grammar)
}
