//! A model's own block for the token after the next ([`mach_models::mtp`]), or an EAGLE-3 head ([`mach_models::eagle3`]), at work on one
//! sequence.

use std::sync::Arc;

use mach_models::mtp::{Features, Mtp, MtpHost, Predicted};
use mach_models::{DraftError, DraftNeeds, LogitRows, Model, SequenceState};

use crate::policy::RhoGate;
use crate::{Draft, Drafting, Picker, Proposed, Proposer};

/// Most rows of a block, the anchor included. The block was trained for one token: of longer chains little is right.
const BLOCK: usize = 8;

/// Rows that one pass of the block takes in.
const CHUNK: usize = 256;

/// Rows of one pass of the target that do not wait: they are a prompt, and decoding should not pay for it.
const PROMPT_ROWS: usize = 32;

/// Proposes a chain of tokens: the first from what the model made of the last position, each other from what the block itself
/// made of the one before.
///
/// The block is shown the features of every position that the target keeps, with the token behind it. If its layer sees a
/// window only, it is shown the end of a long prompt. It has places of its own, for rotation tells distances alone: what
/// came before a position that it was not shown does not move it.
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

    fn width(&self) -> usize {
        self.block.width().max(1)
    }

    /// Position of the first pending row.
    fn from(&self) -> usize {
        self.first + self.context.position()
    }

    /// Positions whose features were seen.
    fn seen(&self) -> usize {
        self.from() + self.pending.len() / self.width()
    }

    /// Begins anew at a position.
    fn begin(&mut self, position: usize) {
        self.context = self.block.new_context();
        self.first = position;
    }

    /// Takes in the pending rows before position `end`; `tokens` has the one behind the last of them.
    fn commit(&mut self, host: &mut dyn MtpHost, tokens: &[u32], end: usize) -> Result<(), DraftError> {
        let width = self.width();
        while self.from() < end {
            let (from, rows) = (self.from(), (end - self.from()).min(CHUNK));
            let (Some(features), Some(tokens)) =
                (self.pending.get(..rows * width), tokens.get(from + 1..from + 1 + rows))
            else {
                return Err(DraftError::Mismatch(format!("no features or tokens of {end} positions")));
            };
            host.predict(&mut self.context, Features::Model(features), tokens, LogitRows::None)?;
            self.pending.drain(..rows * width);
        }
        Ok(())
    }
}

/// A model's own block, or a head, as the draft of its sequences.
#[derive(Debug)]
pub struct MtpDraft {
    block: Arc<Mtp>,
    gate: Option<Arc<RhoGate>>,
}

impl MtpDraft {
    /// Alone, or under a gate that all sequences share.
    pub fn new(block: Arc<Mtp>, gate: Option<Arc<RhoGate>>) -> Self {
        MtpDraft { block, gate }
    }
}

impl Draft for MtpDraft {
    fn block_size(&self) -> usize {
        BLOCK
    }

    fn taps(&self) -> &[usize] {
        self.block.taps()
    }

    fn proposer(self: Arc<Self>) -> Box<dyn Proposer> {
        Box::new(MtpProposer::new(Arc::clone(&self.block)))
    }

    fn context_bytes(&self, tokens: usize) -> usize {
        self.block.needs().sequence(tokens)
    }

    fn gate(&self) -> Option<&Arc<RhoGate>> {
        self.gate.as_ref()
    }

    fn blank_context(&self, len: usize) -> Option<SequenceState> {
        Some(match self.block.window() {
            Some(_) => nothing(len),
            None => self.block.blank_context(len),
        })
    }
}

/// What is saved of `len` positions where a window soon hides what the block made of them: that they were seen.
fn nothing(len: usize) -> SequenceState {
    let mut context = SequenceState::without_layers();
    context.advance(len);
    context
}

fn host_of(model: &mut dyn Model) -> Result<&mut dyn MtpHost, DraftError> {
    model.mtp_host().ok_or_else(|| DraftError::Mismatch("no block is loaded".into()))
}

