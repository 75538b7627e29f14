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
