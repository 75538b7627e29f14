//! `text`: what the answer must look like.

use serde_json::{Map, Value, json};

use crate::ApiError;
use crate::chat::{Limits, ResponseFormat, check_schema};
use crate::fields::Fields;

/// Takes `text`: the format goes to the grammar, the verbosity to the template.
pub(super) fn parse(
    fields: &mut Fields,
    limits: &Limits,
    kwargs: &mut Map<String, Value>,
) -> Result<Option<ResponseFormat>, ApiError> {
    let Some(text) = fields.take("text") else { return Ok(None) };
    let mut text = fields.nested("text", text)?;
    if let Some(verbosity) = text.string("verbosity")? {
        kwargs.entry("verbosity").or_insert(verbosity.into());
    }
    let format = text.take("format");
    text.end(&[])?;
    let Some(format) = format else { return Ok(None) };
    let mut format = fields.nested("text.format", format)?;
    match format.required_string("type")?.as_str() {
        "text" => format.end(&[]).map(|()| None),
        "json_object" => {
            format.end(&[])?;
            Ok(Some(ResponseFormat::Json(json!({"type": "object"}), "text.format", false)))
        }
        "json_schema" => {
            let strict = format.bool("strict")?.unwrap_or(false);
            let schema = format.take("schema").ok_or_else(|| format.error("schema", "is required"))?;
            format.end(&["name", "description"])?;
            check_schema("text.format.schema", &schema, limits)?;
            Ok(Some(ResponseFormat::Json(schema, "text.format.schema", strict)))
        }
        _ => Err(format.error("type", "must be `text`, `json_object` or `json_schema`")),
    }
}
