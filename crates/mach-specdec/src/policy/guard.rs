//! What stands over a policy, so that it does not lose.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use super::cost_aware::CostAware;
use super::{BlockPolicy, Cycle, Experience};

/// Which guard, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GuardSpec {
    /// Blocks that cost more than they promise are shortened or skipped.
    #[default]
    CostAware,
    /// Blocks are what the policy says.
    Off,
}

impl fmt::Display for GuardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GuardSpec::CostAware => "cost-aware",
            GuardSpec::Off => "off",
        })
    }
}

impl FromStr for GuardSpec {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "cost-aware" => Ok(GuardSpec::CostAware),
            "off" => Ok(GuardSpec::Off),
            _ => Err(format!("unknown guard `{name}`; known: cost-aware, off")),
        }
    }
}

/// What a guard did to a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Held {
    /// The block was proposed as the policy had it.
    #[default]
    No,
    /// It has fewer rows than the policy chose.
    Shortened,
    /// There is none: plain decoding.
    Skipped,
}

/// A policy under the guard: the policy says how much to try, the guard how much of it is worth its time.
pub(super) struct Guarded {
    policy: Box<dyn BlockPolicy>,
    guard: CostAware,
    held: Held,
}

impl Guarded {
    /// For one proposer and one sequence.
    pub(super) fn new(
        policy: Box<dyn BlockPolicy>,
        proposer: &'static str,
        experience: &Arc<Mutex<Experience>>,
    ) -> Self {
        let guard = CostAware::new(proposer, Arc::clone(experience));
        Self { policy, guard, held: Held::No }
    }
}

impl BlockPolicy for Guarded {
    fn block(&mut self) -> usize {
        self.held = Held::No;
        let chosen = self.policy.block();
        if chosen < 2 {
            return chosen;
        }
        let rows = self.guard.block(chosen);
        self.held = match rows {
            0 | 1 => Held::Skipped,
            rows if rows < chosen => Held::Shortened,
            _ => Held::No,
        };
        rows
    }

    fn trim(&mut self, drafted: usize, margins: &[f32]) -> usize {
        let kept = self.guard.trim(drafted, margins).min(self.policy.trim(drafted, margins));
        self.held = self.held.max(match kept {
            0 => Held::Skipped,
            kept if kept < drafted => Held::Shortened,
            _ => Held::No,
        });
        kept
    }

    fn record(&mut self, cycle: &Cycle) {
        // A block that the guard made shorter was not the policy's, and says nothing of its own.
        if self.held == Held::No {
            self.policy.record(cycle);
        }
        self.guard.record(cycle);
    }

    fn low(&self) -> bool {
        self.policy.low()
    }

    fn held(&self) -> Held {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::super::PolicySpec;
    use super::*;

    /// Cycles of a draft whose first `good` tokens are right: rows of the policy's choice, rows drafted, and what the guard did.
    fn run(policy: PolicySpec, good: usize, per_row: f64) -> Vec<(usize, Held)> {
        let mut policy = policy.build("test", 16, GuardSpec::CostAware, &Arc::default());
        (0..200)
            .map(|_| {
                let rows = policy.block();
                let drafted = rows.saturating_sub(1);
                let proposed = if drafted == 0 { 0 } else { policy.trim(drafted, &[]) };
                policy.record(&Cycle {
                    drafted,
                    proposed,
                    accepted: good.min(proposed),
                    draft_seconds: if drafted > 0 { 0.1 } else { 0.0 },
                    verify_seconds: 1.0 + per_row * proposed as f64,
                });
                (rows, policy.held())
            })
            .collect()
    }

    #[test]
    fn names_go_both_ways() {
        for name in ["cost-aware", "off"] {
            assert_eq!(name.parse::<GuardSpec>().unwrap().to_string(), name);
        }
        assert!("x".parse::<GuardSpec>().unwrap_err().contains("cost-aware"));
    }

    #[test]
    fn the_policy_picks_and_the_guard_lets_be_what_pays() {
        let cycles = run(PolicySpec::OpencodeSampledV1, 15, 0.05);
        assert!(cycles[20..].iter().all(|&c| c == (16, Held::No)), "{cycles:?}");
        let cycles = run(PolicySpec::Fixed(8), 15, 0.05);
        assert!(cycles[20..].iter().all(|&c| c == (8, Held::No)), "{cycles:?}");
    }

    #[test]
    fn what_loses_is_shortened_or_skipped() {
        for policy in [PolicySpec::OpencodeSampledV1, PolicySpec::CostAware, PolicySpec::Fixed(16)] {
            let cycles = run(policy, 0, 0.5);
            let skipped =
                cycles[50..].iter().filter(|&&(rows, held)| rows < 2 && held == Held::Skipped).count();
            assert!(skipped >= 147, "{policy}: {cycles:?}");
        }
        let cycles = run(PolicySpec::Fixed(16), 3, 0.2);
        assert!(cycles[50..].iter().all(|&(rows, held)| rows <= 5 && held == Held::Shortened), "{cycles:?}");
    }

    #[test]
    fn the_policy_learns_from_its_own_blocks() {
        // Verifying is free, so nothing is held back, whatever is accepted.
        let cycles = run(PolicySpec::OpencodeSampledV1, 4, 0.0);
        let rows: Vec<usize> = cycles[20..].iter().filter(|c| c.1 == Held::No).map(|c| c.0).collect();
        assert!(rows.contains(&4) && rows.iter().all(|rows| [4, 16].contains(rows)), "{cycles:?}");
    }

    #[test]
    fn without_it_the_policy_decides() {
        let mut policy = PolicySpec::Fixed(16).build("test", 16, GuardSpec::Off, &Arc::default());
        for _ in 0..50 {
            assert_eq!((policy.block(), policy.trim(15, &[0.0; 15]), policy.held()), (16, 15, Held::No));
            policy.record(&Cycle { drafted: 15, proposed: 15, verify_seconds: 99.0, ..Cycle::default() });
        }
        // It stands over this one always.
        let mut policy = PolicySpec::CostAware.build("test", 16, GuardSpec::Off, &Arc::default());
        assert_eq!((policy.block(), policy.held()), (0, Held::Skipped), "the plain cost is measured first");
    }
}
