//! Router and embedding weights whose routing is known: it depends on the token and spreads as asked.
//!
//! The first [`CARRIED`] dimensions of the residual stream hold what the embedding put there: no block writes to them
//! (their rows are zero in every output projection). Routers read only these dimensions, each layer along its own
//! random directions. The norm before a router scales all dimensions of a token alike, so the choice of experts is
//! settled by token and layer. Plain random weights instead send most tokens to the same few experts.
//!
//! The first [`CONSTANT`] of them are the same for every token; through them a router prefers some experts.

use std::str::FromStr;

use super::SynthError;
use super::content::normal;
use super::content::random;

/// Dimensions that are carried unchanged; two groups of 64.
pub(super) const CARRIED: usize = 128;
/// Constant dimensions among them: the columns of one 32-bit word of 4-bit codes.
pub(super) const CONSTANT: usize = 8;
/// Scale of the carried part of every embedding row, 7/32: values have a standard deviation near 1.
pub(super) const EMBEDDING_SCALE: f32 = 0.21875;
/// Standard deviation of uniform 4-bit codes.
const CODE_DEVIATION: f32 = 4.6098;
/// Standard deviation of router logits for a normalised embedding row.
const LOGIT_DEVIATION: f32 = 2.5;
/// No expert is asked for by more than this share of tokens.
const MOST: f64 = 0.95;

/// How tokens spread over experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Routing {
    /// Every expert equally often.
    Uniform,
    /// The expert of rank `r` in proportion to `1 / r^s`, ranks shuffled per layer; shares are capped below 1.
    Zipf(f64),
}

impl FromStr for Routing {
    type Err = SynthError;

    fn from_str(text: &str) -> Result<Self, SynthError> {
        let bad = || SynthError::Routing(text.to_owned());
        match text.split_once(':') {
            None if text == "uniform" => Ok(Self::Uniform),
            Some(("zipf", s)) => {
                let s: f64 = s.parse().map_err(|_| bad())?;
                if (0.0..=4.0).contains(&s) { Ok(Self::Zipf(s)) } else { Err(bad()) }
            }
            _ => Err(bad()),
        }
    }
}

impl std::fmt::Display for Routing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf(s) => write!(f, "zipf:{s}"),
        }
    }
}

/// Router weights of a layer, `[experts, CARRIED]`.
pub(super) fn router(seed: u64, experts: usize, top_k: usize, routing: Routing) -> Vec<f32> {
    let offsets = offsets(seed, experts, top_k, routing);
    let constant_value = 7.5 * EMBEDDING_SCALE;
    let value_deviation = CODE_DEVIATION * EMBEDDING_SCALE;
    let mut weights = Vec::with_capacity(experts * CARRIED);
    for (expert, offset) in offsets.into_iter().enumerate() {
        let free = CARRIED - CONSTANT;
        let row: Vec<f32> = (0..free).map(|i| normal(seed, (expert * free + i) as u64)).collect();
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        let constant = offset as f32 * LOGIT_DEVIATION / (CONSTANT as f32 * constant_value);
        weights.extend([constant; CONSTANT]);
        weights.extend(row.iter().map(|v| v / norm * LOGIT_DEVIATION / value_deviation));
    }
    weights
}

/// Preference of each expert, in standard deviations of its logit.
fn offsets(seed: u64, experts: usize, top_k: usize, routing: Routing) -> Vec<f64> {
    let Routing::Zipf(s) = routing else { return vec![0.0; experts] };
    let popularity: Vec<f64> = (1..=experts).map(|rank| (rank as f64).powf(-s)).collect();
    // Shares add up to top_k; find the factor that does it under the cap.
    let shares = |factor: f64| popularity.iter().map(move |p| (factor * p).min(MOST));
    let wanted = (top_k as f64).min(MOST * experts as f64);
    let factor = bisect(0.0, 1e15, |f| shares(f).sum::<f64>() < wanted);
    let mut offsets: Vec<f64> =
        shares(factor).map(|share| bisect(-12.0, 12.0, |x| normal_cdf(x) < share)).collect();
    let mean = offsets.iter().sum::<f64>() / experts as f64;
    offsets.iter_mut().for_each(|o| *o -= mean);
    for i in (1..experts).rev() {
        offsets.swap(i, (random(seed ^ 0x5eed, i as u64) % (i as u64 + 1)) as usize);
    }
    offsets
}

