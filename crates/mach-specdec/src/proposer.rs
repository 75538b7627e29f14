//! What to try next.

use std::sync::Arc;

use mach_models::{DraftError, Model, SequenceState};

use crate::policy::RhoGate;

/// Chooses tokens from a draft's logits as the target's sampler will from the target's: with the same parameters and the same
/// noise for the same position.
pub trait Picker {
    /// The token at absolute position `position`; `logits` may be changed in place. `None` if they are not finite.
    fn pick(&mut self, logits: &mut [f32], position: usize) -> Option<u32>;
}

/// The most probable token, the lowest id among equals.
#[derive(Debug, Clone, Copy, Default)]
pub struct Argmax;

impl Picker for Argmax {
    fn pick(&mut self, logits: &mut [f32], _position: usize) -> Option<u32> {
        // The first block of 256 that holds the largest value, then its place there.
        let mut best = (f32::NEG_INFINITY, 0);
        for (block, values) in logits.chunks(256).enumerate() {
            let mut lanes = [f32::NEG_INFINITY; 16];
            let (chunks, tail) = values.as_chunks::<16>();
            for chunk in chunks {
                for (lane, &v) in lanes.iter_mut().zip(chunk) {
                    *lane = if v > *lane { v } else { *lane };
                }
            }
            let top = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |a, &v| if v > a { v } else { a });
            if top > best.0 {
                best = (top, 256 * block);
            }
        }
        let rest = logits.get(best.1..)?;
        let id = rest.iter().position(|&v| v == best.0)?;
        best.0.is_finite().then_some((best.1 + id) as u32)
    }
}

/// What a proposer comes up with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Proposed {
    /// The tokens, in order.
    pub tokens: Vec<u32>,
    /// For each, by how much the best logit led the second; empty if the proposer cannot tell.
    pub margins: Vec<f32>,
}

impl Proposed {
    /// Keeps the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        self.margins.truncate(len);
    }
}

/// What a proposer may use.
pub struct Drafting<'a> {
    /// Prompt and answer so far. The last token, the anchor, has not been run through the target.
    pub tokens: &'a [u32],
    /// Most tokens to propose.
    pub most: usize,
    /// The target, whose device also runs the draft.
    pub model: &'a mut dyn Model,
    /// How to choose tokens from logits.
    pub picker: &'a mut dyn Picker,
}

/// Proposes continuations of one sequence. Anything may be proposed: what the target does not choose itself is dropped.
pub trait Proposer: Send {
    /// Its name in statistics.
    fn name(&self) -> &'static str;
    /// Target layers whose outputs [`observe`](Proposer::observe) wants.
    fn taps(&self) -> &[usize] {
        &[]
    }
    /// Sees the features of positions that the target has run and that are there to stay, each once, in order:
    /// `[rows, taps, hidden]`. `tokens` are those of the sequence as far as they are known, which may be further.
    fn observe(
        &mut self,
        _model: &mut dyn Model,
        _features: &[f32],
        _tokens: &[u32],
    ) -> Result<(), DraftError> {
        Ok(())
    }
    /// A copy of what it keeps of the positions seen so far; `tokens` as in [`observe`](Proposer::observe). `None` if that
    /// follows from the tokens.
    fn save(&mut self, _model: &mut dyn Model, _tokens: &[u32]) -> Result<Option<SequenceState>, DraftError> {
        Ok(None)
    }
    /// Puts such a copy in the place of positions that it will not be shown.
    fn restore(&mut self, _context: &SequenceState) {}
    /// Appends up to `drafting.most` tokens to `out`.
    fn propose(&mut self, drafting: Drafting<'_>, out: &mut Proposed) -> Result<(), DraftError>;
}

/// A draft model that is loaded once and proposes for many sequences.
pub trait Draft: std::fmt::Debug + Send + Sync {
    /// Rows of its largest block, the anchor included.
    fn block_size(&self) -> usize;
    /// Target layers that feed it.
    fn taps(&self) -> &[usize];
    /// A proposer for a new sequence.
    fn proposer(self: Arc<Self>) -> Box<dyn Proposer>;
    /// Most bytes that its proposer of a sequence of `tokens` tokens keeps.
    fn context_bytes(&self, _tokens: usize) -> usize {
        0
    }
    /// What decides, over all sequences, whether it drafts at all.
    fn gate(&self) -> Option<&Arc<RhoGate>> {
        None
    }
    /// A context of `len` positions, to be filled with saved bytes and given to [`Proposer::restore`]. `None` if its
    /// proposers keep none.
    fn blank_context(&self, _len: usize) -> Option<SequenceState> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_of_the_best_is_picked() {
        let pick = |logits: &[f32]| Argmax.pick(&mut logits.to_vec(), 0);
        // In blocks, in chunks and behind them.
        for len in [1, 15, 16, 17, 256, 257, 700] {
            for best in [0, len / 3, len / 2, len - 1] {
                let mut logits: Vec<f32> = (0..len).map(|i| -1.0 - (i * 7 % 13) as f32).collect();
                logits[best] = 3.0;
                assert_eq!(pick(&logits), Some(best as u32), "{best} of {len}");
                for other in [best + 1, best + 40, best + 300] {
                    if let Some(equal) = logits.get_mut(other) {
                        *equal = 3.0;
                    }
                }
                assert_eq!(pick(&logits), Some(best as u32), "{best} of {len}, among equals");
            }
        }
        assert_eq!(pick(&[f32::NAN, 1.0, f32::NEG_INFINITY]), Some(1));
        for none in [&[][..], &[f32::NAN; 20], &[f32::NEG_INFINITY; 20], &[0.0, f32::INFINITY]] {
            assert_eq!(pick(none), None, "{none:?}");
        }
    }

    #[test]
    fn proposals_are_cut_with_their_margins() {
        let mut proposed = Proposed { tokens: vec![1, 2, 3], margins: vec![0.5, 0.25, 0.125] };
        proposed.truncate(2);
        assert_eq!(proposed, Proposed { tokens: vec![1, 2], margins: vec![0.5, 0.25] });
    }
}
