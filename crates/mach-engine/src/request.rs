//! What the engine is asked for and what it answers.

use std::sync::Arc;
use std::time::Duration;

use mach_specdec::policy::Blocks;

use crate::grammar::Grammar;
use crate::sampling::SamplingParams;

/// A request for one or more continuations of a prompt.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// Token ids of the prompt; at least one.
    pub prompt: Vec<u32>,
    /// Number of continuations.
    pub choices: u32,
    /// Most tokens of a continuation, none for 0; `None` and more than the context holds: as many as it holds.
    pub max_tokens: Option<u32>,
    /// How tokens are chosen. Choice 0 uses the seed as given, the others seeds derived from it.
    pub sampling: SamplingParams,
    /// Strings that end a continuation and are not shown.
    pub stop: Vec<String>,
    /// Token ids that end a continuation and are not shown.
    pub stop_token_ids: Vec<u32>,
    /// Report log probabilities, with this many alternatives.
    pub logprobs: Option<usize>,
    /// What may be proposed beside the draft's blocks. Changes the speed, never the answer.
    pub preset: Preset,
    /// A block policy for this request in place of the engine's, unless that is `off`.
    pub policy: Option<Blocks>,
    /// What the prefix cache should know of the prompt. Changes the speed, never the answer.
    pub cache: CacheHints,
    /// Nothing is generated: the prompt is computed and pinned in the prefix cache.
    pub warm: bool,
    /// What the answer may say and shows.
    pub output: OutputControl,
}

/// What an answer may say and shows.
#[derive(Debug, Clone, Default)]
pub struct OutputControl {
    /// Control tokens that are shown all the same, because what reads the answer looks for them.
    pub show: Arc<[u32]>,
    /// What it is held to.
    pub grammar: Option<Grammar>,
    /// There is no answer: what the model makes of the prompt is wanted, [`Event::Embedding`]. Such a prompt is computed as a whole,
    /// whatever the prefix cache holds, and leaves nothing there.
    pub embedding: bool,
}

/// What the prefix cache should know of a prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheHints {
    /// Only requests with the same salt share prefixes.
    pub salt: Option<String>,
    /// Where instructions and tools end, if conversations share them.
    pub system: Option<usize>,
    /// Positions between messages at which other prompts may part, ascending.
    pub boundaries: Vec<usize>,
    /// Which conversation it is of: the ends of those that go on stay in the cache before those of others.
    pub session: Option<[u8; 32]>,
}

/// Proposers that need no draft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Preset {
    /// Nothing beside the draft proposes.
    #[default]
    None,
    /// Continuations copied from the prompt and the answer.
    Summarization,
    /// The answer is one of these token sequences.
    Classification(Vec<Vec<u32>>),
}

/// Why a continuation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token or stop string.
    Stop,
    /// `max_tokens`, or the context is full.
    Length,
}

/// Log probability of one token.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub id: u32,
    /// Natural logarithm of its probability under the model's own distribution, before penalties and temperature.
    pub logprob: f32,
    /// The most probable tokens at this position, best first.
    pub top: Vec<(u32, f32)>,
    /// Whether it was proposed before the model chose it.
    pub drafted: bool,
}

/// How long the parts of a continuation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// Waiting in the queue.
    pub queued: Duration,
    /// From leaving the queue to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// Part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// More visible text of a choice.
    Text {
        /// Which choice.
        choice: u32,
        /// The text; may be empty if only log probabilities are new.
        text: String,
        /// Log probabilities of the tokens that became visible, if asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// The hidden state `[hidden]` of the prompt's last token, behind the final norm, where that was asked for.
    Embedding(Vec<f32>),
    /// A choice is complete.
    Finished {
        /// Which choice.
        choice: u32,
        /// What ended the choice.
        reason: FinishReason,
        /// Tokens generated, the stop token included.
        tokens: usize,
        /// How long it took.
        timings: Timings,
        /// Prompt tokens that were not computed again.
        cached: usize,
        /// The tokens themselves, if the text is all that they say (nothing was cut off at a stop string).
        ids: Option<Vec<u32>>,
        /// The stop string that ended it.
        stopped_by: Option<String>,
    },
    /// The whole request failed; nothing follows.
    Failed(EngineError),
}

/// How the tokens of a request come about, as far as that is known when it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeMode {
    /// It shares passes with other sequences, one token each.
    Batched,
    /// It is alone, and something proposes tokens for it.
    Specdec,
    /// It is alone, one token a pass.
    TargetOnly,
}

impl DecodeMode {
    /// The name in the header `X-Decode-Mode`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Batched => "batched",
            Self::Specdec => "specdec",
            Self::TargetOnly => "target_only",
        }
    }
}

/// Told once, when a request leaves the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// How its tokens come about.
    pub mode: DecodeMode,
    /// Sequences at work, its own included.
    pub active: usize,
}

/// Why the engine refuses or fails a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt} tokens; this model's context holds {context}, prompt and answer together"
    )]
    ContextLength {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that the context holds.
        context: usize,
    },
    /// The prompt has no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token id that the model does not have.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    Token {
        /// The id that was given.
        id: u32,
        /// Vocabulary size.
        vocab: usize,
    },
    /// The queue is full.
    #[error("{waiting} requests are waiting, which is as many as the queue holds")]
    QueueFull {
        /// Requests waiting.
        waiting: usize,
        /// Seconds after which a place should be free, judged by recent requests.
        retry_after: u32,
    },
    /// Nothing was free for too long.
    #[error("the request waited {} s for its turn, which is the limit", limit.as_secs_f64())]
    QueueTimeout {
        /// The limit that was reached.
        limit: Duration,
    },
    /// The answer took too long.
    #[error("the request took {} s, which is the limit", limit.as_secs_f64())]
    RequestTimeout {
        /// The limit that was reached.
        limit: Duration,
    },
    /// The answer was not read as fast as it came, until too much of it waited.
    #[error("the answer was not read: too much of it waits")]
    Unread,
    /// The prompt would fit the model's context, not the memory.
    #[error(
        "the prompt has {prompt} tokens; memory for sequences ({budget} bytes) holds {context}, prompt and answer together"
    )]
    NeverFits {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that memory holds.
        context: usize,
        /// Bytes for the state of sequences.
        budget: usize,
    },
    /// The engine is shutting down.
    #[error("the server is shutting down")]
    ShuttingDown,
    /// Memory for the sequence could not be had.
    #[error("out of memory: {0}")]
    Memory(String),
    /// The grammar could not be followed to its end.
    #[error("the grammar could not be followed: {0}")]
    Grammar(String),
    /// The model failed.
    #[error("the model failed: {0}")]
    Model(String),
}
