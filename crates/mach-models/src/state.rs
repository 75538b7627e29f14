//! The state of one sequence.

use mach_kernels::attention::KvCache;
use mach_kernels::delta::DeltaState;

/// What one layer carries from token to token.
#[derive(Debug, Clone)]
pub enum LayerState {
    /// Keys and values of softmax attention.
    Attention(KvCache),
    /// Convolution rows and recurrent matrices of Gated DeltaNet.
    Delta(DeltaState),
}

/// Everything that a model carries from token to token for one sequence. A clone shares the full key/value pages.
#[derive(Debug, Clone)]
pub struct SequenceState {
    pub(crate) position: usize,
    pub(crate) layers: Vec<LayerState>,
}

impl SequenceState {
    /// Tokens seen so far; the next token's absolute position.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes held (pages shared with other sequences included).
    pub fn bytes(&self) -> usize {
        self.layers
            .iter()
            .map(|layer| match layer {
                LayerState::Attention(kv) => kv.bytes(),
                LayerState::Delta(delta) => 4 * (delta.conv.len() + delta.state.len()),
            })
            .sum()
    }
}

/// For models that keep nothing but their position, such as test doubles outside this crate.
impl SequenceState {
    /// A state without layers, at position 0.
    pub fn without_layers() -> Self {
        Self { position: 0, layers: Vec::new() }
    }

    /// Counts `tokens` more tokens as seen.
    pub fn advance(&mut self, tokens: usize) {
        self.position += tokens;
    }
}
