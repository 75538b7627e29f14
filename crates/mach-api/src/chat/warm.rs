//! The body of `POST /v1/cache/warm_prefix`.

use serde_json::{Map, Value};

use super::request::{parse_cache_salt, parse_messages, parse_tools, refuse_rest};
use super::{Limits, Message};
use crate::ApiError;
use crate::fields::{Fields, json};

/// What is to be kept warm.
#[derive(Debug, Clone, PartialEq)]
pub enum WarmInput {
    /// The beginning of conversations.
    Chat {
        /// Messages.
        messages: Vec<Message>,
        /// Tools.
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
    /// The prefix.
    pub input: WarmInput,
    /// Only requests with the same salt will find it.
    pub cache_salt: Option<String>,
}

impl WarmRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        Self::from_value(json(body)?, limits)
    }

    /// As [`parse`](Self::parse), from a JSON value.
    pub fn from_value(value: Value, limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::new("", value)?;
        fields.string("model")?;
        let cache_salt = parse_cache_salt(&mut fields)?;
        let input = match fields.string("prompt")? {
            Some(prompt) if prompt.is_empty() => return Err(fields.error("prompt", "must not be empty")),
            Some(prompt) => WarmInput::Prompt(prompt),
            None => WarmInput::Chat {
                messages: parse_messages(&mut fields, limits)?,
                tools: parse_tools(&mut fields, limits)?,
                template_kwargs: fields.object("chat_template_kwargs")?.unwrap_or_default(),
            },
        };
        refuse_rest(fields)?;
        Ok(WarmRequest { input, cache_salt })
    }
}
