//! The interface between a model and its users (engine, golden checks, benchmarks).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mach_checkpoint::{Checkpoint, CheckpointError, ModelConfig};
use mach_experts::{HotExperts, StreamingStats};

use crate::dflash::{DFlash, DraftHost, DraftOptions};
use crate::mtp::{Mtp, MtpHost};
use crate::{DraftError, ModelCard, SequenceState};

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
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// A state that another device made, or that belongs to another model.
    #[error("the state of layer {layer} belongs to another model or device")]
    ForeignState {
        /// Index of the layer.
        layer: usize,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    Token {
        /// The id that was given.
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
    /// Rows of a draft, which has no experts.
    Draft,
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

/// What an observer wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    /// Residual streams by index: 0 after the embedding, `n + 1` after layer `n`.
    pub hidden: Hidden,
    /// What comes after the final norm.
    pub last_norm: bool,
    /// Routing of every layer.
    pub routed: bool,
}

/// Which residual streams are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Hidden {
    /// No residual stream.
    #[default]
    None,
    /// These indices.
    At(Vec<usize>),
    /// Every residual stream, the embedding's included.
    All,
}

impl Hidden {
    pub(crate) fn wants(&self, index: usize) -> bool {
        match self {
            Hidden::None => false,
            Hidden::At(indices) => indices.contains(&index),
            Hidden::All => true,
        }
    }
}

/// Sees inside a forward pass: golden checks, routing traces, draft features. Rows are those of all segments of the
/// call, concatenated in order. Told when the pass is done, and only what it wants.
pub trait Observer {
    /// What it wants to see of the next pass.
    fn wants(&self) -> Wants;
    /// Residual stream `[rows, hidden]`: `index` 0 after the embedding, `n + 1` after layer `n`.
    fn hidden(&mut self, _index: usize, _rows: &[f32]) {}
    /// After the final norm, `[rows, hidden]`; only the rows whose logits are wanted.
    fn last_norm(&mut self, _rows: &[f32]) {}
    /// Chosen experts and their weights, `[rows, top_k]`, by falling weight.
    fn routed(&mut self, _layer: usize, _experts: &[u32], _weights: &[f32]) {}
    /// How long the pass's routed experts took, waiting for reads included.
    fn experts_took(&mut self, _time: Duration) {}
}

/// Observes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn wants(&self) -> Wants {
        Wants::default()
    }
}

/// A loaded model.
pub trait Model: Send {
    /// What `config.json` says, defaults resolved.
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
    /// Whether this model can be drafted for.
    fn can_be_drafted_for(&self) -> bool {
        false
    }
    /// Loads a draft onto this model's device, in the place of one loaded before.
    fn load_draft(&mut self, _dir: &Path, _options: DraftOptions) -> Result<DFlash, DraftError> {
        Err(no_drafts())
    }
    /// Runs the loaded draft, if there is one.
    fn draft_host(&mut self) -> Option<&mut dyn DraftHost> {
        None
    }
    /// Values of a row of a layer's output: the hidden size, or as many for each residual stream.
    fn feature_width(&self) -> usize {
        self.config().hidden_size
    }
    /// Loads the block that predicts the token after the next out of the model's own checkpoint.
    fn load_mtp(&mut self, _checkpoint: &Checkpoint, _options: DraftOptions) -> Result<Mtp, DraftError> {
        Err(DraftError::Mismatch("the model's family has no block of its own".into()))
    }
    /// Loads the EAGLE-3 head in `dir`, which then takes the block's place.
    fn load_eagle(&mut self, _dir: &Path, _options: DraftOptions) -> Result<Mtp, DraftError> {
        Err(no_drafts())
    }
    /// Runs that block or head, if one is loaded.
    fn mtp_host(&mut self) -> Option<&mut dyn MtpHost> {
        None
    }
    /// Where streaming publishes its counters; `None` if all experts are in memory.
    fn streaming_stats(&self) -> Option<Arc<StreamingStats>> {
        None
    }
    /// Has experts that are likely to be used read while the drive has nothing better to do. Changes no result; does nothing if all are in
    /// memory.
    fn bring_experts(&mut self, _hot: &HotExperts) {}
    /// What truly runs.
    fn card(&self) -> ModelCard;
    /// Name of the arithmetic (see [`Device::numerics`](crate::device::Device::numerics)).
    fn numerics(&self) -> String;
}

/// The error for a family that no draft was made for.
pub(crate) fn no_drafts() -> DraftError {
    DraftError::Mismatch("there are no drafts for the model's family".into())
}
