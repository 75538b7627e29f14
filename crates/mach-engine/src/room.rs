//! Memory for the state of sequences: who may start, who has to give way.
//!
//! A sequence is charged for the tokens that it has, not for those that it may come to have: an answer without a limit
//! could fill the whole context, and few do. When what runs grows beyond the budget, the youngest gives up its state
//! and computes it again later, to the same bits. The oldest always fits, so something always goes on.

use mach_models::Model;

use crate::sequence::Sequence;

/// Tokens of growth that a sequence must find room for before it starts, so that it does not have to give way at once.
const AHEAD: usize = 256;

/// The budget.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    budget: Option<usize>,
    /// Bytes of a sequence beside those that `Model::state_bytes` tells.
    undo: usize,
}

impl Room {
    pub(crate) fn new(budget: Option<usize>, undo: usize) -> Self {
        Self { budget, undo }
    }

    /// Bytes of a sequence with this many tokens.
    fn bytes(&self, model: &dyn Model, tokens: usize) -> usize {
        model.state_bytes(tokens) + self.undo
    }

    fn soon(&self, model: &dyn Model, sequence: &Sequence) -> usize {
        self.bytes(model, (sequence.tokens.len() + AHEAD).min(sequence.limit))
    }

    /// Whether one more sequence of `tokens` tokens, which may grow to `limit`, can join.
    pub(crate) fn fits(&self, model: &dyn Model, active: &[Sequence], tokens: usize, limit: usize) -> bool {
        let Some(budget) = self.budget else { return true };
        let held: usize = active.iter().map(|s| self.soon(model, s)).sum();
        held + self.bytes(model, (tokens + AHEAD).min(limit)) <= budget
    }

    /// Whether the next pass of all these is within the budget.
    pub(crate) fn enough(&self, model: &dyn Model, active: &[Sequence]) -> bool {
        let Some(budget) = self.budget else { return true };
        active.iter().map(|s| self.bytes(model, s.tokens.len() + 1)).sum::<usize>() <= budget
    }
}
