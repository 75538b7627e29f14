//! How much to try: the rows of the next block.

mod calibration;
mod cost_aware;
mod costs;
mod experience;
mod fixed;
mod guard;
mod opencode;
mod rho;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

pub use costs::Costs;
pub use experience::Experience;
pub use fixed::Fixed;
use guard::Guarded;
pub use guard::{GuardSpec, Held};
pub use opencode::OpencodeSampledV1;
pub use rho::{RhoGate, RhoStatus};

/// Cycles over which acceptance is averaged.
pub const ALPHA_WINDOW: usize = 4;
/// Below this mean acceptance a cycle is low.
pub const ALPHA_THRESHOLD: f64 = 0.40;
/// Block after low cycles.
pub const LOW_BLOCK: usize = 4;
/// Block otherwise.
pub const DEFAULT_BLOCK: usize = 16;

/// One pass of the target.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cycle {
    /// Tokens that the proposer came up with.
    pub drafted: usize,
    /// Those of them that the target was shown; 0 for plain decoding.
    pub proposed: usize,
    /// How many of them were accepted.
    pub accepted: usize,
    /// Seconds that the proposal took.
    pub draft_seconds: f64,
    /// Seconds that the target took.
    pub verify_seconds: f64,
}

/// Chooses the size of blocks for one proposer and one sequence.
pub trait BlockPolicy: Send {
    /// Rows of the next block, the anchor included: below 2 means plain decoding.
    fn block(&mut self) -> usize;
    /// How many of `drafted` tokens to have verified. `margins`: for each, by how much the best logit led the second;
    /// empty if the proposer cannot tell.
    fn trim(&mut self, drafted: usize, _margins: &[f32]) -> usize {
        drafted
    }
    /// Learns from a cycle of this proposer, or from a plain one.
    fn record(&mut self, cycle: &Cycle);
    /// Whether the next block is a reduced one.
    fn low(&self) -> bool {
        false
    }
    /// What a guard did to the last block.
    fn held(&self) -> Held {
        Held::No
    }
}

/// Which policy, as configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicySpec {
    /// See [`OpencodeSampledV1`].
    OpencodeSampledV1,
    /// The default block, which is left to the guard: it stands over this policy always.
    CostAware,
    /// Always this many rows.
    Fixed(usize),
    /// Plain decoding.
    Off,
}

impl PolicySpec {
    /// The policy for one proposer of one sequence. `experience` is shared by all sequences of a model, `most` the largest
    /// block that the proposer can fill.
    pub fn build(
        self,
        proposer: &'static str,
        most: usize,
        guard: GuardSpec,
        experience: &Arc<Mutex<Experience>>,
    ) -> Box<dyn BlockPolicy> {
        let policy: Box<dyn BlockPolicy> = match self {
            PolicySpec::OpencodeSampledV1 => Box::new(OpencodeSampledV1::new(most)),
            PolicySpec::CostAware => Box::new(Fixed(DEFAULT_BLOCK.min(most))),
            PolicySpec::Fixed(rows) => Box::new(Fixed(rows.min(most))),
            PolicySpec::Off => Box::new(Fixed(0)),
        };
        match self {
            PolicySpec::Off => policy,
            PolicySpec::CostAware => Box::new(Guarded::new(policy, proposer, experience)),
            _ if guard == GuardSpec::CostAware => Box::new(Guarded::new(policy, proposer, experience)),
            _ => policy,
        }
    }
}

/// A policy and what stands over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// How many rows a block has.
    pub policy: PolicySpec,
    /// What may hold blocks back that lose.
    pub guard: GuardSpec,
}

/// The name of the policy, with `/unguarded` behind it where no guard stands over it.
impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guarded = self.guard == GuardSpec::CostAware || self.policy == PolicySpec::Off;
        write!(f, "{}{}", self.policy, if guarded { "" } else { "/unguarded" })
    }
}

impl FromStr for Blocks {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (policy, guard) = match name.strip_suffix("/unguarded") {
            Some(policy) => (policy, GuardSpec::Off),
            None => (name, GuardSpec::CostAware),
        };
        Ok(Self { policy: policy.parse()?, guard })
    }
}

impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PolicySpec::OpencodeSampledV1 => f.write_str("opencode-sampled-v1"),
            PolicySpec::CostAware => f.write_str("cost-aware"),
            PolicySpec::Fixed(rows) => write!(f, "fixed-{rows}"),
            PolicySpec::Off => f.write_str("off"),
        }
    }
}

impl FromStr for PolicySpec {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "opencode-sampled-v1" => Ok(PolicySpec::OpencodeSampledV1),
            "cost-aware" => Ok(PolicySpec::CostAware),
            "off" => Ok(PolicySpec::Off),
            _ => match name.strip_prefix("fixed-").and_then(|rows| rows.parse().ok()) {
                Some(rows @ 2..=256) => Ok(PolicySpec::Fixed(rows)),
                _ => Err(format!(
                    "unknown block policy `{name}`; known: opencode-sampled-v1, cost-aware, fixed-2 to fixed-256, off"
                )),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for name in ["opencode-sampled-v1", "cost-aware", "fixed-2", "fixed-16", "off"] {
            assert_eq!(name.parse::<PolicySpec>().unwrap().to_string(), name);
        }
        for name in ["fixed-1", "fixed-", "fixed-257", "Off", ""] {
            assert!(name.parse::<PolicySpec>().unwrap_err().contains("opencode-sampled-v1"));
        }
        for name in ["fixed-16", "fixed-16/unguarded", "off"] {
            assert_eq!(name.parse::<Blocks>().unwrap().to_string(), name);
        }
    }
}
