//! The interface between a model and its users (engine, golden checks, benchmarks).

use std::sync::Arc;

use mach_checkpoint::{CheckpointError, ModelConfig};
use mach_experts::{EvictionPolicy, HotExperts, StreamingStats};
use mach_io::faults::Faults;
use mach_io::{Caching, Submission};
use mach_kernels::Cores;
use mach_kernels::attention::turbo::TurboQuant;

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
    /// Instruction set by name (`scalar`, `avx2`, `avx-vnni`, `avx512`, `neon`, `neon-dotprod`); `None` picks the best the machine has.
    pub isa: Option<String>,
    /// Keys and values rotated and quantized; changes logits a little. `None` keeps them as the activations ask.
    pub turboquant_kv: Option<TurboQuant>,
    /// Where routed experts are.
    pub experts: ExpertMode,
}

/// Where routed experts are while the model runs. Changes speed and memory, never a logit.
#[derive(Debug, Clone, Default)]
pub enum ExpertMode {
    /// All in memory.
    #[default]
    Resident,
    /// On the drive, those in use in a bank.
    Streaming(StreamingOptions),
}

/// What experts are streamed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamingSource {
    /// The records of the sidecar.
    #[default]
    Sidecar,
    /// Plain bfloat16 experts of the checkpoint's own tensors.
    Bf16,
    /// Whatever the checkpoint's own tensors are: slow, to find out what is wrong with a sidecar.
    Diagnostic,
}

/// How experts are streamed.
#[derive(Debug, Clone, Default)]
pub struct StreamingOptions {
    /// From what.
    pub source: StreamingSource,
    /// Slots of the bank: 0, or at least the experts of one token.
    pub bank_slots: usize,
    /// Slots of the arena.
    pub arena_slots: usize,
    /// Which expert leaves a full bank.
    pub eviction: EvictionPolicy,
    /// System interface that reads.
    pub submission: Submission,
    /// Past the page cache or through it.
    pub caching: Caching,
    /// Most reads at the drive at one time; 0 for a number that suits most drives.
    pub depth: usize,
    /// Bytes a second of random reads that a probe found, for statistics.
    pub probed_bandwidth: Option<f64>,
    /// Reads that fail on purpose, for tests.
    pub faults: Option<Faults>,
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
    /// Experts cannot be streamed.
    #[error(transparent)]
    Streaming(#[from] mach_experts::StreamingError),
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

/// What a segment's tokens are. Changes which experts a bank keeps, never a logit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A piece of a prompt, however short: its experts are read for the pass and leave the bank as it is.
    Prompt,
    /// Tokens that were chosen: their experts move into the bank.
    Decode,
    /// A token that was chosen, then proposals that may be thrown away: only the first counts as decoding.
    Verify,
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
    /// What the tokens are.
    pub purpose: Purpose,
}

impl<'a> Segment<'a> {
    /// A piece of a prompt.
    pub fn prompt(state: &'a mut SequenceState, tokens: &'a [u32], logits: LogitRows) -> Self {
        Segment { state, tokens, logits, purpose: Purpose::Prompt }
    }

    /// Tokens that were chosen, with the logits after the last.
    pub fn decode(state: &'a mut SequenceState, tokens: &'a [u32]) -> Self {
        Segment { state, tokens, logits: LogitRows::Last, purpose: Purpose::Decode }
    }

    /// A token that was chosen and proposals behind it, with the logits after each.
    pub fn verify(state: &'a mut SequenceState, tokens: &'a [u32]) -> Self {
        Segment { state, tokens, logits: LogitRows::All, purpose: Purpose::Verify }
    }
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

/// What a draft model borrows from its target.
pub trait DraftHost {
    /// Rows of the embedding table, `[ids, hidden]`, as stored: without any scale that the model applies itself.
    fn embed_rows(&mut self, ids: &[u32]) -> Result<Vec<f32>, ModelError>;
    /// The output head on rows `[rows, hidden]` that are normed already.
    fn head_logits(&mut self, rows: &[f32]) -> Result<Logits, ModelError>;
    /// Takes back logits that are done with.
    fn return_logits(&mut self, logits: Logits);
    /// The threads and the instruction set of the target, for the draft's own arithmetic.
    fn compute(&mut self) -> &mut Cores;
    /// The target's activation path.
    fn activations(&self) -> Activations;
}

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
    /// Keeps the first `rows` rows of the block that the last pass ran (see
    /// [`SequenceState::begin_block`]) and undoes the rest: the state becomes, bit for bit, what those rows alone
    /// leave. The default suits models whose layers are all attention.
    fn keep_rows(&mut self, state: &mut SequenceState, rows: usize) -> Result<(), ModelError> {
        state.end_block(rows)
    }
    /// Takes back logits that are done with, so that the next pass need not find memory for its own.
    fn recycle(&mut self, _logits: Logits) {}
    /// What a draft borrows, if this model can be drafted for.
    fn draft_host(&mut self) -> Option<&mut dyn DraftHost> {
        None
    }
    /// Where streaming publishes its counters; `None` if all experts are in memory.
    fn streaming_stats(&self) -> Option<Arc<StreamingStats>> {
        None
    }
    /// Has experts that are likely to be used read while the drive has nothing better to do. Changes no result; does nothing if all are in
    /// memory.
    fn bring_experts(&mut self, _hot: &HotExperts) {}
    /// What truly runs, as key/value pairs for startup signals: `family`, `isa`, `threads`, `activations`,
    /// `weights_bytes`, `expert_bytes`, `huge_pages` and the like.
    fn facts(&self) -> Vec<(&'static str, String)>;
    /// State of a Gated DeltaNet layer `(conv [channels, taps - 1], state [value_heads, key_dim, value_dim])`, if `layer` is one.
    fn gdn_state(&self, state: &SequenceState, layer: usize) -> Option<(Vec<f32>, Vec<f32>)>;
}
