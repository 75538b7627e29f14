//! Rotary frequencies, stretched to longer contexts.

use crate::elementwise::Rope;
use crate::math::{exp64, ln64};

/// How frequencies are stretched (Peng et al., "YaRN", 2023).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// By how much the context is stretched.
    pub factor: f64,
    /// Positions that the model was made for at first.
    pub original: usize,
    /// Rotations over those positions above which a frequency stays as it is.
    pub beta_fast: f64,
    /// Rotations below which it is divided in full.
    pub beta_slow: f64,
}

/// The rotation of `dim` elements by frequencies `theta^(-2 i / dim)`, stretched; the range between the two betas is
/// rounded outwards to whole pairs.
pub fn stretched(theta: f64, dim: usize, yarn: &Yarn) -> Rope {
    let (log, width) = (ln64(theta), dim as f64);
    let place =
        |beta: f64| width * ln64(yarn.original as f64 / (2.0 * std::f64::consts::PI * beta)) / (2.0 * log);
    let low = place(yarn.beta_fast).floor().max(0.0);
    let high = place(yarn.beta_slow).ceil().min(width - 1.0);
    let high = if low == high { high + 0.001 } else { high };
    let frequency = |i: usize| {
        let plain = exp64(-2.0 * i as f64 / width * log);
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        (plain / yarn.factor * ramp + plain * (1.0 - ramp)) as f32
    };
    Rope::of((0..dim / 2).map(frequency).collect())
}
