//! What the sequences of a model learn from each other.

use std::collections::BTreeMap;

use super::calibration::Calibration;
use super::costs::Line;
use super::{Costs, Cycle};

/// How much an old cycle counts beside the next one of the same proposer.
const MEMORY: f64 = 0.98;

/// Costs of the target's passes, and what is known of each proposer.
#[derive(Debug, Clone, Default)]
pub struct Experience {
    pub(super) costs: Costs,
    proposers: BTreeMap<&'static str, Known>,
}

impl Experience {
    pub(super) fn of(&mut self, proposer: &'static str) -> &mut Known {
        self.proposers.entry(proposer).or_default()
    }
}

/// How much an old trial counts beside the next one, and what is assumed before the first.
const TRIAL_MEMORY: f64 = 0.85;
const HOPE: f64 = 0.6;

/// Share of trials that paid, fading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trials(f64);

impl Default for Trials {
    fn default() -> Self {
        Trials(HOPE)
    }
}

impl Trials {
    pub(super) fn record(&mut self, paid: bool) {
        self.0 = TRIAL_MEMORY * self.0 + (1.0 - TRIAL_MEMORY) * f64::from(u8::from(paid));
    }

    /// Whether the next one probably pays.
    pub(super) fn hopeful(self) -> bool {
        self.0 >= 0.5
    }
}

/// What is known of a proposer.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Trials of all sequences.
    pub(super) trials: Trials,
    /// Seconds of its work by rows of the block.
    pub(super) work: Line,
    pub(super) calibration: Calibration,
    /// Acceptance by position, over all sequences.
    pub(super) chances: Chances,
}

/// Acceptance by position, given that all before was accepted: times reached and times accepted, fading.
#[derive(Debug, Clone, Default)]
pub(super) struct Chances {
    counts: Vec<(f64, f64)>,
}

impl Chances {
    /// Takes in a block; `untried` are the chances of the tokens that were drafted and not verified.
    pub(super) fn record(&mut self, cycle: &Cycle, untried: &[f64], memory: f64) {
        let mut add = |i: usize, weight: f64, chance: f64| {
            if self.counts.len() <= i {
                self.counts.resize(i + 1, (0.0, 0.0));
            }
            if let Some((reached, accepted)) = self.counts.get_mut(i) {
                (*reached, *accepted) = (*reached * memory + weight, *accepted * memory + weight * chance);
            }
        };
        for i in 0..cycle.proposed.min(cycle.accepted + 1) {
            add(i, 1.0, if i < cycle.accepted { 1.0 } else { 0.0 });
        }
        if cycle.accepted == cycle.proposed {
            let mut reach = 1.0;
            for (i, &chance) in untried.iter().enumerate() {
                add(cycle.proposed + i, reach, chance);
                reach *= chance;
            }
        }
    }

    /// As [`record`](Self::record), for what all sequences share.
    pub(super) fn share(&mut self, cycle: &Cycle, untried: &[f64]) {
        self.record(cycle, untried, MEMORY);
    }

    /// The chance at position `i`; `prior` counts for `weight` cycles.
    pub(super) fn at(&self, i: usize, prior: f64, weight: f64) -> f64 {
        let (reached, accepted) = self.counts.get(i).copied().unwrap_or_default();
        (accepted + weight * prior) / (reached + weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hope_fades_and_comes_back() {
        let mut trials = Trials::default();
        assert!(trials.hopeful());
        trials.record(false);
        trials.record(false);
        assert!(!trials.hopeful(), "0.6 * 0.85^2 is less than a half");
        trials.record(true);
        assert!(trials.hopeful(), "0.4335 * 0.85 + 0.15 is more");
    }

    #[test]
    fn chances_are_those_of_positions_that_were_reached() {
        let mut chances = Chances::default();
        assert_eq!(chances.at(0, 0.7, 2.0), 0.7, "nothing was seen");
        let cycle = |proposed, accepted| Cycle { drafted: 4, proposed, accepted, ..Cycle::default() };
        // Two were right, the third was wrong; what would have followed is not known.
        chances.record(&cycle(4, 2), &[], 1.0);
        assert_eq!(chances.counts, [(1.0, 1.0), (1.0, 1.0), (1.0, 0.0)]);
        // Both of two were right; two more were drafted, with these chances.
        chances.record(&cycle(2, 2), &[0.5, 0.25], 0.5);
        assert_eq!(chances.counts, [(1.5, 1.5), (1.5, 1.5), (1.5, 0.5), (0.5, 0.125)]);
        assert_eq!(chances.at(2, 1.0, 0.5), 0.5);
        // Of one that failed nothing is guessed.
        chances.record(&cycle(1, 0), &[0.5], 1.0);
        assert_eq!(chances.counts[..2], [(2.5, 1.5), (1.5, 1.5)]);
        chances.share(&cycle(1, 1), &[]);
        assert!((chances.counts[0].0 - (2.5 * MEMORY + 1.0)).abs() < 1e-12);
    }
}
