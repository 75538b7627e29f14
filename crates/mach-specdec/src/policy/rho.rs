//! A gate over a model's own block: it drafts while that gains more than it costs.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::{BlockPolicy, Cycle, Held};

/// How much an old cycle counts beside the next one.
const MEMORY: f64 = 0.95;

/// Cycles with a proposal before anything is concluded.
const LEAST: u32 = 8;

/// While the gate is shut, one cycle in so many drafts, to see whether it should open.
const TRY_EVERY: u32 = 32;

/// While it is open, one in so many is plain, to know what a plain one costs.
const PLAIN_EVERY: u32 = 64;

/// Chance that a token is right whose position was never proposed, and the cycles that this guess counts for.
const GUESS: f64 = 0.5;
const PRIOR: f64 = 2.0;

/// Least marginal cost, as a share of a plain pass, that is told from none.
const LEAST_COST: f64 = 1e-3;

#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    value: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.value = if self.count == 0 { value } else { MEMORY * self.value + (1.0 - MEMORY) * value };
        self.count = self.count.saturating_add(1);
    }
}

#[derive(Debug, Default)]
struct Known {
    /// Seconds of a plain cycle.
    plain: Mean,
    /// Seconds of a cycle with a proposal, its making included.
    drafted: Mean,
    /// Tokens that such a cycle gained beyond the one of a plain cycle.
    gained: Mean,
    /// Tokens that it proposed.
    proposed: Mean,
    /// By position in the block: how often all before it were right, and how often it was as well; fading.
    positions: Vec<(f64, f64)>,
    /// Cycles that drafted.
    cycles: u32,
    /// Cycles since the last of the rarer kind.
    since: u32,
}

impl Known {
    fn rho(&self) -> Option<f64> {
        if self.drafted.count < LEAST || self.plain.count == 0 || self.plain.value <= 0.0 {
            return None;
        }
        Some(self.gained.value / self.cost())
    }

    /// What a cycle with a proposal costs more than a plain one, in plain ones.
    fn cost(&self) -> f64 {
        ((self.drafted.value - self.plain.value) / self.plain.value).max(LEAST_COST)
    }

    /// How many of `most` tokens are worth proposing: each of them as long as the chance that it and all before it are right
    /// is at least `threshold` times what a token costs.
    fn worth(&self, most: usize, threshold: f64) -> usize {
        if self.rho().is_none() {
            return most.min(1);
        }
        let least = threshold * self.cost() / self.proposed.value.max(1.0);
        let mut reach = 1.0;
        let worth = |i: &usize| {
            let (seen, right) = self.positions.get(*i).copied().unwrap_or_default();
            reach *= (right + PRIOR * GUESS) / (seen + PRIOR);
            reach >= least
        };
        let tokens = (0..most).take_while(worth).count();
        // Now and then one more, to see whether it has become worth it.
        let more = usize::from(self.cycles % TRY_EVERY == TRY_EVERY - 1);
        (tokens.max(1) + more).min(most)
    }
}

/// Lets a block draft while `rho`, the tokens that a cycle is expected to gain over what its further rows and the drafting cost
/// (in plain cycles), is at least a threshold. Above 1 drafting is faster than not drafting. By the same measure blocks are
/// made shorter than the policy has them. All sequences share it.
#[derive(Debug)]
pub struct RhoGate {
    threshold: f64,
    known: Mutex<Known>,
}

/// The gate as it stands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RhoStatus {
    /// What `rho` must reach.
    pub threshold: f64,
    /// Measured; nothing while too little was.
    pub rho: Option<f64>,
    /// Whether cycles draft, single ones to try aside.
    pub open: bool,
}

impl RhoGate {
    /// With a threshold; 0 always drafts.
    pub fn new(threshold: f64) -> Self {
        RhoGate { threshold, known: Mutex::default() }
    }

    /// As it stands.
    pub fn status(&self) -> RhoStatus {
        let rho = self.known.lock().unwrap_or_else(PoisonError::into_inner).rho();
        RhoStatus { threshold: self.threshold, rho, open: rho.is_none_or(|rho| rho >= self.threshold) }
    }

    /// Puts it over a policy.
    pub fn over(self: &Arc<Self>, policy: Box<dyn BlockPolicy>) -> Box<dyn BlockPolicy> {
        Box::new(Gated { policy, gate: Arc::clone(self), held: Held::No })
    }

    /// Whether the next cycle drafts.
    fn admits(&self) -> bool {
        if self.threshold <= 0.0 {
            return true;
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let open = known.rho().is_none_or(|rho| rho >= self.threshold);
        let rare = if open { PLAIN_EVERY } else { TRY_EVERY };
        known.since += 1;
        // A plain cycle comes first, for nothing can be concluded without one.
        if known.since >= rare || (open && known.plain.count == 0) {
            known.since = 0;
            return !open;
        }
        open
    }

    /// Rows of a cycle that drafts, of those that a policy chose.
    fn rows(&self, chosen: usize) -> usize {
        if self.threshold <= 0.0 || chosen < 2 {
            return chosen;
        }
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        1 + known.worth(chosen - 1, self.threshold)
    }

    fn record(&self, cycle: &Cycle) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if cycle.proposed > 0 {
            known.drafted.add(cycle.draft_seconds + cycle.verify_seconds);
            known.gained.add(cycle.accepted as f64);
            known.proposed.add(cycle.proposed as f64);
            known.cycles = known.cycles.wrapping_add(1);
            let reached = cycle.proposed.min(cycle.accepted + 1);
            if known.positions.len() < reached {
                known.positions.resize(reached, (0.0, 0.0));
            }
            for (i, (seen, right)) in known.positions.iter_mut().enumerate().take(reached) {
                *seen = MEMORY * *seen + 1.0;
                *right = MEMORY * *right + f64::from(u8::from(i < cycle.accepted));
            }
        } else if cycle.drafted == 0 && cycle.verify_seconds > 0.0 {
            known.plain.add(cycle.verify_seconds);
        }
    }
}

