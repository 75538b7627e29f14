//! How tokens are chosen, and where an answer ends.

use serde_json::Value;

use super::Limits;
use crate::ApiError;
use crate::fields::{Fields, integer, kind, number};

/// Sampling fields as given; what is absent takes the checkpoint's default.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingFields {
    /// 0 to 2; 0 is greedy.
    pub temperature: Option<f32>,
    /// 0 to 1.
    pub top_p: Option<f32>,
    /// Candidates kept; 0 keeps all (also written -1).
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Above 0, at most 2.
    pub repetition_penalty: Option<f32>,
    /// Seed of the noise.
    pub seed: Option<u64>,
    /// Added to the logits of these tokens, -100 to 100.
    pub logit_bias: Vec<(u32, f32)>,
}

impl SamplingFields {
    pub(crate) fn parse(fields: &mut Fields, limits: &Limits) -> Result<Self, ApiError> {
        let repetition_penalty = fields.number("repetition_penalty", 0.0..=2.0)?;
        if repetition_penalty == Some(0.0) {
            return Err(fields.error("repetition_penalty", "must be above 0"));
        }
        Ok(Self {
            temperature: fields.number("temperature", 0.0..=2.0)?,
            top_p: fields.number("top_p", 0.0..=1.0)?,
            top_k: fields.integer("top_k", -1..=i64::from(u32::MAX))?.map(|k| k.max(0) as u32),
            min_p: fields.number("min_p", 0.0..=1.0)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?,
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?,
            repetition_penalty,
            seed: parse_seed(fields)?,
            logit_bias: parse_logit_bias(fields, limits)?,
        })
    }
}

fn parse_seed(fields: &mut Fields) -> Result<Option<u64>, ApiError> {
    match fields.take("seed") {
        Some(Value::Number(n)) if n.is_u64() => Ok(n.as_u64()),
        Some(value) => {
            let seed = integer(&fields.path("seed"), &value, i64::MIN..=i64::MAX)?;
            Ok(Some(seed.cast_unsigned()))
        }
        None => Ok(None),
    }
}

fn parse_logit_bias(fields: &mut Fields, limits: &Limits) -> Result<Vec<(u32, f32)>, ApiError> {
    let map = fields.object("logit_bias")?.unwrap_or_default();
    if map.len() > limits.token_ids {
        return Err(fields.error("logit_bias", format!("must hold at most {} tokens", limits.token_ids)));
    }
    map.into_iter()
        .map(|(key, value)| {
            let id = key.parse::<u32>().map_err(|_| {
                let key: String = key.chars().take(40).collect();
                fields.error("logit_bias", format!("`{key}` is not a token id"))
            })?;
            let bias = number(&fields.path(&format!("logit_bias.{id}")), &value, -100.0..=100.0)?;
            Ok((id, bias))
        })
        .collect()
}

pub(crate) fn parse_stop(fields: &mut Fields, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(s)) => vec![Value::String(s)],
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(fields.error("stop", format!("must be a string or an array, not {}", kind(&other))));
        }
    };
    if list.len() > limits.stops {
        return Err(fields.error("stop", format!("must hold at most {} strings", limits.stops)));
    }
    list.into_iter()
        .enumerate()
        .map(|(i, value)| match value {
            Value::String(s) if s.is_empty() => Err(fields.error(&format!("stop[{i}]"), "must not be empty")),
            Value::String(s) if s.len() > limits.stop_bytes => Err(fields
                .error(&format!("stop[{i}]"), format!("must be at most {} bytes long", limits.stop_bytes))),
            Value::String(s) => Ok(s),
            other => {
                Err(fields.error(&format!("stop[{i}]"), format!("must be a string, not {}", kind(&other))))
            }
        })
        .collect()
}

pub(super) fn parse_token_ids(
    fields: &mut Fields,
    name: &str,
    limits: &Limits,
) -> Result<Vec<u32>, ApiError> {
    let list = fields.array(name)?.unwrap_or_default();
    if list.len() > limits.token_ids {
        return Err(fields.error(name, format!("must hold at most {} ids", limits.token_ids)));
    }
    list.iter()
        .enumerate()
        .map(|(i, v)| {
            integer(&fields.path(&format!("{name}[{i}]")), v, 0..=i64::from(u32::MAX)).map(|v| v as u32)
        })
        .collect()
}

pub(super) fn parse_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let wanted = fields.bool("logprobs")?.unwrap_or(false);
    let top = fields.integer("top_logprobs", 0..=20)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0) as usize)),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(fields.error("top_logprobs", "needs `logprobs: true`")),
    }
}
