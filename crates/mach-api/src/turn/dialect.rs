//! The shape of one API.

use serde_json::Value;

use super::{Ending, Said, Spoken, Turn};
use crate::chat::{Limits, TokenLogprob, Usage};
use crate::responses::Backing;
use crate::{ApiError, Notes};

/// A body, parsed.
#[derive(Debug)]
pub struct Parsed<D> {
    /// What is asked; at least one turn. All have the same settings.
    pub turns: Vec<Turn>,
    /// How the answers are written.
    pub dialect: D,
    /// What was let pass.
    pub notes: Notes,
}

/// What is known of an answer before its first token.
#[derive(Debug, Clone, Default)]
pub struct Head {
    /// Unix seconds.
    pub created: u64,
    /// The model's name, as the request has it.
    pub model: String,
    /// Name of the arithmetic.
    pub numerics: String,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Texts of the prompts, if [`Dialect::wants_prompts`].
    pub prompts: Vec<String>,
}

/// Tokens of all turns together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens of the prompts.
    pub prompt: usize,
    /// Those of them that were not computed.
    pub cached: usize,
    /// Tokens of the answers.
    pub completion: usize,
    /// Those of them that the model said to itself.
    pub reasoning: usize,
}

impl From<Counts> for Usage {
    fn from(counts: Counts) -> Self {
        Self::new(counts.prompt, counts.cached, counts.completion)
    }
}

/// Writes the answer to one request: as server-sent events while it is generated, or as one document. Choices are numbered turn
/// by turn.
pub trait Dialect: Send + Sized + 'static {
    /// The field that holds what is answered, for complaints about its length.
    const PROMPT_FIELD: &'static str;
    /// Whether streams tell of a prompt that is too long, where others refuse the request.
    const LENGTH_IN_STREAM: bool = false;

    /// Parses a body.
    fn parse(body: &[u8], limits: &Limits) -> Result<Parsed<Self>, ApiError>;

    /// Parses a body that may go on from what the server has kept.
    fn parse_with(body: &[u8], limits: &Limits, _backing: &Backing<'_>) -> Result<Parsed<Self>, ApiError> {
        Self::parse(body, limits)
    }

    /// Whether answers show their prompts.
    fn wants_prompts(&self) -> bool {
        false
    }

    /// Bytes that it holds of the request until the answer is written.
    fn memory(&self) -> usize {
        0
    }

    /// Takes what is known at the start.
    fn begin(&mut self, head: Head);

    /// Writes what opens a stream.
    fn open(&mut self, _out: &mut Vec<u8>) {}

    /// Writes something that keeps a silent connection open.
    fn keep_alive(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b": keep-alive\n\n");
    }

    /// Writes what is new of a choice, and the log probabilities of its tokens where they were asked for.
    fn said(&mut self, choice: u32, said: Vec<Said>, logprobs: Vec<TokenLogprob>, out: &mut Vec<u8>);

    /// Writes that a choice ended.
    fn ended(&mut self, choice: u32, ending: Ending, out: &mut Vec<u8>);

    /// Writes what closes a stream in which every choice ended.
    fn close(&mut self, counts: Counts, out: &mut Vec<u8>);

    /// Writes an error into a stream that has begun, and what closes it.
    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>);

    /// The answers as one document.
    fn document(self, answers: Vec<(Spoken, Vec<TokenLogprob>, Ending)>, counts: Counts) -> Value;

    /// The body of a response that refuses a request or tells of its failure.
    fn error(error: &ApiError) -> Value {
        // Strings only.
        serde_json::to_value(error.body()).unwrap_or_default()
    }
}

/// One server-sent event without a name.
pub(crate) fn data(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    out.extend_from_slice(b"data: ");
    // These types hold strings and finite numbers only, and a Vec takes every write.
    let _ = serde_json::to_writer(&mut *out, value);
    out.extend_from_slice(b"\n\n");
}

/// One server-sent event of a name, which its data repeats as `type`.
pub(crate) fn event(out: &mut Vec<u8>, name: &'static str, mut data: Value) {
    if let Some(object) = data.as_object_mut() {
        object.shift_insert(0, "type".into(), name.into());
    }
    out.extend_from_slice(format!("event: {name}\ndata: {data}\n\n").as_bytes());
}

/// The event that ends OpenAI's chat streams.
pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";
