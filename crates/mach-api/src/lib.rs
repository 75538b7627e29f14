//! Wire types, chat templates and their validation; no sockets.
//!
//! [`ChatRequest::parse`] turns the bytes of a request into a value that is valid by construction, or into an
//! [`ApiError`] that names the offending field. [`ChatTemplate`] renders the messages into the model's prompt as the
//! `transformers` library does. The response types serialise to OpenAI's shapes.

pub mod chat;
pub mod completions;
mod error;
mod fields;
mod json;
pub mod memory;
pub mod messages;
mod models;
mod notes;
pub mod output;
pub mod responses;
mod surrogates;
pub mod template;
pub mod tokens;
pub mod turn;

pub use chat::{ChatRequest, Message};
pub use completions::CompletionRequest;
pub use error::{ApiError, ErrorKind};
pub use models::{ModelCard, ModelList};
pub use notes::{Notes, UnknownFields};
pub use responses::Keep;
pub use template::{ChatTemplate, TemplateError};
pub use turn::{Dialect, Turn};
