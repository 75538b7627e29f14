//! The content of a message: a string, parts, or what clients write in their place.

use serde_json::Value;

use super::message::HARMLESS;
use super::{Content, Role};
use crate::ApiError;
use crate::fields::{Fields, kind};

/// Reads the content of a message, and the reasoning that was among its parts.
pub(super) fn parse(
    message: &Fields,
    role: Role,
    value: Value,
) -> Result<(Content, Option<String>), ApiError> {
    match value {
        Value::String(text) => Ok((Content::Text(text), None)),
        Value::Array(list) if role == Role::Tool && is_data(&list) => {
            Ok((Content::Text(Value::from(list).to_string()), None))
        }
        Value::Array(list) => parts(message, role, list),
        // Results of tools, given as they are.
        Value::Object(_) | Value::Bool(_) | Value::Number(_) if role == Role::Tool => {
            Ok((Content::Text(value.to_string()), None))
        }
        other => {
            let reason = format!("must be a string or an array, not {}", kind(&other));
            Err(ApiError::field(message.path("content"), reason))
        }
    }
}

/// The parts that a message may have.
fn supported(role: Role) -> &'static str {
    match role {
        Role::Assistant => "text, refusal and thinking",
        _ => "text, input_text and output_text",
    }
}

/// Whether a list holds no parts but a tool's result.
fn is_data(list: &[Value]) -> bool {
    !list.is_empty() && list.iter().all(|item| !item.is_string() && item.get("type").is_none())
}

fn parts(message: &Fields, role: Role, list: Vec<Value>) -> Result<(Content, Option<String>), ApiError> {
    let path = message.path("content");
    let (mut texts, mut thoughts) = (Vec::new(), Vec::new());
    for (i, part) in list.into_iter().enumerate() {
        if let Value::String(text) = part {
            texts.push(text);
            continue;
        }
        let mut fields = message.nested(format!("{path}[{i}]"), part)?;
        let kind = fields.required_string("type")?;
        match (kind.as_str(), role) {
            ("text" | "input_text" | "output_text", _) => {
                texts.push(fields.required_string("text")?);
                fields.end(HARMLESS)?;
            }
            ("refusal", Role::Assistant) => {
                texts.push(fields.required_string("refusal")?);
                fields.end(HARMLESS)?;
            }
            // As other servers give an answer's reasoning back; what else is in it is theirs.
            ("thinking" | "reasoning", Role::Assistant) => {
                let said =
                    ["thinking", "reasoning", "text"].iter().find_map(|name| match fields.take(name) {
                        Some(Value::String(text)) => Some(text),
                        _ => None,
                    });
                thoughts.extend(said);
            }
            ("redacted_thinking", Role::Assistant) => {}
            _ => return Err(fields.unread(&kind, supported(role))),
        }
    }
    let thoughts = thoughts.join("\n");
    Ok((Content::Parts(texts), Some(thoughts).filter(|text| !text.is_empty())))
}
