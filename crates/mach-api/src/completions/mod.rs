//! `/v1/completions`: plain prompts, request and response.

mod dialect;
mod request;
mod response;

pub use dialect::CompletionDialect;
pub use request::{CompletionRequest, Prompt};
pub use response::{Completion, CompletionChoice, CompletionChunk, CompletionLogprobs, completion_id};
