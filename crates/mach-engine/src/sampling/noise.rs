//! Gumbel noise from a counter: a function of (seed, absolute position, token id) and of nothing else.
//!
//! Adding independent standard Gumbel noise to log probabilities and taking the largest is an exact sample
//! (Gumbel-max). Because the noise has no state, a sample does not depend on the order in which tokens are looked at,
//! on other sequences, or on how many positions are evaluated at once.

use super::math::ln;

/// The finaliser of SplitMix64: every input bit reaches every output bit.
const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// The seed of choice `choice` of a request; choice 0 has the request's own.
pub(crate) fn choice_seed(seed: u64, choice: u32) -> u64 {
    if choice == 0 { seed } else { mix(mix(seed.wrapping_add(STEP)) ^ mix(u64::from(choice))) }
}

/// The noise of one position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noise {
    key: u64,
}

impl Noise {
    pub(crate) fn new(seed: u64, position: usize) -> Self {
        Self { key: mix(mix(seed.wrapping_add(STEP)).wrapping_add(STEP.wrapping_mul(position as u64 + 1))) }
    }

    fn bits(self, token: u32) -> u64 {
        mix(self.key.wrapping_add(STEP.wrapping_mul(u64::from(token) + 1)))
    }

    /// The token's Gumbel value, between -3.7 and 37.5.
    pub(crate) fn gumbel(self, token: u32) -> f64 {
        let u = ((self.bits(token) >> 11) as f64 + 0.5) * (1.0 / (1u64 << 53) as f64);
        // u can round to 1 at the top of its range; there -ln u is 1 - u exactly, half a step.
        let minus_ln = if u < 1.0 { -ln(u) } else { 0.5 / (1u64 << 53) as f64 };
        -ln(minus_ln)
    }

    /// A bound that the token's Gumbel value does not exceed, without a logarithm: with v = 1 - u, -ln(-ln u) <= -ln v,
    /// and v is at least two to the number of its leading zeros plus one.
    pub(crate) fn bound(self, token: u32) -> f64 {
        let zeros = (!self.bits(token)).leading_zeros().min(53);
        f64::from(zeros + 1) * std::f64::consts::LN_2 + 1e-9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_pinned() {
        // Outputs for a given seed are a promise between versions: this must not change.
        let n = Noise::new(42, 7);
        assert_eq!(n.bits(0), 146_974_938_868_952_004);
        assert_eq!(choice_seed(42, 0), 42);
        assert_ne!(choice_seed(42, 1), choice_seed(42, 2));
    }

    #[test]
    fn the_bound_holds_and_the_mean_is_eulers_constant() {
        let n = Noise::new(1, 2);
        let mut sum = 0.0;
        for token in 0..200_000 {
            let g = n.gumbel(token);
            assert!(g <= n.bound(token));
            sum += g;
        }
        assert!((sum / 200_000.0 - 0.577_215_66).abs() < 0.01);
    }

    #[test]
    fn the_extremes_are_finite() {
        let top = 0.5 / (1u64 << 53) as f64;
        assert!(ln(top).is_finite() && -ln(top) < 37.5);
    }
}
