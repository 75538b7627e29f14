//! The interface between a model and its users (engine, golden checks, benchmarks).

use mach_checkpoint::{CheckpointError, ModelConfig};

use crate::SequenceState;

/// Which activation path the linear layers take (design section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activations {
    /// Rows quantized to int8 per group, exact integer dot products. The default.
    #[default]
    Int8,
    /// Exact float32 activations and float32 KV; slower, held to outside references.
    F32,
}

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// Activation path.
    pub activations: Activations,
    /// Compute threads; 0 means all available.
    pub threads: usize,
    /// Instruction set by name (`scalar`, `avx2`, `avx512`, `neon`); `None` picks the best the machine has.
    pub isa: Option<String>,
}

/// Reported while loading, once for each unit of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes of weights placed so far.
    pub bytes_done: u64,
    /// Bytes in all.
    pub bytes_total: u64,
}

/// What can go wrong inside a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The checkpoint is unusable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The experts on disk are unusable.
    #[error(transparent)]
    Sidecar(#[from] mach_experts::SidecarError),
    /// Memory for weights or state could not be had.
    #[error("out of memory: {0}")]
    Memory(String),
    /// An option that this build or machine cannot honour.
    #[error("{0}")]
    Unsupported(String),
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    Token {
        /// The id.
        id: u32,
        /// Vocabulary size.
        vocab: usize,
    },
}

/// Which rows of a segment need logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitRows {
    /// None: a prefill chunk that is not the last.
    None,
    /// The last row only.
    Last,
    /// All rows.
    All,
}

/// New tokens of one sequence.
#[derive(Debug)]
pub struct Segment<'a> {
    /// The sequence; advanced by `tokens.len()` when the call succeeds.
    pub state: &'a mut SequenceState,
    /// Token ids, one or more.
    pub tokens: &'a [u32],
    /// Rows whose logits are wanted.
    pub logits: LogitRows,
}

/// Logits of the wanted rows, in segment order, then row order.
#[derive(Debug, Clone, Default)]
pub struct Logits {
    /// Vocabulary size: length of a row.
    pub vocab: usize,
    /// Row-major values.
    pub data: Vec<f32>,
}

impl Logits {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.data.len().checked_div(self.vocab).unwrap_or(0)
    }

    /// One row, `[vocab]`.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.vocab..(i + 1) * self.vocab]
    }

    /// One row, for sampling in place (penalties, bias).
    pub fn row_mut(&mut self, i: usize) -> &mut [f32] {
        &mut self.data[i * self.vocab..(i + 1) * self.vocab]
    }
}

/// Sees inside a forward pass: golden checks, routing traces, draft features. Rows are those of all segments of the
/// call, concatenated in order.
pub trait Observer {
    /// Residual stream `[rows, hidden]`: `index` 0 after the embedding, `n + 1` after layer `n`.
    fn hidden(&mut self, _index: usize, _rows: &[f32]) {}
    /// After the final norm, `[rows, hidden]`; only the rows whose logits are wanted.
    fn last_norm(&mut self, _rows: &[f32]) {}
    /// Chosen experts and their weights, `[rows, top_k]`, by falling weight.
    fn routed(&mut self, _layer: usize, _experts: &[u32], _weights: &[f32]) {}
}

/// Observes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;
impl Observer for NoObserver {}

/// A loaded model.
pub trait Model: Send {
    /// Its settings.
    fn config(&self) -> &ModelConfig;
    /// An empty sequence.
    fn new_state(&self) -> SequenceState;
    /// Bytes of state that a sequence of `tokens` tokens takes.
    fn state_bytes(&self, tokens: usize) -> usize;
    /// Runs the segments' tokens and advances their states. On an error the states of this call are unusable.
    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        observer: &mut dyn Observer,
    ) -> Result<Logits, ModelError>;
    /// What truly runs, as key/value pairs for startup signals: `family`, `isa`, `threads`, `activations`,
    /// `weights_bytes`, `expert_bytes`, `huge_pages` and the like.
    fn facts(&self) -> Vec<(&'static str, String)>;
    /// State of a Gated DeltaNet layer `(conv [channels, taps - 1], state [value_heads, key_dim, value_dim])`, if `layer` is one.
    fn gdn_state(&self, state: &SequenceState, layer: usize) -> Option<(Vec<f32>, Vec<f32>)>;
}
