//! Responses of `/v1/completions`, whole and in chunks.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::chat::{FinishReason, TokenLogprob, Usage};

/// Log probabilities of a choice or of a chunk: one entry a token in each list.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Texts of the tokens.
    pub tokens: Vec<String>,
    /// Their log probabilities.
    pub token_logprobs: Vec<f32>,
    /// The most probable tokens at each place, by text.
    pub top_logprobs: Vec<Map<String, Value>>,
    /// Where each token begins in the choice's text, in characters.
    pub text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// From the chat API's terms; `offset` is where the first token begins, and is moved behind the last.
    pub fn new(tokens: Vec<TokenLogprob>, offset: &mut usize) -> Self {
        let mut out = Self::default();
        for token in tokens {
            let mut top = Map::new();
            for other in token.top_logprobs {
                // Two tokens may have the same text; the more probable one comes first.
                top.entry(other.token).or_insert_with(|| other.logprob.into());
            }
            out.text_offset.push(*offset);
            *offset += token.token.chars().count();
            out.tokens.push(token.token);
            out.token_logprobs.push(token.logprob);
            out.top_logprobs.push(top);
        }
        out
    }
}

/// One answer, or a piece of one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionChoice {
    /// Number of the choice: those of the first prompt come first.
    pub index: u32,
    /// The continuation, without the prompt unless `echo` asked for it.
    pub text: String,
    /// Log probabilities, if asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why it ended; absent in pieces before the last.
    pub finish_reason: Option<FinishReason>,
}

/// A whole response.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Completion {
    /// `cmpl-` and a random part, the same in every chunk.
    pub id: String,
    /// Always `text_completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The served model.
    pub model: String,
    /// Name of the arithmetic: with the same seed, equal names mean equal answers.
    pub system_fingerprint: String,
    /// One entry an answer, by index.
    pub choices: Vec<CompletionChoice>,
    /// Token counts.
    pub usage: Usage,
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CompletionChunk<'a> {
    /// Id, the same in all chunks.
    pub id: &'a str,
    /// Always `text_completion`.
    pub object: &'static str,
    /// Unix seconds, the same in all chunks.
    pub created: u64,
    /// The served model.
    pub model: &'a str,
    /// Name of the arithmetic: with the same seed, equal names mean equal answers.
    pub system_fingerprint: &'a str,
    /// At most one; none in the usage chunk.
    pub choices: Vec<CompletionChoice>,
    /// With `include_usage`: null, and the counts in the last chunk. Absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// A fresh completion id.
pub fn completion_id() -> String {
    format!("cmpl-{}", uuid::Uuid::new_v4().simple())
}
