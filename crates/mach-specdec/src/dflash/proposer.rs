//! A draft at work on one sequence.

use std::sync::Arc;

use mach_models::{DraftHost, Model};

use super::{DFlash, DraftContext, DraftWorkspace};
use crate::{Draft, DraftError, Drafting, Proposed, Proposer};

/// Feature rows that wait before they are projected, unless a block is drafted sooner: a sequence that ends, or whose
/// policy says no, pays little for its draft. Bounds the memory that they take.
const LAZY_ROWS: usize = 1024;

/// Rows of one pass that do not wait: they are a prompt, and decoding should not pay for it.
const PROMPT_ROWS: usize = 32;

/// Drafts blocks with [`DFlash`].
#[derive(Debug)]
pub struct DFlashProposer {
    draft: Arc<DFlash>,
    context: DraftContext,
    workspace: DraftWorkspace,
    pending: Vec<f32>,
}

impl DFlashProposer {
    /// For a new sequence.
    pub fn new(draft: Arc<DFlash>) -> Self {
        let (context, workspace) = (draft.new_context(), DraftWorkspace::default());
        DFlashProposer { draft, context, workspace, pending: Vec::new() }
    }

    /// Positions whose features were seen.
    fn seen(&self) -> usize {
        let c = self.draft.config();
        self.context.len() + self.pending.len() / (c.target_layer_ids.len() * c.hidden_size)
    }

    fn commit(&mut self, host: &mut dyn DraftHost) -> Result<(), DraftError> {
        self.draft.extend(host, &mut self.workspace, &mut self.context, &self.pending)?;
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

    fn blank_context(&self, len: usize) -> Option<DraftContext> {
        Some(DFlash::blank_context(self, len))
    }
}

fn host(model: &mut dyn Model) -> Result<&mut dyn DraftHost, DraftError> {
    model.draft_host().ok_or_else(|| DraftError::Mismatch("the model's family has no feature taps".into()))
}

impl Proposer for DFlashProposer {
    fn name(&self) -> &'static str {
        "dflash"
    }

    fn taps(&self) -> &[usize] {
        &self.draft.config().target_layer_ids
    }

    fn observe(&mut self, model: &mut dyn Model, features: &[f32]) -> Result<(), DraftError> {
        let before = self.seen();
        self.pending.extend_from_slice(features);
        let seen = self.seen();
        if seen - before >= PROMPT_ROWS || seen - self.context.len() >= LAZY_ROWS {
            self.commit(host(model)?)?;
        }
        Ok(())
    }

    fn save(&mut self, model: &mut dyn Model) -> Result<Option<DraftContext>, DraftError> {
        self.commit(host(model)?)?;
        Ok(Some(self.context.clone()))
    }

    fn restore(&mut self, context: &DraftContext) {
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
        let mut rows = self.draft.block(host, &mut self.workspace, &mut self.context, anchor, block)?;
        self.draft.choose(host, &mut rows, anchor, drafting.picker, out)?;
        host.return_logits(rows.logits);
        Ok(())
    }
}
