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
    /// Cycles since the last of the rarer kind.
    since: u32,
}

impl Known {
    fn rho(&self) -> Option<f64> {
        if self.drafted.count < LEAST || self.plain.count == 0 || self.plain.value <= 0.0 {
            return None;
        }
        let cost = (self.drafted.value - self.plain.value) / self.plain.value;
        Some(self.gained.value / cost.max(LEAST_COST))
    }
}

/// Lets a block draft while `rho`, the tokens that a cycle is expected to gain over what its further rows and the drafting cost
/// (in plain cycles), is at least a threshold. Above 1 drafting is faster than not drafting. All sequences share it.
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
        Box::new(Gated { policy, gate: Arc::clone(self), shut: false })
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

    fn record(&self, cycle: &Cycle) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if cycle.proposed > 0 {
            known.drafted.add(cycle.draft_seconds + cycle.verify_seconds);
            known.gained.add(cycle.accepted as f64);
        } else if cycle.drafted == 0 && cycle.verify_seconds > 0.0 {
            known.plain.add(cycle.verify_seconds);
        }
    }
}

struct Gated {
    policy: Box<dyn BlockPolicy>,
    gate: Arc<RhoGate>,
    shut: bool,
}

impl BlockPolicy for Gated {
    fn block(&mut self) -> usize {
        let rows = self.policy.block();
        self.shut = rows >= 2 && !self.gate.admits();
        if self.shut { 1 } else { rows }
    }

    fn trim(&mut self, drafted: usize, margins: &[f32]) -> usize {
        self.policy.trim(drafted, margins)
    }

    fn record(&mut self, cycle: &Cycle) {
        self.gate.record(cycle);
        self.policy.record(cycle);
    }

    fn low(&self) -> bool {
        self.policy.low()
    }

    fn held(&self) -> Held {
        if self.shut { Held::Skipped } else { self.policy.held() }
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

    #[test]
    fn a_threshold_of_nothing_always_drafts() {
        assert_eq!(run(&Arc::new(RhoGate::new(0.0)), 500, 100, 5.0), 500);
        let strict = Arc::new(RhoGate::new(100.0));
        assert!(run(&strict, 500, 1, 0.5) < 40);
    }
}
