//! Responses of `/v1/chat/completions`, whole and in chunks.

use serde::Serialize;

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End of sequence, or a stop string or id.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// The same where the request offered them as `functions`.
    FunctionCall,
}

/// Token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of all choices, the end-of-sequence token included.
    pub completion_tokens: usize,
    /// Prompt and answer together.
    pub total_tokens: usize,
    /// What became of the prompt.
    pub prompt_tokens_details: PromptTokensDetails,
}

/// What became of the prompt's tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PromptTokensDetails {
    /// Tokens that the prefix cache brought, so that they were not computed.
    pub cached_tokens: usize,
}

impl Usage {
    /// Counts; `cached_tokens` of the prompt's were not computed.
    pub fn new(prompt_tokens: usize, cached_tokens: usize, completion_tokens: usize) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptTokensDetails { cached_tokens },
        }
    }
}

/// An alternative at one position.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopLogprob {
    /// The token's text; bytes that are not UTF-8 are replaced.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Vec<u8>,
}

/// A token of the answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token's text; bytes that are not UTF-8 are replaced.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The token's bytes.
    pub bytes: Vec<u8>,
    /// The most probable tokens here, best first.
    pub top_logprobs: Vec<TopLogprob>,
    /// Whether it was proposed before the model chose it; only where the request asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drafted: Option<bool>,
}

/// Log probabilities of a choice or of a chunk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChoiceLogprobs {
    /// One entry a token.
    pub content: Vec<TokenLogprob>,
    /// Always null.
    pub refusal: Option<()>,
}

impl From<Vec<TokenLogprob>> for ChoiceLogprobs {
    fn from(content: Vec<TokenLogprob>) -> Self {
        Self { content, refusal: None }
    }
}

/// The function that a call names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResponseFunction {
    /// Name of the function.
    pub name: String,
    /// A JSON object; unfinished if the answer was cut at its length.
    pub arguments: String,
}

/// A tool call of the assistant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ResponseToolCall {
    /// Id that the tool's answer refers to.
    pub id: String,
    /// Always `function`.
    pub r#type: &'static str,
    /// Which function, with which arguments.
    pub function: ResponseFunction,
}

impl ResponseToolCall {
    /// A call of a function.
    pub fn new(id: String, name: String, arguments: String) -> Self {
        Self { id, r#type: "function", function: ResponseFunction { name, arguments } }
    }
}

/// The assistant's message.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResponseMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text; none beside tool calls that come without any.
    pub content: Option<String>,
    /// What the model said to itself, if its family sets that apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Calls, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ResponseToolCall>,
    /// The call, where the request offered `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<ResponseFunction>,
    /// Always null.
    pub refusal: Option<()>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// Number of the choice.
    pub index: u32,
    /// What the model said.
    pub message: ResponseMessage,
    /// Log probabilities, if asked for.
    pub logprobs: Option<ChoiceLogprobs>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

impl Choice {
    /// A finished answer.
    pub fn new(
        index: u32,
        message: ResponseMessage,
        logprobs: Option<Vec<TokenLogprob>>,
        finish_reason: FinishReason,
    ) -> Self {
        Self { index, message, logprobs: logprobs.map(Into::into), finish_reason }
    }
}

/// A whole response.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatCompletion {
    /// `chatcmpl-` and a random part, the same in every chunk.
    pub id: String,
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// The served model.
    pub model: String,
    /// Name of the arithmetic: with the same seed, equal names mean equal answers.
    pub system_fingerprint: String,
    /// One entry an answer, by index.
    pub choices: Vec<Choice>,
    /// Token counts.
    pub usage: Usage,
}

/// What a chunk adds to a call.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FunctionDelta {
    /// In the first chunk of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments.
    pub arguments: String,
}

/// A call's part of a chunk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ToolCallDelta {
    /// Which call of the message.
    pub index: usize,
    /// In the first chunk of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in the first chunk of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    /// What is new.
    pub function: FunctionDelta,
}

/// What a chunk adds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Delta {
    /// In the first chunk of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// More of what the model says to itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// More of a call.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
    /// The same where the request offered `functions`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionDelta>,
}

/// One choice's part of a chunk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChunkChoice {
    /// Number of the choice.
    pub index: u32,
    /// What is new.
    pub delta: Delta,
    /// Log probabilities of the tokens of this chunk.
    pub logprobs: Option<ChoiceLogprobs>,
    /// Set in the last chunk of the choice.
    pub finish_reason: Option<FinishReason>,
}

/// One server-sent event.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChatCompletionChunk<'a> {
    /// Id, the same in all chunks.
    pub id: &'a str,
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// Unix seconds, the same in all chunks.
    pub created: u64,
    /// The served model.
    pub model: &'a str,
    /// Name of the arithmetic: with the same seed, equal names mean equal answers.
    pub system_fingerprint: &'a str,
    /// At most one; none in the usage chunk.
    pub choices: Vec<ChunkChoice>,
    /// With `include_usage`: null, and the counts in the last chunk. Absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// A fresh completion id.
pub fn completion_id() -> String {
    format!("chatcmpl-{}", uuid::Uuid::new_v4().simple())
}

/// A fresh id of a tool call.
pub fn tool_call_id() -> String {
    format!("call_{}", uuid::Uuid::new_v4().simple())
}
