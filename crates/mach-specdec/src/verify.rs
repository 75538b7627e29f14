//! The target's pass over a block, acceptance and commit.

use mach_models::{Model, ModelError, Segment, SequenceState};

use crate::Taps;

/// The target's choice after a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Token id that the target samples after the row.
    pub token: u32,
    /// Nothing follows it: a stop token, a stop string, the limit.
    pub last: bool,
}

/// What a block brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verified {
    /// Tokens proposed.
    pub proposed: usize,
    /// How many of them the target chose itself, from the first on.
    pub accepted: usize,
    /// Tokens emitted, and rows that the state kept: the anchor and what was accepted and followed.
    pub emitted: usize,
    /// The sequence is complete.
    pub finished: bool,
}

/// Why a block failed. The state is unusable.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError<E> {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// No token could be chosen.
    #[error("{0}")]
    Choose(E),
}

/// Runs the anchor and the proposed tokens through the target in one pass. `choose` is given each row's logits in turn
/// and takes in the token that it returns, as in plain decoding; rows after the first token that was not proposed are
/// undone. Afterwards the features of the rows that stay are `taps.rows(0..emitted)`. Proposed ids must be
/// inside the vocabulary.
pub fn verify<E>(
    model: &mut dyn Model,
    state: &mut SequenceState,
    anchor: u32,
    proposed: &[u32],
    taps: &mut Taps,
    choose: &mut dyn FnMut(&mut [f32]) -> Result<Choice, E>,
) -> Result<Verified, VerifyError<E>> {
    let block: Vec<u32> = std::iter::once(anchor).chain(proposed.iter().copied()).collect();
    if !proposed.is_empty() {
        state.begin_block();
    }
    let segment = Segment::verify(&mut *state, &block);
    let mut logits = model.forward(&mut [segment], taps)?;
    let mut out = Verified { proposed: proposed.len(), ..Verified::default() };
    for row in 0..logits.rows() {
        let choice = choose(logits.row_mut(row)).map_err(VerifyError::Choose)?;
        out.emitted += 1;
        out.finished = choice.last;
        let matches = proposed.get(row) == Some(&choice.token);
        out.accepted += usize::from(matches);
        if choice.last || !matches {
            break;
        }
    }
    model.recycle(logits);
    if !proposed.is_empty() {
        model.keep_rows(state, out.emitted)?;
    }
    Ok(out)
}
