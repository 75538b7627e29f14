//! `/v1/messages`, Anthropic's API: request, answer, errors.
//!
//! Source: Anthropic's API reference (Messages, streaming, errors), version 2023-06-01, and what its clients were seen to send.

mod blocks;
mod dialect;
mod error;
mod request;

pub use dialect::MessagesDialect;
pub use error::messages_error;
pub use request::MessagesRequest;
