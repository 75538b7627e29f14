//! Which way tokens are decoded, and why: one pure function for the server, its reports and the preflight.

use std::fmt;
use std::str::FromStr;

use crate::policy::PolicySpec;

/// The path asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DecodePath {
    /// Speculation with a DFlash draft where there is one.
    #[default]
    SpecdecV7,
    /// One token a pass.
    TargetOnly,
}

impl fmt::Display for DecodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DecodePath::SpecdecV7 => "specdec-v7",
            DecodePath::TargetOnly => "target-only",
        })
    }
}

impl FromStr for DecodePath {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "specdec-v7" => Ok(DecodePath::SpecdecV7),
            "target-only" => Ok(DecodePath::TargetOnly),
            _ => Err(format!("unknown decode path `{name}`; known: specdec-v7, target-only")),
        }
    }
}

/// The path that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EffectivePath {
    /// A draft proposes, the target verifies.
    SpecdecV7,
    /// The model's own block proposes, the target verifies: that of DeepSeek-V4, under a gate of its own.
    V4Mtp,
    /// An EAGLE-3 head proposes, the target verifies: DeepSeek-V4, under the same gate.
    V4Eagle3,
    /// The same with the block that a checkpoint of another family carries.
    Mtp,
    /// One token a pass.
    TargetOnly,
}

impl EffectivePath {
    /// Whether it is one of DeepSeek-V4's, which stand under a gate of their own and know no presets.
    pub fn is_v4(self) -> bool {
        matches!(self, EffectivePath::V4Mtp | EffectivePath::V4Eagle3)
    }
}

impl fmt::Display for EffectivePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EffectivePath::SpecdecV7 => "specdec_v7",
            EffectivePath::V4Mtp => "v4_mtp",
            EffectivePath::V4Eagle3 => "v4_eagle3",
            EffectivePath::Mtp => "mtp",
            EffectivePath::TargetOnly => "target_only",
        })
    }
}

/// What is known of the draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftState<'a> {
    /// No directory was given and the checkpoint holds none.
    Absent,
    /// It could not be loaded, and why.
    Unusable(&'a str),
    /// The draft is loaded and fits the model.
    Ready,
    /// The model's own block, or the head given, which would make this path, cannot be used, and why.
    NoBlock(EffectivePath, &'a str),
    /// The model's own block, or the head given, is loaded, which makes this path.
    Block(EffectivePath),
}

/// The path that is taken, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    /// The path that is taken.
    pub effective: EffectivePath,
    /// Why, in one line.
    pub reason: String,
}

/// Decides.
///
/// ```
/// use mach_specdec::{DecodePath, DraftState, EffectivePath, policy::PolicySpec, resolve};
/// let gate = resolve(DecodePath::SpecdecV7, PolicySpec::OpencodeSampledV1, true, DraftState::Absent);
/// assert_eq!(gate.effective, EffectivePath::TargetOnly);
/// assert_eq!(gate.reason, "no draft");
/// ```
///
/// `family` says whether there are drafts for the model's family, whatever directory was given.
pub fn resolve(asked: DecodePath, policy: PolicySpec, family: bool, draft: DraftState<'_>) -> Gate {
    let plain = |reason: &str| Gate { effective: EffectivePath::TargetOnly, reason: reason.to_owned() };
    match (asked, policy, draft) {
        (DecodePath::TargetOnly, ..) => plain("asked for"),
        (_, PolicySpec::Off, _) => plain("the block policy is off"),
        (_, _, DraftState::Block(path @ EffectivePath::V4Eagle3)) => {
            Gate { effective: path, reason: format!("{path} draft is usable") }
        }
        (_, _, DraftState::NoBlock(EffectivePath::V4Eagle3, why)) => {
            plain(&format!("draft unusable: {}", one_line(why)))
        }
        (_, _, DraftState::Block(path)) => {
            Gate { effective: path, reason: format!("{path} block is usable") }
        }
        (_, _, DraftState::NoBlock(path, why)) => plain(&format!("no {path} block: {}", one_line(why))),
        _ if !family => plain("there are no drafts for the model's family"),
        (_, _, DraftState::Absent) => plain("no draft"),
        (_, _, DraftState::Unusable(why)) => plain(&format!("draft unusable: {}", one_line(why))),
        (_, _, DraftState::Ready) => {
            Gate { effective: EffectivePath::SpecdecV7, reason: "specdec_v7 draft is usable".to_owned() }
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_its_reason() {
        use EffectivePath::{Mtp, V4Eagle3, V4Mtp};
        use {DecodePath::*, PolicySpec as P};
        for (asked, policy, family, draft, effective, word) in [
            (SpecdecV7, P::CostAware, true, DraftState::Ready, "specdec_v7", "usable"),
            (TargetOnly, P::CostAware, true, DraftState::Ready, "target_only", "asked"),
            (SpecdecV7, P::Off, true, DraftState::Ready, "target_only", "policy"),
            (SpecdecV7, P::CostAware, false, DraftState::Ready, "target_only", "no drafts for"),
            (SpecdecV7, P::CostAware, false, DraftState::Absent, "target_only", "no drafts for"),
            (SpecdecV7, P::CostAware, true, DraftState::Absent, "target_only", "no draft"),
            (SpecdecV7, P::CostAware, true, DraftState::Unusable("a\n b"), "target_only", "a b"),
            (SpecdecV7, P::CostAware, false, DraftState::Block(V4Mtp), "v4_mtp", "v4_mtp block is usable"),
            (SpecdecV7, P::CostAware, true, DraftState::Block(Mtp), "mtp", "mtp block is usable"),
            (SpecdecV7, P::CostAware, false, DraftState::NoBlock(V4Mtp, "c\nd"), "target_only", "c d"),
            (
                SpecdecV7,
                P::CostAware,
                false,
                DraftState::Block(V4Eagle3),
                "v4_eagle3",
                "v4_eagle3 draft is usable",
            ),
            (
                SpecdecV7,
                P::CostAware,
                false,
                DraftState::NoBlock(V4Eagle3, "d"),
                "target_only",
                "unusable: d",
            ),
            (SpecdecV7, P::CostAware, true, DraftState::NoBlock(Mtp, "c"), "target_only", "no mtp block: c"),
            (TargetOnly, P::CostAware, false, DraftState::Block(V4Mtp), "target_only", "asked"),
            (SpecdecV7, P::Off, true, DraftState::Block(Mtp), "target_only", "policy"),
        ] {
            let gate = resolve(asked, policy, family, draft);
            assert_eq!(gate.effective.to_string(), effective);
            assert!(gate.reason.contains(word), "{}", gate.reason);
        }
        assert_eq!("specdec-v7".parse(), Ok(SpecdecV7));
        assert!("specdec-v8".parse::<DecodePath>().is_err());
    }
}
