//! `/v1/responses`, OpenAI's newer API: items in, items out.
//!
//! Source: OpenAI's API reference (Responses, streaming events), and what its clients were seen to send.

mod compaction;
mod dialect;
mod format;
mod items;
mod output;
mod past;
mod request;
mod seal;
mod tools;

pub use compaction::CompactionDialect;
pub use dialect::ResponsesDialect;
pub use past::{Backing, Keep, Past, Record};
pub use request::{Asked, ResponsesRequest};
pub use seal::{Kind, Seal};
