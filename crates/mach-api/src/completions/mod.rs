//! `/v1/completions`: plain prompts, request and response.

mod request;
mod response;

pub use request::{CompletionRequest, Prompt};
pub use response::{Completion, CompletionChoice, CompletionChunk, CompletionLogprobs, completion_id};
