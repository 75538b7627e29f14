//! The body of `POST /v1/completions`, parsed into a value that is valid by construction.

use serde_json::Value;

use crate::ApiError;
use crate::chat::known::end_body;
use crate::chat::settings::parse_max_tokens;
use crate::chat::{Limits, Settings};
use crate::fields::{Fields, integer, kind};
use crate::json::json;
use crate::notes::Notes;

/// Tokens of an answer unless told otherwise, as OpenAI has it.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Fields of chats that mean nothing to a plain prompt.
const CHAT_ONLY: &[&str] = &[
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "chat_template_kwargs",
    "functions",
    "function_call",
    "continue_final_message",
    "reasoning_effort",
    "max_completion_tokens",
    "top_logprobs",
];

/// One prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A prompt as text, to be tokenized.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// A valid completion request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// The prompts; at least one, none empty.
    pub prompts: Vec<Prompt>,
    /// Answers begin with the prompt.
    pub echo: bool,
    /// How the answers are generated. `max_tokens` may be 0: then nothing is.
    pub settings: Settings,
    /// What was let pass.
    pub notes: Notes,
}

impl CompletionRequest {
    /// Parses a request body.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let mut fields = Fields::body(json(body)?, limits.unknown_fields)?;
        let prompts = parse_prompts(&mut fields, limits)?;
        if fields.take("suffix").is_some_and(|suffix| suffix != "") {
            return Err(fields.error("suffix", "text after the answer is not supported"));
        }
        for name in CHAT_ONLY {
            if fields.take(name).is_some() {
                return Err(fields.error(name, "belongs to chats; plain prompts do not take it"));
            }
        }
        let echo = fields.bool("echo")?.unwrap_or(false);
        let logprobs = fields.integer("logprobs", 0..=20)?;
        if echo && logprobs.is_some() {
            let reason = "with `logprobs` is not supported: log probabilities of the prompt are not computed";
            return Err(fields.error("echo", reason));
        }
        let most = i64::from(limits.choices) / prompts.len().max(1) as i64;
        let n = fields.integer("n", 1..=most.max(1))?.unwrap_or(1);
        // As with vLLM, `null` is no bound here, and no field OpenAI's default.
        let max_tokens = match fields.has("max_tokens") {
            true => parse_max_tokens(&mut fields, "max_tokens", 0)?,
            false => Some(DEFAULT_MAX_TOKENS),
        };
        let settings = Settings {
            n: n as u32,
            max_tokens,
            logprobs: logprobs.map(|alternatives| alternatives as usize),
            ..Settings::parse(&mut fields, limits)?
        };
        let notes = fields.shared_notes();
        end_body(fields)?;
        Ok(Self { prompts, echo, settings, notes: notes.take() })
    }
}

/// A text, a list of token ids, or a list of either.
fn parse_prompts(fields: &mut Fields, limits: &Limits) -> Result<Vec<Prompt>, ApiError> {
    let value = fields.take("prompt").ok_or_else(|| fields.error("prompt", "is required"))?;
    let many = match value {
        Value::Array(list) if list.first().is_some_and(|v| !v.is_number()) => list,
        one => return Ok(vec![parse_prompt(&fields.path("prompt"), one)?]),
    };
    if many.len() > limits.choices as usize {
        return Err(fields.error("prompt", format!("must hold at most {} prompts", limits.choices)));
    }
    let prompt = |(i, value)| parse_prompt(&fields.path(&format!("prompt[{i}]")), value);
    many.into_iter().enumerate().map(prompt).collect()
}

fn parse_prompt(path: &str, value: Value) -> Result<Prompt, ApiError> {
    match value {
        Value::String(text) if text.is_empty() => Err(ApiError::field(path, "must not be empty")),
        Value::String(text) => Ok(Prompt::Text(text)),
        Value::Array(ids) if ids.is_empty() => Err(ApiError::field(path, "must not be empty")),
        Value::Array(ids) => {
            let id =
                |(i, v)| integer(&format!("{path}[{i}]"), v, 0..=i64::from(u32::MAX)).map(|id| id as u32);
            Ok(Prompt::Tokens(ids.iter().enumerate().map(id).collect::<Result<_, _>>()?))
        }
        other => {
            let reason = format!("must be a string or an array of token ids, not {}", kind(&other));
            Err(ApiError::field(path, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(fields: Value) -> Result<CompletionRequest, ApiError> {
        let mut body = json!({"model": "m", "prompt": "a"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        CompletionRequest::parse(body.to_string().as_bytes(), &Limits::default())
    }

    #[test]
    fn prompts_are_texts_or_tokens_or_lists_of_them() {
        let text = |t: &str| Prompt::Text(t.into());
        for (given, wanted) in [
            (json!("a"), vec![text("a")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
            (json!([[1], [2, 3]]), vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
            (json!(["a", [7]]), vec![text("a"), Prompt::Tokens(vec![7])]),
        ] {
            assert_eq!(parse(json!({"prompt": given})).unwrap().prompts, wanted);
        }
    }

    #[test]
    fn refusals_name_the_field() {
        for (fields, param) in [
            (json!({"prompt": null}), "prompt"),
            (json!({"prompt": ""}), "prompt"),
            (json!({"prompt": []}), "prompt"),
            (json!({"prompt": {"a": 1}}), "prompt"),
            (json!({"prompt": ["a", ""]}), "prompt[1]"),
            (json!({"prompt": [1, -1]}), "prompt[1]"),
            (json!({"prompt": [[1], [2.5]]}), "prompt[1][0]"),
            (json!({"prompt": vec!["a"; 129]}), "prompt"),
            (json!({"prompt": vec!["a"; 100], "n": 2}), "n"),
            (json!({"suffix": "end"}), "suffix"),
            (json!({"max_tokens": -2}), "max_tokens"),
            (json!({"logprobs": 21}), "logprobs"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"echo": true, "logprobs": 1}), "echo"),
            (json!({"best_of": 2}), "best_of"),
            (json!({"messages": []}), "messages"),
        ] {
            assert_eq!(parse(fields.clone()).unwrap_err().param.as_deref(), Some(param), "{fields}");
        }
        assert_eq!(parse(json!({"max_tokens": 0})).unwrap().settings.max_tokens, Some(0));
        for unbounded in [json!(-1), Value::Null] {
            assert_eq!(parse(json!({"max_tokens": unbounded})).unwrap().settings.max_tokens, None);
        }
        assert_eq!(parse(json!({"suffix": null})).unwrap().settings.max_tokens, Some(16));
        assert_eq!(parse(json!({"logprobs": 0})).unwrap().settings.logprobs, Some(0));
    }
}
