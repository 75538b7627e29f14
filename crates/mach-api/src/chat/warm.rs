//! The body of `POST /v1/cache/warm_prefix`.

use serde_json::{Map, Value};

use super::known::end_body;
use super::request::{parse_messages, parse_template_kwargs};
use super::settings::parse_cache_salt;
use super::tools::parse_tools;
use super::{Limits, Message};
use crate::fields::Fields;
use crate::json::json;
use crate::{ApiError, Notes};

/// What is to be kept warm.
#[derive(Debug, Clone, PartialEq)]
pub enum WarmInput {
    /// The beginning of conversations.
    Chat {
        /// The conversation up to where the prefix ends.
        messages: Vec<Message>,
        /// Tools that the template shows.
        tools: Vec<Value>,
        /// Variables for the template.
        template_kwargs: Map<String, Value>,
    },
    /// The beginning of plain prompts.
    Prompt(String),
}

/// A valid request to warm a prefix.
#[derive(Debug, Clone, PartialEq)]
pub struct WarmRequest {
    /// What the prefix is made of.
    pub input: WarmInput,
    /// Only requests with the same salt will find it.
    pub cache_salt: Option<String>,
    /// What was let pass.
    pub notes: Notes,
}

impl WarmRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        Self::from_value(json(body)?, limits)
    }

    /// As [`parse`](Self::parse), from a JSON value.
    pub fn from_value(value: Value, limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::body(value, limits.unknown_fields)?;
        fields.string("model")?;
        let cache_salt = parse_cache_salt(&mut fields)?;
        let input = match fields.string("prompt")? {
            Some(prompt) if prompt.is_empty() => return Err(fields.error("prompt", "must not be empty")),
            Some(prompt) => WarmInput::Prompt(prompt),
            None => WarmInput::Chat {
                messages: parse_messages(&mut fields, limits)?,
                tools: parse_tools(&mut fields, limits)?,
                template_kwargs: parse_template_kwargs(&mut fields)?,
            },
        };
        let notes = fields.shared_notes();
        end_body(fields)?;
        let notes = notes.take();
        Ok(WarmRequest { input, cache_salt, notes })
    }
}
