//! The proposers of one sequence, each with its own policy, in order of preference.

use std::time::{Duration, Instant};

use mach_models::{Model, SequenceState};

use crate::policy::{BlockPolicy, Cycle, Held};
use crate::{Drafting, Picker, Proposed, Proposer, Verified};

/// A proposer and how much it may try.
pub struct Lane {
    proposer: Box<dyn Proposer>,
    policy: Box<dyn BlockPolicy>,
    failed: bool,
}

impl Lane {
    /// A lane.
    pub fn new(proposer: Box<dyn Proposer>, policy: Box<dyn BlockPolicy>) -> Self {
        Lane { proposer, policy, failed: false }
    }
}

/// What is to be tried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proposal {
    lane: Option<usize>,
    /// Who proposed it.
    pub proposer: Option<&'static str>,
    /// The tokens; none for plain decoding.
    pub tokens: Vec<u32>,
    /// A policy had chosen a reduced block.
    pub low: bool,
    /// What the guard did to it.
    pub held: Held,
    drafted: usize,
    took: Duration,
}

impl Proposal {
    /// Keeps the first `len` tokens; without any, it is as if nothing had been proposed.
    pub fn truncate(&mut self, len: usize) {
        self.tokens.truncate(len);
        if self.tokens.is_empty() {
            *self = Self { low: self.low, held: self.held, took: self.took, ..Self::default() };
        }
    }
}

/// Speculation of one sequence.
#[derive(Default)]
pub struct Speculator {
    lanes: Vec<Lane>,
    failure: Option<String>,
}

impl std::fmt::Debug for Speculator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.lanes.iter().map(|lane| lane.proposer.name())).finish()
    }
}

impl Speculator {
    /// With these lanes; the first that proposes anything is followed.
    pub fn new(lanes: Vec<Lane>) -> Self {
        Speculator { lanes, failure: None }
    }

    /// Nothing will ever be proposed.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.failed)
    }

    /// Target layers whose features [`observe`](Self::observe) wants.
    pub fn taps(&self) -> &[usize] {
        let wanted = |lane: &&Lane| !lane.failed && !lane.proposer.taps().is_empty();
        self.lanes.iter().find(wanted).map_or(&[], |lane| lane.proposer.taps())
    }

    /// Why a proposer was given up, once.
    pub fn take_failure(&mut self) -> Option<String> {
        self.failure.take()
    }

    /// Hands on the features of positions that are there to stay, and the sequence's tokens as far as they are known.
    pub fn observe(&mut self, model: &mut dyn Model, features: &[f32], tokens: &[u32]) {
        for lane in self.lanes.iter_mut().filter(|lane| !lane.failed && !lane.proposer.taps().is_empty()) {
            if let Err(error) = lane.proposer.observe(model, features, tokens) {
                lane.failed = true;
                self.failure = Some(format!("{}: {error}", lane.proposer.name()));
            }
        }
    }

    /// A copy of what the draft keeps of the positions seen so far, if it keeps anything; `tokens` as in
    /// [`observe`](Self::observe).
    pub fn save(&mut self, model: &mut dyn Model, tokens: &[u32]) -> Option<SequenceState> {
        let wanted = |lane: &&mut Lane| !lane.failed && !lane.proposer.taps().is_empty();
        let lane = self.lanes.iter_mut().find(wanted)?;
        lane.proposer.save(model, tokens).unwrap_or_else(|error| {
            lane.failed = true;
            self.failure = Some(format!("{}: {error}", lane.proposer.name()));
            None
        })
    }

    /// Starts with positions that the draft will not be shown. Without a copy of what it kept of them, it is given up
    /// silently.
    pub fn restore(&mut self, context: Option<&SequenceState>) {
        for lane in self.lanes.iter_mut().filter(|lane| !lane.proposer.taps().is_empty()) {
            match context {
                Some(context) => lane.proposer.restore(context),
                None => lane.failed = true,
            }
        }
    }

    /// Asks the lanes in turn for at most `most` tokens to follow `tokens`. A proposer that fails is not asked again.
    /// Nothing is proposed behind one of the tokens `last`.
    pub fn propose(
        &mut self,
        tokens: &[u32],
        last: &[u32],
        most: usize,
        model: &mut dyn Model,
        picker: &mut dyn Picker,
    ) -> Proposal {
        let mut proposal = Proposal::default();
        let vocab = model.config().vocab_size;
        let started = Instant::now();
        for (index, lane) in self.lanes.iter_mut().enumerate().filter(|(_, lane)| !lane.failed) {
            let wanted = lane.policy.block().saturating_sub(1).min(most);
            proposal.low |= lane.policy.low();
            if wanted == 0 {
                proposal.held = proposal.held.max(lane.policy.held());
                continue;
            }
            let drafting = Drafting { tokens, most: wanted, model: &mut *model, picker: &mut *picker };
            let mut out = Proposed::default();
            if let Err(error) = lane.proposer.propose(drafting, &mut out) {
                lane.failed = true;
                self.failure = Some(format!("{}: {error}", lane.proposer.name()));
                continue;
            }
            out.truncate(wanted);
            let drafted = out.tokens.len();
            let outside = |id: &u32| *id as usize >= vocab;
            out.truncate(out.tokens.iter().position(outside).unwrap_or(out.tokens.len()));
            let end = out.tokens.iter().position(|id| last.contains(id)).map(|end| end + 1);
            out.truncate(end.unwrap_or(out.tokens.len()));
            if !out.tokens.is_empty() {
                out.truncate(lane.policy.trim(out.tokens.len(), &out.margins));
                proposal.held = lane.policy.held();
                (proposal.lane, proposal.proposer) = (Some(index), Some(lane.proposer.name()));
                (proposal.tokens, proposal.drafted) = (out.tokens, drafted);
                break;
            }
        }
        proposal.took = started.elapsed();
        proposal
    }

    /// Tells the policies what came of it; returns the cycle for statistics.
    pub fn record(&mut self, proposal: &Proposal, verified: &Verified, verify: Duration) -> Cycle {
        let plain = Cycle { verify_seconds: verify.as_secs_f64(), ..Cycle::default() };
        let cycle = Cycle {
            drafted: proposal.drafted,
            proposed: verified.proposed,
            accepted: verified.accepted,
            draft_seconds: proposal.took.as_secs_f64(),
            ..plain
        };
        match proposal.lane.and_then(|index| self.lanes.get_mut(index)) {
            Some(lane) => lane.policy.record(&cycle),
            None => {
                if let Some(lane) = self.lanes.first_mut() {
                    lane.policy.record(&plain);
                }
            }
        }
        cycle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proposal_without_tokens_is_as_if_there_had_been_none() {
        let whole = Proposal {
            lane: Some(1),
            proposer: Some("copy"),
            tokens: vec![1, 2, 3],
            low: true,
            held: Held::Shortened,
            drafted: 3,
            took: Duration::from_millis(5),
        };
        let mut cut = whole.clone();
        cut.truncate(2);
        assert_eq!(cut, Proposal { tokens: vec![1, 2], ..whole.clone() });
        cut.truncate(0);
        let nothing = Proposal { lane: None, proposer: None, tokens: Vec::new(), drafted: 0, ..whole };
        assert_eq!(cut, nothing, "what it cost and what held it back is still known");
    }
}
