//! What the engine did since its start.

use std::time::Duration;

use mach_specdec::SpecdecStats;
use mach_specdec::policy::Cycle;

/// Counts and times.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EngineStats {
    /// Choices that have ended.
    pub finished: u64,
    /// Choices at work now.
    pub active: usize,
    /// Bytes of their state, as the budget counts them.
    pub state_bytes: usize,
    /// Tokens that decode passes brought, prompts' first tokens not counted.
    pub decode_tokens: u64,
    /// Time of those passes, proposals included.
    pub decode_time: Duration,
    /// Decode passes that several sequences shared.
    pub batched_passes: u64,
    /// Tokens that those brought.
    pub batched_tokens: u64,
    /// Times that a sequence gave up its state to older ones, for want of memory.
    pub preemptions: u64,
    /// Sequences that wait to have their state again.
    pub paused: usize,
    /// What was proposed and accepted, and what the guard held back.
    pub specdec: SpecdecStats,
    /// Tokens that were held to a grammar, of choices that have ended.
    pub guided_tokens: u64,
    /// Time that took.
    pub guide_time: Duration,
    /// The choice that ended last.
    pub last: Option<RequestStats>,
}

/// One choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestStats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of them those that the prefix cache brought.
    pub cached_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
    /// From the first token to the last.
    pub decode_time: Duration,
    /// Tokens proposed.
    pub drafted: u64,
    /// Tokens accepted.
    pub accepted: u64,
    /// Passes of the model.
    pub cycles: u64,
    /// Tokens that were held to a grammar.
    pub guided_tokens: u64,
    /// Time that took.
    pub guide_time: Duration,
}

impl EngineStats {
    /// Counts a decode pass.
    pub(crate) fn decoded(&mut self, tokens: usize, took: Duration) {
        self.decode_tokens += tokens as u64;
        self.decode_time += took;
    }

    /// Counts a choice that has ended.
    pub(crate) fn ended(&mut self, choice: RequestStats) {
        self.finished += 1;
        self.guided_tokens += choice.guided_tokens;
        self.guide_time += choice.guide_time;
        self.last = Some(choice);
    }
}

impl RequestStats {
    /// Takes in a pass.
    pub(crate) fn record(&mut self, cycle: &Cycle) {
        self.cycles += 1;
        self.drafted += cycle.proposed as u64;
        self.accepted += cycle.accepted as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_choices_did_adds_up() {
        let mut stats = EngineStats::default();
        stats.decoded(3, Duration::from_millis(20));
        stats.decoded(1, Duration::from_millis(5));
        assert_eq!((stats.decode_tokens, stats.decode_time), (4, Duration::from_millis(25)));
        let mut choice = RequestStats { guided_tokens: 7, ..RequestStats::default() };
        choice.guide_time = Duration::from_millis(2);
        choice.record(&Cycle { proposed: 5, accepted: 2, ..Cycle::default() });
        choice.record(&Cycle { proposed: 1, accepted: 1, ..Cycle::default() });
        assert_eq!((choice.cycles, choice.drafted, choice.accepted), (2, 6, 3));
        stats.ended(choice);
        stats.ended(choice);
        assert_eq!((stats.finished, stats.guided_tokens), (2, 14));
        assert_eq!((stats.guide_time, stats.last), (Duration::from_millis(4), Some(choice)));
    }
}