struct Gated {
    policy: Box<dyn BlockPolicy>,
    gate: Arc<RhoGate>,
    held: Held,
}

impl BlockPolicy for Gated {
    fn block(&mut self) -> usize {
        let chosen = self.policy.block();
        let rows = if chosen >= 2 && !self.gate.admits() { 1 } else { self.gate.rows(chosen) };
        self.held = match rows {
            0 | 1 if chosen >= 2 => Held::Skipped,
            _ if rows < chosen => Held::Shortened,
            _ => self.policy.held(),
        };
        rows
    }

    fn trim(&mut self, drafted: usize, margins: &[f32]) -> usize {
        self.policy.trim(drafted, margins)
    }

    fn record(&mut self, cycle: &Cycle) {
        self.gate.record(cycle);
        // A block that was made shorter was not the policy's, and says nothing of its own.
        if self.held == Held::No {
            self.policy.record(cycle);
        }
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
    use super::super::Fixed;
    use super::*;

    /// Cycles of a block whose proposals are right every `of`th time and cost `cost` of a plain cycle: how many drafted.
    fn run(gate: &Arc<RhoGate>, cycles: usize, of: usize, cost: f64) -> usize {
        let mut policy = gate.over(Box::new(Fixed(2)));
        let mut drafted = 0;
        for _ in 0..cycles {
            let cycle = if policy.block() >= 2 {
                drafted += 1;
                let accepted = usize::from(drafted % of == 0);
                let verify_seconds = 1.0 + cost;
                Cycle { drafted: 1, proposed: 1, accepted, verify_seconds, ..Cycle::default() }
            } else {
                Cycle { verify_seconds: 1.0, ..Cycle::default() }
            };
            policy.record(&cycle);
        }
        drafted
    }

    #[test]
    fn a_block_that_loses_stops_and_one_that_wins_goes_on() {
        let gate = Arc::new(RhoGate::new(1.0));
        assert_eq!(gate.status(), RhoStatus { threshold: 1.0, rho: None, open: true });
        // Half of the tokens for a tenth of the time.
        let won = run(&gate, 640, 2, 0.1);
        let status = gate.status();
        assert!(won > 620 && status.open && status.rho.is_some_and(|rho| rho > 3.0), "{won} {status:?}");
        // A tenth of the tokens for half of the time: it shuts, and tries now and then.
        let lost = run(&gate, 640, 10, 0.5);
        let status = gate.status();
        assert!(lost > 20 && lost < 120 && !status.open, "{lost} {status:?}");
        // It opens again when things get better.
        let again = run(&gate, 2000, 1, 0.1);
        assert!(again > 800 && gate.status().open, "{again} {:?}", gate.status());
    }

    /// Blocks of up to 8 rows of which so many tokens are always right, each of whose rows costs `cost` of a plain cycle: the
    /// mean of the tokens proposed in the last half, and whether the policy saw shortened blocks.
    fn chains(right: usize, cost: f64) -> f64 {
        let gate = Arc::new(RhoGate::new(1.0));
        let mut policy = gate.over(Box::new(Fixed(8)));
        let (mut drafts, mut tokens) = (0, 0);
        for cycle in 0..800 {
            let proposed = policy.block().saturating_sub(1);
            let accepted = proposed.min(right);
            let verify_seconds = 1.0 + cost * proposed as f64;
            if cycle >= 400 && proposed > 0 {
                (drafts, tokens) = (drafts + 1, tokens + proposed);
            }
            assert_eq!(policy.held() == Held::Shortened, (1..7).contains(&proposed), "{proposed}");
            policy.record(&Cycle {
                drafted: proposed,
                proposed,
                accepted,
                verify_seconds,
                ..Cycle::default()
            });
        }
        tokens as f64 / f64::from(drafts.max(1))
    }

    #[test]
    fn chains_are_as_long_as_each_token_is_worth_its_row() {
        let (none, one, three, all) = (chains(0, 0.3), chains(1, 0.3), chains(3, 0.3), chains(7, 0.3));
        assert!(none < 1.2, "{none}");
        assert!((1.0..1.3).contains(&one), "{one}");
        assert!((2.8..3.4).contains(&three), "{three}");
        assert!(all > 6.8, "{all}");
        // Rows that cost next to nothing are worth a try.
        assert!(chains(1, 0.001) > 1.5);
    }

    #[test]
    fn a_threshold_of_nothing_always_drafts() {
        assert_eq!(run(&Arc::new(RhoGate::new(0.0)), 500, 100, 5.0), 500);
        let strict = Arc::new(RhoGate::new(100.0));
        assert!(run(&strict, 500, 1, 0.5) < 40);
    }
}
