//! A DFlash draft ([`mach_models::dflash`]) at work on one sequence.

use std::sync::Arc;

use mach_models::dflash::{DFlash, DraftNeeds};
use mach_models::{DraftError, DraftHost, DraftRows, Model, SequenceState};

use crate::{Draft, Drafting, Picker, Proposed, Proposer};

/// Feature rows that wait before they are projected, unless a block is drafted sooner: a sequence that ends, or whose
/// policy says no, pays little for its draft. Bounds the memory that they take.
const LAZY_ROWS: usize = DraftNeeds::WAITING;

/// Rows of one pass that do not wait: they are a prompt, and decoding should not pay for it.
const PROMPT_ROWS: usize = 32;

/// Drafts blocks with [`DFlash`].
#[derive(Debug)]
pub struct DFlashProposer {
    draft: Arc<DFlash>,
    context: SequenceState,
    pending: Vec<f32>,
}

impl DFlashProposer {
    /// For a new sequence.
    pub fn new(draft: Arc<DFlash>) -> Self {
        let context = draft.new_context();
        DFlashProposer { draft, context, pending: Vec::new() }
    }

    /// Positions whose features were seen.
    fn seen(&self) -> usize {
        let c = self.draft.config();
        self.context.position() + self.pending.len() / (c.target_layer_ids.len() * c.hidden_size)
    }

    fn commit(&mut self, host: &mut dyn DraftHost) -> Result<(), DraftError> {
        host.extend(&mut self.context, &self.pending)?;
        self.pending.clear();
        Ok(())
    }
}

impl Draft for DFlash {
    fn block_size(&self) -> usize {
        self.config().block_size
    }

    fn taps(&self) -> &[usize] {
        &self.config().target_layer_ids
    }

    fn proposer(self: Arc<Self>) -> Box<dyn Proposer> {
        Box::new(DFlashProposer::new(self))
    }

    fn context_bytes(&self, tokens: usize) -> usize {
        self.needs().sequence(tokens)
    }

    fn blank_context(&self, len: usize) -> Option<SequenceState> {
        Some(DFlash::blank_context(self, len))
    }
}

fn host(model: &mut dyn Model) -> Result<&mut dyn DraftHost, DraftError> {
    model.draft_host().ok_or_else(|| DraftError::Mismatch("no draft is loaded".into()))
}

impl Proposer for DFlashProposer {
    fn name(&self) -> &'static str {
        "dflash"
    }

    fn taps(&self) -> &[usize] {
        &self.draft.config().target_layer_ids
    }

    fn observe(&mut self, model: &mut dyn Model, features: &[f32], _: &[u32]) -> Result<(), DraftError> {
        let before = self.seen();
        self.pending.extend_from_slice(features);
        let seen = self.seen();
        if seen - before >= PROMPT_ROWS || seen - self.context.position() >= LAZY_ROWS {
            self.commit(host(model)?)?;
        }
        Ok(())
    }

    fn save(&mut self, model: &mut dyn Model, _: &[u32]) -> Result<Option<SequenceState>, DraftError> {
        self.commit(host(model)?)?;
        Ok(Some(self.context.clone()))
    }

    fn restore(&mut self, context: &SequenceState) {
        self.context = context.clone();
        self.pending.clear();
    }

    fn propose(&mut self, drafting: Drafting<'_>, out: &mut Proposed) -> Result<(), DraftError> {
        let Some((&anchor, before)) = drafting.tokens.split_last() else { return Ok(()) };
        if self.seen() != before.len() {
            let (seen, need) = (self.seen(), before.len());
            return Err(DraftError::Mismatch(format!(
                "features of {seen} positions where {need} are needed"
            )));
        }
        let host = host(drafting.model)?;
        self.commit(host)?;
        let block = (drafting.most + 1).min(self.draft.config().block_size);
        let mut rows = host.block(&mut self.context, anchor, block)?;
        let chosen = choose(&self.draft, &mut rows, anchor, drafting.picker, out);
        host.return_logits(rows.logits);
        chosen
    }
}

/// The tokens that a block's rows propose, chosen in order.
pub fn choose(
    draft: &DFlash,
    rows: &mut DraftRows,
    anchor: u32,
    picker: &mut dyn Picker,
    out: &mut Proposed,
) -> Result<(), DraftError> {
    let mut previous = anchor;
    for i in 0..rows.logits.rows() {
        let margin = match draft.selector() {
            Some(selector) => selector.score(rows, i, previous).ok_or(DraftError::NotFinite)?,
            None => rows.margins.get(i).copied().unwrap_or(0.0),
        };
        let position = rows.position + i;
        let token = picker.pick(rows.logits.row_mut(i), position).ok_or(DraftError::NotFinite)?;
        out.tokens.push(token);
        out.margins.push(margin);
        previous = token;
    }
    Ok(())
}
