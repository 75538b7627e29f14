//! What speculation brought, for `/v1/stats`.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use crate::policy::{ALPHA_WINDOW, Cycle, Held};

/// Longest accepted run that the histogram tells apart.
const LONGEST: usize = 32;

/// Counts of one proposer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ProposerStats {
    /// Passes of the target while decoding, with a proposal or without.
    pub cycles: u64,
    /// Tokens proposed.
    pub drafted: u64,
    /// Tokens accepted.
    pub accepted: u64,
}

/// What the guard did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct GuardStats {
    /// Cycles in which it held something back.
    pub held_back: u64,
    /// Those in which a block became shorter.
    pub shortened: u64,
    /// Those in which there was none.
    pub skipped: u64,
}

/// Counts since the start.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SpecdecStats {
    /// Passes of the target while decoding.
    pub cycles: u64,
    /// Those with a proposal.
    pub observed_cycles: u64,
    /// Those for which the policy had chosen a reduced block.
    pub low_cycles: u64,
    /// Tokens proposed.
    pub specdec_drafted: u64,
    /// Tokens accepted.
    pub specdec_accepted: u64,
    /// Mean of accepted / proposed over the last cycles with a proposal.
    pub recent_alpha: Option<f64>,
    /// Cycles by number of accepted tokens.
    pub accepted_lengths: Vec<u64>,
    /// By position in the block: how often it was proposed, and accepted.
    pub positions: Vec<[u64; 2]>,
    /// By proposer.
    pub proposers: BTreeMap<&'static str, ProposerStats>,
    /// What the guard did.
    #[serde(skip)]
    pub guard: GuardStats,
    #[serde(skip)]
    recent: VecDeque<f64>,
}

impl SpecdecStats {
    /// Takes in a cycle; `proposer` is `None` for plain decoding.
    pub fn record(&mut self, proposer: Option<&'static str>, low: bool, held: Held, cycle: &Cycle) {
        self.cycles += 1;
        self.low_cycles += u64::from(low);
        self.guard.held_back += u64::from(held != Held::No);
        self.guard.shortened += u64::from(held == Held::Shortened);
        self.guard.skipped += u64::from(held == Held::Skipped);
        let Some(name) = proposer.filter(|_| cycle.proposed > 0) else { return };
        self.observed_cycles += 1;
        self.specdec_drafted += cycle.proposed as u64;
        self.specdec_accepted += cycle.accepted as u64;
        if self.recent.len() == ALPHA_WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(cycle.accepted as f64 / cycle.proposed as f64);
        self.recent_alpha = Some(self.recent.iter().sum::<f64>() / self.recent.len() as f64);
        bump(&mut self.accepted_lengths, cycle.accepted.min(LONGEST), |n| *n += 1);
        for position in 0..cycle.proposed.min(LONGEST) {
            let hit = u64::from(position < cycle.accepted);
            bump(&mut self.positions, position, |[seen, accepted]| {
                *seen += 1;
                *accepted += hit;
            });
        }
        let counts = self.proposers.entry(name).or_default();
        counts.cycles += 1;
        counts.drafted += cycle.proposed as u64;
        counts.accepted += cycle.accepted as u64;
    }
}

fn bump<T: Default + Clone>(list: &mut Vec<T>, at: usize, change: impl FnOnce(&mut T)) {
    if list.len() <= at {
        list.resize(at + 1, T::default());
    }
    list.get_mut(at).map(change);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycle(proposed: usize, accepted: usize) -> Cycle {
        Cycle { drafted: proposed, proposed, accepted, ..Cycle::default() }
    }

    #[test]
    fn every_cycle_counts_where_it_belongs() {
        let mut stats = SpecdecStats::default();
        stats.record(None, false, Held::No, &cycle(0, 0));
        stats.record(Some("copy"), false, Held::Skipped, &cycle(0, 0));
        stats.record(Some("copy"), true, Held::Shortened, &cycle(4, 4));
        stats.record(Some("dflash"), true, Held::No, &cycle(4, 1));
        stats.record(Some("dflash"), false, Held::No, &cycle(2, 0));
        stats.record(Some("dflash"), false, Held::Skipped, &cycle(40, 36));
        assert_eq!((stats.cycles, stats.observed_cycles, stats.low_cycles), (6, 4, 2));
        assert_eq!((stats.specdec_drafted, stats.specdec_accepted), (50, 41));
        assert_eq!(stats.guard, GuardStats { held_back: 3, shortened: 1, skipped: 2 });
        assert_eq!(stats.recent_alpha, Some((1.0 + 0.25 + 0.0 + 0.9) / 4.0));
        let lengths: Vec<_> = (0..).zip(&stats.accepted_lengths).filter(|(_, n)| **n > 0).collect();
        assert_eq!(lengths, [(0, &1), (1, &1), (4, &1), (LONGEST, &1)]);
        assert_eq!(stats.positions[..5], [[4, 3], [4, 2], [3, 2], [3, 2], [1, 1]]);
        assert_eq!((stats.positions.len(), stats.positions[LONGEST - 1]), (LONGEST, [1, 1]));
        let copy = ProposerStats { cycles: 1, drafted: 4, accepted: 4 };
        let dflash = ProposerStats { cycles: 3, drafted: 46, accepted: 37 };
        assert_eq!(stats.proposers, BTreeMap::from([("copy", copy), ("dflash", dflash)]));
    }

    #[test]
    fn only_the_last_cycles_are_recent() {
        let mut stats = SpecdecStats::default();
        for _ in 0..ALPHA_WINDOW {
            stats.record(Some("copy"), false, Held::No, &cycle(4, 4));
        }
        assert_eq!(stats.recent_alpha, Some(1.0));
        for _ in 0..ALPHA_WINDOW {
            stats.record(Some("copy"), false, Held::No, &cycle(4, 0));
        }
        assert_eq!(stats.recent_alpha, Some(0.0));
    }
}
