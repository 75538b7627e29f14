//! `POST /tokenize` and `POST /detokenize`, in vLLM's shapes.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::chat::known::end_body;
use crate::chat::request::{parse_messages, parse_template_kwargs};
use crate::chat::tools::parse_tools;
use crate::chat::{Limits, Message};
use crate::fields::{Fields, integer};
use crate::json::json;
use crate::{ApiError, Notes};

/// What is to become tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizeInput {
    /// A plain text.
    Prompt(String),
    /// A conversation, through the template.
    Chat {
        /// The conversation to be rendered.
        messages: Vec<Message>,
        /// Tools that the template shows.
        tools: Vec<Value>,
        /// Variables for the template.
        template_kwargs: Map<String, Value>,
        /// Whether the prompt ends where the assistant is to speak.
        add_generation_prompt: bool,
    },
}

/// A valid body of `POST /tokenize`.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizeRequest {
    /// Model, if given.
    pub model: Option<String>,
    /// What is to become tokens.
    pub input: TokenizeInput,
    /// Add what the tokenizer puts around plain texts.
    pub add_special_tokens: bool,
    /// Tell each token's text.
    pub return_token_strs: bool,
    /// What was let pass.
    pub notes: Notes,
}

impl TokenizeRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::body(json(body)?, limits.unknown_fields)?;
        let model = fields.string("model")?;
        // `add_special` is llama.cpp's name.
        let add_special_tokens = match fields.bool("add_special_tokens")? {
            None => fields.bool("add_special")?,
            given => given,
        };
        let return_token_strs = fields.bool("return_token_strs")?.unwrap_or(false);
        // `content` is llama.cpp's name.
        let text = match fields.string("prompt")? {
            Some(prompt) => Some(prompt),
            None => fields.string("content")?,
        };
        let input = match text {
            Some(text) => TokenizeInput::Prompt(text),
            None => TokenizeInput::Chat {
                messages: parse_messages(&mut fields, limits)?,
                tools: parse_tools(&mut fields, limits)?,
                template_kwargs: parse_template_kwargs(&mut fields)?,
                add_generation_prompt: fields.bool("add_generation_prompt")?.unwrap_or(true),
            },
        };
        let notes = fields.shared_notes();
        end_body(fields)?;
        let notes = notes.take();
        // A template brings its own special tokens.
        let plain = matches!(input, TokenizeInput::Prompt(_));
        let add_special_tokens = add_special_tokens.unwrap_or(plain);
        Ok(Self { model, input, add_special_tokens, return_token_strs, notes })
    }
}

/// The answer of `POST /tokenize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tokenized {
    /// Number of tokens.
    pub count: usize,
    /// Longest context in tokens.
    pub max_model_len: usize,
    /// Token ids, in order.
    pub tokens: Vec<u32>,
    /// Their texts, if asked for; bytes that are not UTF-8 are replaced.
    pub token_strs: Option<Vec<String>>,
}

/// A valid body of `POST /detokenize`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetokenizeRequest {
    /// Model, if given.
    pub model: Option<String>,
    /// Token ids, in order.
    pub tokens: Vec<u32>,
    /// What was let pass.
    pub notes: Notes,
}

impl DetokenizeRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::body(json(body)?, limits.unknown_fields)?;
        let model = fields.string("model")?;
        let list = fields.array("tokens")?.ok_or_else(|| fields.error("tokens", "is required"))?;
        let id = |(i, v)| integer(&format!("tokens[{i}]"), v, 0..=i64::from(u32::MAX)).map(|id| id as u32);
        let tokens = list.iter().enumerate().map(id).collect::<Result<_, _>>()?;
        let notes = fields.shared_notes();
        end_body(fields)?;
        let notes = notes.take();
        Ok(Self { model, tokens, notes })
    }
}

/// The answer of `POST /detokenize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Detokenized {
    /// The text, special tokens included.
    pub prompt: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_chats_and_what_is_neither() {
        let parse = |body: &str| TokenizeRequest::parse(body.as_bytes(), &Limits::default());
        let text = parse(r#"{"prompt": "a"}"#).unwrap();
        assert_eq!((text.add_special_tokens, text.input), (true, TokenizeInput::Prompt("a".into())));
        assert_eq!(parse(r#"{"content": "a"}"#).unwrap().input, TokenizeInput::Prompt("a".into()));
        let chat =
            parse(r#"{"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": false}"#);
        let chat = chat.unwrap();
        assert!(!chat.add_special_tokens);
        assert!(matches!(chat.input, TokenizeInput::Chat { add_generation_prompt: false, .. }));
        for (body, param) in
            [(r"{}", "messages"), (r#"{"prompt": 1}"#, "prompt"), (r#"{"content": ["a"]}"#, "content")]
        {
            assert_eq!(parse(body).unwrap_err().param.as_deref(), Some(param), "{body}");
        }
        for (body, param) in [(r"{}", "tokens"), (r#"{"tokens": [1, "a"]}"#, "tokens[1]")] {
            let error = DetokenizeRequest::parse(body.as_bytes(), &Limits::default()).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param), "{body}");
        }
    }
}
