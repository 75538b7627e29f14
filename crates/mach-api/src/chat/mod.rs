//! `/v1/chat/completions`: request, messages, response.

mod message;
mod request;
mod response;

pub use message::{Content, Message, Role, ToolCall};
pub use request::{ChatRequest, Limits, SamplingFields};
pub use response::{
    ChatCompletion, ChatCompletionChunk, Choice, ChoiceLogprobs, ChunkChoice, Delta, FinishReason,
    ResponseMessage, TokenLogprob, TopLogprob, Usage, completion_id,
};
