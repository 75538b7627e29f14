//! What chats and plain prompts have in common: how much is generated, how, and how it is sent.

use super::sampling::{SamplingFields, parse_stop, parse_token_ids};
use super::{Limits, ResponseFormat, SpeculationPreset};
use serde_json::Value;

use crate::ApiError;
use crate::fields::Fields;

/// Settings of a generation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settings {
    /// Model asked for; the one that is served if none is named.
    pub model: Option<String>,
    /// What the answer must look like.
    pub format: Option<ResponseFormat>,
    /// Most tokens of an answer; as many as the context holds if there is no bound.
    pub max_tokens: Option<u32>,
    /// How tokens are chosen, as far as the request says.
    pub sampling: SamplingFields,
    /// Strings that end the answer.
    pub stop: Vec<String>,
    /// Token ids that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// Do not end at the model's end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Log probabilities wanted; the number of alternatives a token.
    pub logprobs: Option<usize>,
    /// Number of answers.
    pub n: u32,
    /// Answer as server-sent events.
    pub stream: bool,
    /// Close the stream with a usage chunk.
    pub include_usage: bool,
    /// What may be proposed beside the draft's blocks.
    pub speculation: SpeculationPreset,
    /// Only requests with the same salt share cached prefixes.
    pub cache_salt: Option<String>,
    /// What the client calls the conversation. It changes what stays in the prefix cache, never the answer.
    pub session: Option<String>,
}

impl Settings {
    /// Takes the fields that mean the same in both kinds of request; lengths, log probabilities and the number of answers
    /// are left to them.
    pub(crate) fn parse(fields: &mut Fields, limits: &Limits) -> Result<Self, ApiError> {
        let format = ResponseFormat::parse(fields, limits)?;
        let stream = fields.bool("stream")?.unwrap_or(false);
        Ok(Self {
            model: fields.string("model")?.filter(|name| !name.is_empty()),
            max_tokens: None,
            sampling: SamplingFields::parse(fields, limits)?,
            stop: parse_stop(fields, limits)?,
            stop_token_ids: parse_token_ids(fields, "stop_token_ids", limits)?,
            ignore_eos: fields.bool("ignore_eos")?.unwrap_or(false),
            logprobs: None,
            n: 1,
            stream,
            include_usage: parse_stream_options(fields, stream)?,
            speculation: SpeculationPreset::parse(fields, format.as_ref(), limits)?,
            cache_salt: parse_cache_salt(fields)?,
            session: hint(fields.take("prompt_cache_key")),
            format,
        })
    }
}

/// A bound of the answer's tokens, at least `least`; -1 is no bound.
pub(crate) fn parse_max_tokens(
    fields: &mut Fields,
    name: &'static str,
    least: u32,
) -> Result<Option<u32>, ApiError> {
    let Some(tokens) = fields.integer(name, -1..=i64::MAX)? else { return Ok(None) };
    match u32::try_from(tokens) {
        Ok(tokens) if tokens < least => Err(fields.error(name, format!("must be at least {least}, or -1"))),
        Ok(tokens) => Ok(Some(tokens)),
        Err(_) => Ok((tokens > 0).then_some(u32::MAX)),
    }
}

pub(crate) fn parse_cache_salt(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let salt = fields.string("cache_salt")?;
    match &salt {
        Some(salt) if salt.is_empty() => Err(fields.error("cache_salt", "must not be empty")),
        Some(salt) if salt.len() > 1024 => Err(fields.error("cache_salt", "must be at most 1024 bytes long")),
        _ => Ok(salt),
    }
}

/// A hint, if it is a text.
pub(crate) fn hint(value: Option<Value>) -> Option<String> {
    match value {
        Some(Value::String(text)) if !text.is_empty() => Some(text),
        _ => None,
    }
}

fn parse_stream_options(fields: &mut Fields, stream: bool) -> Result<bool, ApiError> {
    let Some(options) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(fields.error("stream_options", "needs `stream: true`"));
    }
    let mut options = fields.nested("stream_options", options)?;
    let include_usage = options.bool("include_usage")?.unwrap_or(false);
    options.bool("include_obfuscation")?;
    options.end(&[])?;
    Ok(include_usage)
}
