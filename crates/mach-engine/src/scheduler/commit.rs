//! After a pass: drafts see it, what is worth keeping goes to the prefix cache, tokens are chosen and reported.

use std::panic::{AssertUnwindSafe, catch_unwind};

use mach_models::{Logits, Model};
use mach_specdec::Taps;
use tracing::error;

use super::admission::Admissions;
use super::panic_message;
use super::plan::Share;
use super::run::Ran;
use crate::prefix::Prefix;
use crate::sequence::Sequence;
use crate::{EngineError, TextTokenizer};

/// What committing works with.
pub(super) struct Desk<'a> {
    pub(super) model: &'a mut dyn Model,
    pub(super) tokenizer: &'a TextTokenizer,
    pub(super) prefix: Option<&'a Prefix>,
    pub(super) admissions: &'a mut Admissions,
    /// Features of the pass.
    pub(super) taps: &'a Taps,
}

/// What became of the active sequences.
#[derive(Debug, Default)]
pub(super) struct Committed {
    /// For each, whether it is complete.
    pub(super) done: Vec<bool>,
    /// Requests that failed by themselves.
    pub(super) failed: Vec<(u64, EngineError)>,
}

impl Desk<'_> {
    /// Commits a pass.
    pub(super) fn commit(
        &mut self,
        active: &mut [Sequence],
        shares: &[Share],
        mut ran: Ran,
    ) -> Result<Committed, EngineError> {
        for (sequence, rows) in active.iter_mut().zip(&ran.spans) {
            self.keep(sequence, rows.start, rows.end);
        }
        let mut committed = Committed::default();
        let mut row = 0;
        for (sequence, share) in active.iter_mut().zip(shares) {
            if !share.chooses {
                committed.done.push(self.warmed(sequence));
                continue;
            }
            if row >= ran.logits.rows() {
                return Err(EngineError::Model("a row of logits is missing".into()));
            }
            let chosen = self.choose(sequence, &mut ran.logits, row);
            committed.done.push(chosen.as_ref().is_ok_and(|&complete| complete));
            // No row of logits concerns anybody else.
            committed.failed.extend(chosen.err().map(|error| (sequence.request, error)));
            row += 1;
        }
        self.model.recycle(ran.logits);
        Ok(committed)
    }

    /// Copies that were taken inside the pass go to the cache, each when the draft has seen as much as it has.
    fn keep(&mut self, sequence: &mut Sequence, mut first: usize, end: usize) {
        for copy in sequence.state.take_copies() {
            let seen = (end + copy.position()).saturating_sub(sequence.state.position());
            sequence.observe(self.model, self.taps.rows(first..seen));
            first = seen;
            if let Some(prefix) = self.prefix {
                prefix.keep_copy(self.model, sequence, copy);
            }
        }
        sequence.observe(self.model, self.taps.rows(first..end));
    }

    /// Ends a sequence that was to compute its prompt alone, if it has.
    fn warmed(&mut self, sequence: &mut Sequence) -> bool {
        let warmed = sequence.reuse.warm && sequence.state.position() == sequence.tokens.len();
        if warmed {
            if let Some(prefix) = self.prefix {
                prefix.keep_end(self.model, sequence, None);
            }
            sequence.finish_warm();
            self.admissions.served(sequence.request);
        }
        warmed
    }

    /// Chooses the token after a sequence's last row.
    fn choose(
        &mut self,
        sequence: &mut Sequence,
        logits: &mut Logits,
        row: usize,
    ) -> Result<bool, EngineError> {
        if sequence.embeds {
            sequence.suspect = false;
            let values = self
                .taps
                .normed(row)
                .ok_or_else(|| EngineError::Model("a hidden state is missing".into()))?;
            sequence.finish_embedding(values);
            self.admissions.served(sequence.request);
            return Ok(true);
        }
        self.admissions.prompt_read(sequence, logits.row(row));
        let first = sequence.stats().completion_tokens == 0;
        if let Some(prefix) = self.prefix.filter(|_| first) {
            prefix.keep_end(self.model, sequence, Some(logits.row(row)));
        }
        sequence.suspect = false;
        let advance = AssertUnwindSafe(|| sequence.advance(logits.row_mut(row), None, self.tokenizer));
        let chosen = catch_unwind(advance).unwrap_or_else(|panic| {
            error!(reason = panic_message(panic.as_ref()), "choosing a token panicked");
            Err(EngineError::Model("internal error".into()))
        });
        if !first {
            sequence.stats.record(&Default::default());
        } else if let Some(prefix) = self.prefix {
            prefix.save(sequence);
        }
        chosen
    }
}
