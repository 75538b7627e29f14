//! `/v1/chat/completions`: request, messages, response.

mod arguments;
mod constraint;
mod content;
mod dialect;
mod guided;
pub(crate) mod known;
mod limits;
mod message;
pub(crate) mod request;
mod response;
pub(crate) mod sampling;
pub(crate) mod settings;
mod speculation;
pub(crate) mod tools;
mod turn;
mod warm;

pub(crate) use arguments::Arguments;
pub(crate) use constraint::check_schema;
pub use constraint::{ResponseFormat, ToolChoice, function_name};
pub use dialect::ChatDialect;
pub use limits::Limits;
pub use message::{Content, Message, Role, ToolCall};
pub use request::{ChatRequest, PromptEnd};
pub use response::{
    ChatCompletion, ChatCompletionChunk, Choice, ChoiceLogprobs, ChunkChoice, Delta, FinishReason,
    FunctionDelta, PromptTokensDetails, ResponseFunction, ResponseMessage, ResponseToolCall, TokenLogprob,
    ToolCallDelta, TopLogprob, Usage, completion_id, tool_call_id,
};
pub use sampling::SamplingFields;
pub use settings::Settings;
pub use speculation::SpeculationPreset;
pub use turn::turn_digest;
pub use warm::{WarmInput, WarmRequest};
