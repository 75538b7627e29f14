//! A model's own block for the token after the next ([`mach_models::mtp`]) at work on one sequence.

use std::sync::Arc;

use mach_models::mtp::Mtp;
use mach_models::{DraftError, LogitRows, Model, SequenceState};

use crate::policy::RhoGate;
use crate::{Draft, Drafting, Proposed, Proposer};

/// Proposes one token a cycle.
///
/// The block is shown the streams of every position that the target keeps, with the token behind it, which is known when
/// something is proposed. Its layer sees a window only: of a long prompt it is shown the end, in places of its own, for
/// rotation tells distances alone.
#[derive(Debug)]
pub struct MtpProposer {
    block: Arc<Mtp>,
    context: SequenceState,
    /// Position in the sequence of the context's first.
    first: usize,
    /// Features of positions behind the context.
    pending: Vec<f32>,
}

impl MtpProposer {
    /// For a new sequence.
    pub fn new(block: Arc<Mtp>) -> Self {
        MtpProposer { context: block.new_context(), first: 0, pending: Vec::new(), block }
    }

    /// Position of the first pending row.
    fn from(&self) -> usize {
        self.first + self.context.position()
    }

    /// Positions whose features were seen.
    fn seen(&self) -> usize {
        self.from() + self.pending.len() / self.block.width().max(1)
    }

    /// Begins anew at a position.
    fn begin(&mut self, position: usize) {
        self.context = self.block.new_context();
        self.first = position;
    }
}

/// A model's own block as the draft of its sequences, under a gate.
#[derive(Debug)]
pub struct MtpDraft {
    block: Arc<Mtp>,
    gate: Arc<RhoGate>,
}

impl MtpDraft {
    /// With the gate that all sequences share.
    pub fn new(block: Arc<Mtp>, gate: Arc<RhoGate>) -> Self {
        MtpDraft { block, gate }
    }
}

impl Draft for MtpDraft {
    fn block_size(&self) -> usize {
        2
    }

    fn taps(&self) -> &[usize] {
        self.block.taps()
    }

    fn proposer(self: Arc<Self>) -> Box<dyn Proposer> {
        Box::new(MtpProposer::new(Arc::clone(&self.block)))
    }

    fn gate(&self) -> Option<&Arc<RhoGate>> {
        Some(&self.gate)
    }

    fn blank_context(&self, len: usize) -> Option<SequenceState> {
        Some(nothing(len))
    }
}

/// What is saved of `len` positions: that they were seen. The block does without what its window held.
fn nothing(len: usize) -> SequenceState {
    let mut context = SequenceState::without_layers();
    context.advance(len);
    context
}

impl Proposer for MtpProposer {
    fn name(&self) -> &'static str {
        "mtp"
    }

    fn taps(&self) -> &[usize] {
        self.block.taps()
    }

    fn observe(&mut self, _model: &mut dyn Model, features: &[f32]) -> Result<(), DraftError> {
        self.pending.extend_from_slice(features);
        let (width, window) = (self.block.width().max(1), self.block.window());
        let rows = self.pending.len() / width;
        if rows > 2 * window {
            // No later prediction sees the rows before these.
            let gone = rows - window;
            let from = self.from() + gone;
            self.pending.drain(..gone * width);
            self.begin(from);
        }
        Ok(())
    }

    fn save(&mut self, _model: &mut dyn Model) -> Result<Option<SequenceState>, DraftError> {
        Ok(Some(nothing(self.seen())))
    }

    fn restore(&mut self, context: &SequenceState) {
        self.pending.clear();
        self.begin(context.position());
    }

    fn propose(&mut self, drafting: Drafting<'_>, out: &mut Proposed) -> Result<(), DraftError> {
        let (from, seen, end) = (self.from(), self.seen(), drafting.tokens.len());
        if seen + 1 != end {
            let need = end.saturating_sub(1);
            return Err(DraftError::Mismatch(format!(
                "features of {seen} positions where {need} are needed"
            )));
        }
        let Some(tokens) = drafting.tokens.get(from + 1..).filter(|tokens| !tokens.is_empty()) else {
            return Ok(());
        };
        let host = drafting.model.mtp_host();
        let host = host.ok_or_else(|| DraftError::Mismatch("no block is loaded".into()))?;
        let mut logits = host.predict(&mut self.context, &self.pending, tokens, LogitRows::Last)?;
        self.pending.clear();
        if drafting.most > 0 && logits.rows() > 0 {
            let token = drafting.picker.pick(logits.row_mut(0), end).ok_or(DraftError::NotFinite)?;
            out.tokens.push(token);
        }
        drafting.model.recycle(logits);
        Ok(())
    }
}
