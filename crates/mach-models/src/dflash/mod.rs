//! DFlash: a block-diffusion draft. A small transformer that fills a block of masked positions in one pass, from features
//! taken inside the target (Chen et al., "DFlash: Block Diffusion for Flash Speculative Decoding", 2026), first and
//! second generation.
//!
//! The draft has no embedding and no head: it borrows the target's, and runs on its device. What it draws from the target's
//! features depends on nothing but the position, so it is projected once and kept as keys and values of the context: a
//! [`SequenceState`] of the draft's layers, whose position is the number of positions taken in.

mod config;
mod error;
mod forward;
mod selector;
mod weights;

use std::sync::Arc;

pub use config::{DraftConfig, SecondConfig};
pub use error::DraftError;
pub use forward::DraftRows;
pub use selector::Selector;
pub(crate) use weights::DraftWeights;
pub use weights::check_draft;

use mach_quant::Bits;

use crate::{Logits, SequenceState};

/// How to load a draft.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftOptions {
    /// Quantize unquantized matrices to so many bits, in groups of 64.
    pub quantize_bits: Option<Bits>,
}

/// What is known of a draft that a model has loaded; shared by all sequences. The weights are the model's.
#[derive(Debug)]
pub struct DFlash {
    pub(crate) config: DraftConfig,
    pub(crate) empty: SequenceState,
    pub(crate) selector: Option<Arc<Selector>>,
    pub(crate) needs: DraftNeeds,
}

/// What a draft takes of memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftNeeds {
    /// Bytes of its matrices.
    pub weights: usize,
    /// Bytes of a page of its context, 256 positions of every layer.
    page: usize,
    /// Bytes of the features of a position.
    row: usize,
}

impl DraftNeeds {
    /// Positions that a context grows by.
    pub(crate) const PAGE: usize = 256;
    /// Most positions of a sequence whose features wait to be taken into its context.
    pub const WAITING: usize = 1024;

    fn of(config: &DraftConfig, weights: usize, page: usize) -> Self {
        let row = 4 * config.target_layer_ids.len() * config.hidden_size;
        Self { weights, page, row }
    }

    /// Of a draft that keeps `page` bytes for 256 positions, and takes features of so many values.
    pub(crate) fn of_context(weights: usize, page: usize, width: usize) -> Self {
        Self { weights, page, row: 4 * width }
    }

    /// Of a draft that keeps next to nothing of a sequence.
    pub fn of_weights(weights: usize) -> Self {
        Self { weights, ..Self::default() }
    }

    /// Bytes of the context of a sequence of `tokens` tokens, as if no layer forgot anything.
    pub fn context(&self, tokens: usize) -> usize {
        self.page.saturating_mul(tokens.div_ceil(Self::PAGE))
    }

    /// Bytes that a sequence of `tokens` tokens keeps for its draft at most: the context, and features that wait.
    pub fn sequence(&self, tokens: usize) -> usize {
        self.context(tokens).saturating_add(self.features(tokens.min(Self::WAITING)))
    }

    /// Bytes of the features of `rows` positions.
    pub fn features(&self, rows: usize) -> usize {
        self.row.saturating_mul(rows)
    }
}

impl DFlash {
    /// What the draft's `config.json` says, defaults resolved.
    pub fn config(&self) -> &DraftConfig {
        &self.config
    }

    /// Bytes of its matrices.
    pub fn weight_bytes(&self) -> usize {
        self.needs.weights
    }

    /// What it takes of memory.
    pub fn needs(&self) -> DraftNeeds {
        self.needs
    }

    /// How tokens are chosen from its rows, if it is of the second generation.
    pub fn selector(&self) -> Option<&Selector> {
        self.selector.as_deref()
    }

    /// The context of a sequence of which nothing was taken in.
    pub fn new_context(&self) -> SequenceState {
        self.empty.clone()
    }

    /// A context of `len` positions to be imported into.
    pub fn blank_context(&self, len: usize) -> SequenceState {
        self.empty.blank(len)
    }
}

/// Runs a loaded draft on the target's device.
pub trait DraftHost {
    /// Takes in the features `[rows, taps, hidden]` of the positions that follow the context.
    fn extend(&mut self, context: &mut SequenceState, features: &[f32]) -> Result<(), DraftError>;
    /// One pass over a block of `rows` rows: the anchor, then masks. Its position is that behind the context, which stays
    /// as it is.
    fn block(
        &mut self,
        context: &mut SequenceState,
        anchor: u32,
        rows: usize,
    ) -> Result<DraftRows, DraftError>;
    /// Takes back logits that are done with.
    fn return_logits(&mut self, logits: Logits);
}