/// Where `below` turns false.
fn bisect(mut low: f64, mut high: f64, below: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..120 {
        let middle = 0.5 * (low + high);
        if below(middle) { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// Abramowitz and Stegun 7.1.26; good to 1e-7.
fn normal_cdf(x: f64) -> f64 {
    let z = x.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let upper = 0.5 * poly * (-z * z).exp();
    if x < 0.0 { upper } else { 1.0 - upper }
}

/// 8-bit affine codes of `router` weights, one matrix `[experts, hidden]` in groups of 64: codes, scales, zero points.
/// Columns past [`CARRIED`] are zero.
pub(super) fn quantize(weights: &[f32], hidden: usize) -> (Vec<u8>, Vec<f32>, Vec<f32>) {
    let (mut codes, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for row in weights.chunks_exact(CARRIED) {
        for group in row.chunks_exact(64) {
            let largest = group.iter().fold(0f32, |m, v| m.max(v.abs()));
            // Rounded up to four significant bits: exact in bf16 and f16, its multiple by 128 too.
            let exact = four_bits_up(largest / 127.0);
            codes.extend(group.iter().map(|v| ((v / exact).round() + 128.0).clamp(0.0, 255.0) as u8));
            scales.push(exact);
            biases.push(-128.0 * exact);
        }
        codes.resize(codes.len() + hidden - CARRIED, 0);
        scales.resize(scales.len() + (hidden - CARRIED) / 64, 0.0);
        biases.resize(biases.len() + (hidden - CARRIED) / 64, 0.0);
    }
    (codes, scales, biases)
}

fn four_bits_up(value: f32) -> f32 {
    let unit = 2f32.powi(value.max(1e-12).log2().floor() as i32 - 3);
    (value / unit).ceil().max(1.0) * unit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_reads_its_own_text() {
        assert_eq!("uniform".parse::<Routing>().unwrap(), Routing::Uniform);
        assert_eq!("zipf:1.2".parse::<Routing>().unwrap(), Routing::Zipf(1.2));
        for bad in ["", "zipf", "zipf:", "zipf:-1", "zipf:nan", "uniform:2"] {
            assert!(bad.parse::<Routing>().is_err(), "{bad}");
        }
    }

    #[test]
    fn offsets_give_the_shares_asked_for() {
        let offsets = offsets(1, 64, 8, Routing::Zipf(1.0));
        let mut sorted = offsets.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        assert_ne!(sorted, offsets, "ranks are shuffled");
        // Undo the centring by the sum of shares.
        let shift = bisect(-12.0, 12.0, |x| sorted.iter().map(|o| normal_cdf(o + x)).sum::<f64>() < 8.0);
        let share = |i: usize| normal_cdf(sorted[i] + shift);
        assert!((share(9) / share(19) - 2.0).abs() < 1e-3);
        assert!((share(0) - MOST).abs() < 1e-3);
    }

    #[test]
    fn quantized_scales_are_exact_in_bf16() {
        let weights = router(7, 4, 2, Routing::Zipf(1.0));
        let (codes, scales, biases) = quantize(&weights, 256);
        assert_eq!((codes.len(), scales.len()), (4 * 256, 4 * 4));
        for (s, b) in scales.iter().zip(&biases) {
            assert_eq!(half::bf16::from_f32(*s).to_f32(), *s);
            assert_eq!(half::f16::from_f32(*b).to_f32(), *b);
        }
        let value = |i: usize| f32::from(codes[i]) * scales[i / 64] + biases[i / 64];
        for (i, w) in weights[..CARRIED].iter().enumerate() {
            assert!((value(i) - w).abs() <= 0.51 * scales[i / 64]);
        }
        assert_eq!(value(200), 0.0);
    }
}
