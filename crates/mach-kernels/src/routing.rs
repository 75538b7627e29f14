//! Routers whose scores do not depend on each other.

use crate::elementwise::{Softplus, map2, over_rows, top_k};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch};

/// How rows choose.
#[derive(Debug, Clone, Copy)]
pub enum Choice<'a> {
    /// The largest scores.
    Best,
    /// The largest of scores plus these, `[experts]`.
    Biased(&'a [f32]),
    /// By the tokens of the rows: a table `[tokens, k]` of experts, as floats, and the token of each row.
    ByToken(&'a [f32], &'a [u32]),
}

struct SqrtSoftplus<'a>(&'a mut [f32]);
impl Kernel for SqrtSoftplus<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n, x) = (self.0.len(), self.0.as_mut_ptr());
        // SAFETY: n values at x.
        unsafe { map2(s, x, x, n, Softplus {}) };
        self.0.iter_mut().for_each(|x| *x = x.sqrt());
    }
}

/// Routes rows of `scores` `[rows, width]`, overwritten by `sqrt(ln(1 + e^x))`: the chosen experts by falling weight into
/// `experts` and `weights` `[rows, k]`. Weights are scores, divided by their sum if `normalise`, times `scale`.
///
/// # Panics
/// If the table names an expert that there is not, or has no such token: whoever loads it checks it.
#[allow(clippy::too_many_arguments)]
pub fn route_by_score(
    cores: &mut Cores,
    scores: &mut [f32],
    width: usize,
    choice: Choice<'_>,
    normalise: bool,
    scale: f32,
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let (isa, rows) = (cores.isa(), scores.len() / width.max(1));
    let k = experts.len() / rows.max(1);
    assert!(weights.len() == experts.len() && k <= width);
    let (scores, experts, weights) =
        (SharedMut::new(scores), SharedMut::new(experts), SharedMut::new(weights));
    over_rows(cores, rows, |first, last| {
        let (mut best, mut by) = (Vec::with_capacity(k), vec![0.0f32; width]);
        for row in first..last {
            // SAFETY: rows are disjoint between threads and inside the three slices.
            let (scores, experts, weights) = unsafe {
                (
                    std::slice::from_raw_parts_mut(scores.get().add(row * width), width),
                    std::slice::from_raw_parts_mut(experts.get().add(row * k), k),
                    std::slice::from_raw_parts_mut(weights.get().add(row * k), k),
                )
            };
            dispatch(isa, SqrtSoftplus(scores));
            match choice {
                Choice::Best => top_k(scores, k, &mut best),
                Choice::Biased(bias) => {
                    for ((by, score), bias) in by.iter_mut().zip(&*scores).zip(bias) {
                        *by = score + bias;
                    }
                    top_k(&by, k, &mut best);
                }
                Choice::ByToken(table, tokens) => {
                    let at = tokens[row] as usize * k;
                    best.clear();
                    best.extend(table[at..at + k].iter().map(|&e| e as u32));
                }
            }
            // By falling weight; of equal ones the first chosen comes first.
            best.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
            experts.copy_from_slice(&best);
            let total: f32 = if normalise { best.iter().map(|&e| scores[e as usize]).sum() } else { 1.0 };
            for (w, &e) in weights.iter_mut().zip(&best) {
                *w = scores[e as usize] / total * scale;
            }
        }
    });
}
