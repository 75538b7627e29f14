//! `speculation`: hints that make decoding faster and never change the answer.

use serde_json::Value;

use super::constraint::few_answers;
use super::{Limits, ResponseFormat};
use crate::ApiError;
use crate::fields::{Fields, kind};

/// Proposers that need no draft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SpeculationPreset {
    /// No preset.
    #[default]
    None,
    /// The answer repeats parts of the prompt.
    Summarization,
    /// The answer is one of these texts.
    Classification(Vec<String>),
}

impl SpeculationPreset {
    /// Takes `speculation: {"preset": ..., "choices": [...]}`, or `speculation_preset` at the top.
    /// `classification` takes its answers from the schema of `response_format` if it allows few and there are no `choices`.
    pub(super) fn parse(
        fields: &mut Fields,
        format: Option<&ResponseFormat>,
        limits: &Limits,
    ) -> Result<Self, ApiError> {
        let allowed = |choices: Vec<String>| match format {
            Some(ResponseFormat::Json(schema, ..)) if choices.is_empty() => {
                few_answers(schema, limits.token_ids).unwrap_or_default()
            }
            _ => choices,
        };
        let short = fields.string("speculation_preset")?;
        let Some(object) = fields.take("speculation") else {
            return match short {
                None => Ok(Self::None),
                Some(name) if name == "classification" => {
                    Self::named(&name, allowed(Vec::new()), "speculation_preset", fields)
                }
                Some(name) => Self::named(&name, Vec::new(), "speculation_preset", fields),
            };
        };
        if short.is_some() {
            return Err(fields.error("speculation_preset", "is given by `speculation` already"));
        }
        let mut object = fields.nested("speculation", object)?;
        let name = object.string("preset")?.unwrap_or_else(|| "none".to_owned());
        let mut choices = choices(&mut object, limits)?;
        if name == "classification" {
            choices = allowed(choices);
        }
        let preset = Self::named(&name, choices, "preset", &object)?;
        object.end(&[])?;
        Ok(preset)
    }

    fn named(name: &str, choices: Vec<String>, field: &str, fields: &Fields) -> Result<Self, ApiError> {
        match (name, choices.is_empty()) {
            ("none", true) => Ok(Self::None),
            ("summarization", true) => Ok(Self::Summarization),
            ("classification", false) => Ok(Self::Classification(choices)),
            ("classification", true) => Err(fields.error(
                field,
                "`classification` needs the possible answers: `speculation.choices`, or a `response_format` with an `enum`",
            )),
            ("none" | "summarization", false) => {
                Err(fields.error("choices", "only the preset `classification` takes choices"))
            }
            _ => Err(fields.error(field, "must be `none`, `summarization` or `classification`")),
        }
    }
}

fn choices(object: &mut Fields, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let list = object.array("choices")?.unwrap_or_default();
    if list.len() > limits.token_ids {
        return Err(object.error("choices", format!("must hold at most {} texts", limits.token_ids)));
    }
    let text = |(i, value)| match value {
        Value::String(text) if text.is_empty() => {
            Err(object.error(&format!("choices[{i}]"), "must not be empty"))
        }
        Value::String(text) if text.len() > limits.stop_bytes => {
            let most = limits.stop_bytes;
            Err(object.error(&format!("choices[{i}]"), format!("must be at most {most} bytes long")))
        }
        Value::String(text) => Ok(text),
        other => {
            Err(object.error(&format!("choices[{i}]"), format!("must be a string, not {}", kind(&other))))
        }
    };
    list.into_iter().enumerate().map(text).collect()
}
