//! Rotary frequencies of each kind.

use mach_kernels::elementwise::{Rope, Stretch};
use mach_kernels::math::{exp64, ln64};
use mach_models::device::{RopeKind, RopeSpec};

/// The frequencies of a rotation; `check` lets no other kind through.
pub fn rope(spec: &RopeSpec) -> Rope {
    let plain = |i: usize| exp64(-2.0 * i as f64 / spec.rotary_dim as f64 * ln64(spec.theta));
    match spec.kind {
        RopeKind::Proportional { turning } => {
            let frequency = |i| if i < turning { plain(i) as f32 } else { 0.0 };
            Rope::of((0..spec.rotary_dim / 2).map(frequency).collect())
        }
        RopeKind::Llama3 { factor, low, high, original } => {
            let frequency = |i| {
                let f = plain(i);
                let turns = original as f64 * f / std::f64::consts::TAU;
                let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                (f / factor * (1.0 - kept) + f * kept) as f32
            };
            Rope::of((0..spec.rotary_dim / 2).map(frequency).collect())
        }
        RopeKind::Yarn { factor, original, beta_fast, beta_slow, truncate, magnitude } => {
            let stretch = Stretch { factor, original, beta_fast, beta_slow, truncate, magnitude };
            Rope::stretched(spec.theta, spec.rotary_dim, &stretch)
        }
        RopeKind::Half | RopeKind::Interleaved => Rope::new(spec.theta, spec.rotary_dim),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn angles(kind: RopeKind) -> Vec<f32> {
        let mut out = Vec::new();
        rope(&RopeSpec { theta: 1e4, rotary_dim: 8, kind }).angles(3, &mut out);
        out
    }

    #[test]
    fn only_the_first_frequencies_turn() {
        let (all, two) = (angles(RopeKind::Half), angles(RopeKind::Proportional { turning: 2 }));
        assert_eq!((&two[..2], &two[4..6]), (&all[..2], &all[4..6]));
        assert_eq!((&two[2..4], &two[6..]), (&[1.0, 1.0][..], &[0.0, 0.0][..]));
        assert_eq!(angles(RopeKind::Proportional { turning: 4 }), all);
    }

    /// Fast frequencies stay, slow ones are divided, those between are blended.
    #[test]
    fn llama3_stretches_slow_frequencies() {
        // Frequencies 1, 0.1, 0.01, 0.001: over 628 positions about 100, 10, 1 and 0.1 turns.
        let kind = RopeKind::Llama3 { factor: 8.0, low: 1.0, high: 19.0, original: 628 };
        let (all, scaled) = (angles(RopeKind::Half), angles(kind));
        let sines = |a: &[f32]| a[4..].to_vec();
        let (all, scaled) = (sines(&all), sines(&scaled));
        assert_eq!(all[0], scaled[0]);
        assert!((scaled[1] / all[1] - 0.5625).abs() < 0.01, "{all:?} {scaled:?}");
        assert!((scaled[3] / all[3] - 0.125).abs() < 1e-3, "{all:?} {scaled:?}");
    }
}