impl Proposer for MtpProposer {
    fn name(&self) -> &'static str {
        self.block.name()
    }

    fn taps(&self) -> &[usize] {
        self.block.taps()
    }

    fn observe(&mut self, model: &mut dyn Model, features: &[f32], tokens: &[u32]) -> Result<(), DraftError> {
        let (width, before) = (self.width(), self.pending.len());
        self.block.take(features, &mut self.pending);
        let (rows, new) = (self.pending.len() / width, (self.pending.len() - before) / width);
        match self.block.window() {
            Some(window) if rows > 2 * window => {
                // No later prediction sees the rows before these.
                let gone = rows - window;
                let from = self.from() + gone;
                self.pending.drain(..gone * width);
                self.begin(from);
            }
            None if new >= PROMPT_ROWS || rows >= DraftNeeds::WAITING => {
                // The last row's token may not be known yet.
                let end = self.seen().min(tokens.len().saturating_sub(1));
                self.commit(host_of(model)?, tokens, end)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn save(&mut self, model: &mut dyn Model, tokens: &[u32]) -> Result<Option<SequenceState>, DraftError> {
        let seen = self.seen();
        if self.block.window().is_some() {
            return Ok(Some(nothing(seen)));
        }
        if self.first > 0 {
            return Ok(None);
        }
        let host = host_of(model)?;
        self.commit(host, tokens, seen.min(tokens.len().saturating_sub(1)))?;
        let mut saved = self.context.clone();
        if let (false, Some(token)) = (self.pending.is_empty(), tokens.last()) {
            // The token behind the last position is not chosen yet. What goes on from here may have any there, so that the
            // row is a guess for it in any case.
            let features = Features::Model(&self.pending);
            host.predict(&mut saved, features, std::slice::from_ref(token), LogitRows::None)?;
        }
        Ok(Some(saved))
    }

    fn restore(&mut self, context: &SequenceState) {
        self.pending.clear();
        self.begin(context.position());
        if self.block.window().is_none() {
            (self.context, self.first) = (context.clone(), 0);
        }
    }

    fn propose(&mut self, drafting: Drafting<'_>, out: &mut Proposed) -> Result<(), DraftError> {
        let Drafting { tokens, most, model, picker } = drafting;
        let (seen, end) = (self.seen(), tokens.len());
        if seen + 1 != end {
            let need = end.saturating_sub(1);
            return Err(DraftError::Mismatch(format!(
                "features of {seen} positions where {need} are needed"
            )));
        }
        if self.pending.is_empty() || most == 0 {
            return Ok(());
        }
        let host = host_of(model)?;
        if self.block.window().is_none() {
            // Of rows that nothing is asked of it needs less.
            self.commit(host, tokens, seen.saturating_sub(1))?;
        }
        let (features, behind) = (Features::Model(&self.pending), tokens.get(self.from() + 1..));
        let behind = behind.unwrap_or_default();
        let said = host.predict(&mut self.context, features, behind, LogitRows::Last)?;
        self.pending.clear();
        // What follows are guesses, and leaves no trace.
        let mark = self.block.mark(&self.context);
        let drafted = chain(model, &mut self.context, said, (most, end), picker, out);
        self.block.rewind(&mut self.context, mark);
        drafted
    }
}

/// Takes the tokens that a block says, up to `most` from position `end` on, and has it go on from each.
fn chain(
    model: &mut dyn Model,
    context: &mut SequenceState,
    mut said: Predicted,
    (most, end): (usize, usize),
    picker: &mut dyn Picker,
    out: &mut Proposed,
) -> Result<(), DraftError> {
    for at in 0..most {
        if said.logits.rows() == 0 {
            break;
        }
        let token = picker.pick(said.logits.row_mut(0), end + at).ok_or(DraftError::NotFinite)?;
        out.tokens.push(token);
        out.margins.push(said.margins.first().copied().unwrap_or(0.0));
        let Predicted { logits, own, .. } = std::mem::take(&mut said);
        model.recycle(logits);
        if at + 1 < most {
            said = host_of(model)?.predict(context, Features::Own(&own), &[token], LogitRows::Last)?;
        }
    }
    Ok(())
}
