//! How a checkpoint holds its routed experts.

use std::fmt;

use serde::{Serialize, Serializer};

use crate::Checkpoint;

/// Where the routed experts of a checkpoint are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertTensors {
    /// There are none: every layer is dense.
    None,
    /// One set of tensors an expert.
    Sliced,
    /// Experts along the first axis of one tensor.
    Stacked,
    /// In the sidecar alone: what `mach convert` writes.
    Engine,
}

impl fmt::Display for ExpertTensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            ExpertTensors::None => "dense",
            ExpertTensors::Sliced => "sliced",
            ExpertTensors::Stacked => "stacked",
            ExpertTensors::Engine => "engine",
        })
    }
}

impl Serialize for ExpertTensors {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Checkpoint {
    /// How the routed experts are held, by the names of tensors.
    pub fn expert_tensors(&self) -> ExpertTensors {
        if !self.config().moe_layers.contains(&true) {
            return ExpertTensors::None;
        }
        if self.resident_index().is_some() {
            return ExpertTensors::Engine;
        }
        let sliced = |name: &str| {
            let after = name.split_once(".experts.").map_or("", |(_, after)| after);
            after.starts_with(|c: char| c.is_ascii_digit())
        };
        if self.names().any(sliced) { ExpertTensors::Sliced } else { ExpertTensors::Stacked }
    }
}
