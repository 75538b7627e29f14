//! What every API asks and answers: a turn and its events. A [`Dialect`] parses one API's body into turns and writes their
//! events in that API's shape; between the two nobody knows which API it was.

mod dialect;
mod event;
mod spoken;

pub use dialect::{Counts, Dialect, Head, Parsed};
pub(crate) use dialect::{DONE, data, event};
pub use event::{Ending, Said};
pub use spoken::{Call, CallState, Spoken};

use serde_json::{Map, Value};

use crate::chat::{Message, PromptEnd, Settings, ToolChoice};

/// What an answer goes on from.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A conversation, through the model's template.
    Conversation(Conversation),
    /// A plain text.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// Messages, and what the model may do about them.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The messages; at least one.
    pub messages: Vec<Message>,
    /// Tools as given, for the template; empty if they may not be called.
    pub tools: Vec<Value>,
    /// Whether they are called.
    pub tool_choice: ToolChoice,
    /// Whether one answer may call more than one.
    pub parallel_tool_calls: bool,
    /// Extra variables for the template.
    pub template_kwargs: Map<String, Value>,
    /// Where the prompt ends.
    pub end: PromptEnd,
    /// What is oldest is left out where the whole is longer than the context.
    pub truncate: bool,
}

/// One prompt to be answered, [`Settings::n`] times.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// What it goes on from.
    pub input: Input,
    /// How answers are generated.
    pub settings: Settings,
}
