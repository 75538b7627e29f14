//! `/v1/chat/completions`: request, messages, response.

mod constraint;
mod message;
pub(crate) mod request;
mod response;
mod speculation;
mod turn;
mod warm;

pub use constraint::{ResponseFormat, ToolChoice, function_name};
pub use message::{Content, Message, Role, ToolCall};
pub use request::{ChatRequest, Limits, SamplingFields};
pub use response::{
    ChatCompletion, ChatCompletionChunk, Choice, ChoiceLogprobs, ChunkChoice, Delta, FinishReason,
    FunctionDelta, PromptTokensDetails, ResponseFunction, ResponseMessage, ResponseToolCall, TokenLogprob,
    ToolCallDelta, TopLogprob, Usage, completion_id, tool_call_id,
};
pub use speculation::SpeculationPreset;
pub use turn::turn_digest;
pub use warm::{WarmInput, WarmRequest};
