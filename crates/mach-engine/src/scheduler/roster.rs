//! The sequences: who is at work, and who gave up its state for want of memory.

use std::collections::VecDeque;
use std::time::Duration;

use mach_models::{Model, SequenceState};
use tracing::{debug, warn};

use super::plan::{Active, Paused};
use crate::EngineError;
use crate::prefix::Prefix;
use crate::sequence::Sequence;

/// Shared passes that may fail with a sequence in them before it is given up.
const STRIKES: u8 = 3;

/// All sequences that have started and are not complete.
#[derive(Debug, Default)]
pub(super) struct Roster {
    /// At work, in the order in which they joined.
    pub(super) active: Vec<Sequence>,
    /// They gave up their state to older ones; oldest first.
    paused: VecDeque<Sequence>,
}

impl Roster {
    /// What the plan needs to know of them.
    pub(super) fn planned(&self) -> (Vec<Active>, Vec<Paused>) {
        let paused = |s: &Sequence| Paused { tokens: s.tokens.len(), limit: s.limit };
        (self.active.iter().map(Sequence::planned).collect(), self.paused.iter().map(paused).collect())
    }

    /// How many are at work, and how many are paused.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.active.len(), self.paused.len())
    }

    fn all(&self) -> impl Iterator<Item = &Sequence> {
        self.active.iter().chain(&self.paused)
    }

    /// Numbers of their requests.
    pub(super) fn requests(&self) -> impl Iterator<Item = u64> {
        self.all().map(|s| s.request)
    }

    /// Numbers of the requests that have taken `limit` or longer.
    pub(super) fn late(&self, limit: Duration) -> Vec<u64> {
        let mut late: Vec<u64> =
            self.all().filter(|s| s.submitted().elapsed() >= limit).map(|s| s.request).collect();
        late.sort_unstable();
        late.dedup();
        late
    }

    /// Forgets whoever went away. They may come back and have the answer go on.
    pub(super) fn drop_the_gone(&mut self, model: &mut dyn Model, prefix: Option<&Prefix>) {
        if let Some(prefix) = prefix {
            for sequence in self.active.iter_mut().filter(|s| s.cancelled() && s.decoding()) {
                prefix.keep_turn(model, sequence);
            }
        }
        self.active.retain(|s| !s.cancelled());
        self.paused.retain(|s| !s.cancelled());
    }

    /// The sequence at work at this place gives up its state.
    pub(super) fn pause(&mut self, index: usize) {
        let mut sequence = self.active.remove(index);
        debug!(request = sequence.request, tokens = sequence.tokens.len(), "paused for want of memory");
        sequence.state = SequenceState::without_layers();
        self.paused.push_front(sequence);
    }

    /// The sequence that has been paused for longest computes its state again.
    pub(super) fn resume(&mut self, model: &dyn Model, prefix: Option<&Prefix>) {
        if let Some(mut sequence) = self.paused.pop_front() {
            start_over(&mut sequence, model, prefix);
            self.active.push(sequence);
        }
    }

    /// Lets go of those at work that are `done`.
    pub(super) fn retire(
        &mut self,
        done: &[bool],
        model: &mut dyn Model,
        prefix: Option<&Prefix>,
    ) -> Vec<Sequence> {
        if let Some(prefix) = prefix {
            for (sequence, done) in self.active.iter_mut().zip(done) {
                match done {
                    true => prefix.keep_turn(model, sequence),
                    false => prefix.keep_progress(model, sequence),
                }
            }
        }
        let mut done = done.iter().copied();
        self.active.extract_if(.., |_| done.next().unwrap_or(false)).collect()
    }

    /// After a pass that failed: the requests to be given up. Whoever was in it alone is at fault; those that shared it start
    /// over and show one by one that they are not.
    pub(super) fn recover(&mut self, model: &dyn Model, prefix: Option<&Prefix>) -> Vec<u64> {
        let culprit = match self.active.as_slice() {
            [only] => Some(only),
            several => several.iter().find(|sequence| sequence.suspect),
        };
        if let Some(culprit) = culprit {
            return vec![culprit.request];
        }
        warn!(sequences = self.active.len(), "computing the sequences of the failed pass again, one by one");
        for sequence in &mut self.active {
            start_over(sequence, model, prefix);
            sequence.suspect = true;
            sequence.strikes += 1;
        }
        self.active.iter().filter(|s| s.strikes > STRIKES).map(|s| s.request).collect()
    }

    /// Forgets a request; whether its client was told `error`.
    pub(super) fn fail(&mut self, number: u64, error: &EngineError) -> bool {
        if let Some(sequence) = self.all().find(|s| s.request == number) {
            sequence.fail(error);
        }
        let before = self.counts();
        self.active.retain(|s| s.request != number);
        self.paused.retain(|s| s.request != number);
        self.counts() != before
    }
}

/// Drops a sequence's state, so that its tokens are computed again from the longest prefix that is known.
fn start_over(sequence: &mut Sequence, model: &dyn Model, prefix: Option<&Prefix>) {
    let (state, draft) = match prefix {
        Some(prefix) => prefix.resume(sequence, model),
        None => (model.new_state(), None),
    };
    sequence.state = state;
    // The draft was shown these positions once; what it kept of them may be torn.
    sequence.speculator.restore(draft.as_ref());
}
