//! The state of one sequence.

/// Everything that a model carries from token to token for one sequence: key/value pages of the attention layers,
/// convolution rows and recurrent matrices of the linear ones.
#[derive(Debug)]
pub struct SequenceState {
    pub(crate) position: usize,
}

impl SequenceState {
    /// Tokens seen so far; the next token's absolute position.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        0
    }
}

/// For models that keep nothing but their position, such as test doubles outside this crate.
impl SequenceState {
    /// A state without layers, at position 0.
    pub fn without_layers() -> Self {
        Self { position: 0 }
    }

    /// Counts `tokens` more tokens as seen.
    pub fn advance(&mut self, tokens: usize) {
        self.position += tokens;
    }
}
