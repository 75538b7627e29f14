//! What happens while a turn is answered.

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// What the model says to itself.
    Reasoning(String),
    /// What it says to the user.
    Content(String),
    /// A call begins.
    CallStart {
        /// Which call of the answer, from 0.
        index: usize,
        /// Id of the call that later events name.
        id: String,
        /// Name of the function.
        name: String,
    },
    /// More of the arguments of the call that began last, as JSON.
    Arguments {
        /// Which call of the answer.
        index: usize,
        /// What is new.
        text: String,
    },
    /// The call that began last is complete.
    CallEnd {
        /// Which call of the answer.
        index: usize,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The model ended it, or a stop id did.
    Stop,
    /// This stop string did.
    StopString(String),
    /// The length that was asked for, or the context is full.
    Length,
    /// The model calls tools.
    Calls,
}
