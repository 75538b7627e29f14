//! Which tokens are candidates. Every rule keeps a prefix of the tokens sorted by (logit falling, id rising), so the
//! order in which the rules are applied matters only for what `top_p` is a share of.

use std::cmp::Ordering;

use super::math::exp;

/// Logit and token id.
pub(crate) type Candidate = (f32, u32);

const LANES: usize = 16;
const BLOCK: usize = 256;

fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// The largest value; NaN is passed over.
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
}

/// The lowest id that has the largest logit, and that logit.
pub(crate) fn argmax(logits: &[f32]) -> Candidate {
    let mut best = (f32::NEG_INFINITY, 0);
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        let top = max(values);
        if top > best.0 {
            best = (top, block * BLOCK);
        }
    }
    let within = logits.get(best.1..).and_then(|rest| rest.iter().position(|&v| v == best.0));
    (best.0, (best.1 + within.unwrap_or(0)) as u32)
}

/// The best `k` tokens, best first.
pub(crate) fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) {
    out.clear();
    if k == 0 {
        return;
    }
    // The k-th largest of the block maxima is a floor for the k-th largest of all, and few tokens reach it.
    let mut maxima: Vec<f32> = logits.chunks(BLOCK).map(max).collect();
    let floor = if k < maxima.len() {
        *maxima.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    at_least(logits, floor, out);
    if out.len() > k {
        out.select_nth_unstable_by(k - 1, by_rank);
        out.truncate(k);
    }
    out.sort_unstable_by(by_rank);
}

/// All tokens whose logit reaches `floor`, by id.
pub(crate) fn at_least(logits: &[f32], floor: f32, out: &mut Vec<Candidate>) {
    out.clear();
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        if max(values) >= floor {
            let first = (block * BLOCK) as u32;
            out.extend((first..).zip(values).filter(|&(_, &v)| v >= floor).map(|(id, &v)| (v, id)));
        }
    }
}

/// Sorts candidates, best first.
pub(crate) fn sort(candidates: &mut [Candidate]) {
    candidates.sort_unstable_by(by_rank);
}

/// A logit relative to the best, at a temperature: the logarithm of a probability up to a constant.
pub(crate) fn scaled(logit: f32, best: f32, inverse_temperature: f32) -> f32 {
    (logit - best) * inverse_temperature
}

/// Sum of `exp(scaled)` over all logits: 16 partial sums by index modulo 16, added in order.
pub(crate) fn mass(logits: &[f32], best: f32, inverse_temperature: f32) -> f64 {
    let mut lanes = [0f64; LANES];
    let chunks = logits.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(exp(scaled(v, best, inverse_temperature)));
        }
    }
    for (lane, &v) in lanes.iter_mut().zip(tail) {
        *lane += f64::from(exp(scaled(v, best, inverse_temperature)));
    }
    lanes.iter().sum()
}

/// How many of the sorted candidates hold `share` of `total` together; `None` if all of them hold less.
pub(crate) fn nucleus(
    sorted: &[Candidate],
    best: f32,
    inverse_temperature: f32,
    share: f32,
    total: f64,
) -> Option<usize> {
    let wanted = f64::from(share) * total;
    let mut sum = 0.0;
    for (i, &(logit, _)) in sorted.iter().enumerate() {
        sum += f64::from(exp(scaled(logit, best, inverse_temperature)));
        if sum >= wanted {
            return Some(i + 1);
        }
    }
    None
}
