//! The entries that a query keeps.

use super::pool::load_cells;
use super::{CellType, CompressedShape, CompressedState, IndexInputs, IndexShape, Prepare, prepare};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch, partition};

/// Scores held at one time.
const SCORES: usize = 1 << 22;

/// Entries that one job scores.
const ENTRIES: usize = 256;

#[derive(Debug, Default)]
pub(super) struct IndexScratch {
    queries: Vec<f32>,
    weights: Vec<f32>,
    scores: Vec<f32>,
    order: Vec<u32>,
    /// For each row the entries it keeps, ascending; `None` for all that it may see.
    pub(super) chosen: Vec<Option<Vec<u32>>>,
}

/// Fills `scratch.chosen` for the rows of a pass that starts at `position`.
#[allow(clippy::too_many_arguments)]
pub(super) fn choose(
    cores: &mut Cores,
    shape: &CompressedShape,
    state: &CompressedState,
    scratch: &mut IndexScratch,
    inputs: Option<&IndexInputs<'_>>,
    position: usize,
    rows: usize,
    angles: &[f32],
) {
    scratch.chosen.clear();
    scratch.chosen.resize(rows, None);
    let (Some(pool), Some(inputs)) = (shape.pool, inputs) else { return };
    let Some(index) = pool.index else { return };
    let visible = |row: usize| (position + row + 1) / pool.ratio;
    if visible(rows - 1) <= index.top_k {
        return;
    }
    let IndexShape { heads, head_dim, top_k } = index;
    assert!(head_dim.is_multiple_of(16) && inputs.weights.len() >= rows * heads);
    let padded = heads.next_multiple_of(16);
    prepare(
        cores,
        inputs.queries,
        rows,
        (heads, padded),
        head_dim,
        Prepare::Plain,
        angles,
        &mut scratch.queries,
    );
    scratch.weights.clear();
    for weights in inputs.weights.chunks_exact(heads).take(rows) {
        scratch.weights.extend_from_slice(weights);
        scratch.weights.resize(scratch.weights.len().next_multiple_of(padded), 0.0);
    }
    let width = visible(rows - 1);
    let step = (SCORES / width).clamp(1, rows);
    for first in (0..rows).step_by(step) {
        let count = step.min(rows - first);
        scratch.scores.resize(count * width, 0.0);
        let parts = width.div_ceil(ENTRIES);
        let (isa, threads, to) = (cores.isa(), cores.threads(), SharedMut::new(&mut scratch.scores));
        let (queries, weights) = (&scratch.queries, &scratch.weights);
        cores.run(|t| {
            for job in partition(count * parts, threads, t) {
                let (row, from) = (job / parts, job % parts * ENTRIES);
                let to_entry = (from + ENTRIES).min(visible(first + row));
                if from >= to_entry {
                    continue;
                }
                let at = (first + row) * padded;
                dispatch(
                    isa,
                    Score {
                        state,
                        cells: shape.cells,
                        head_dim,
                        queries: &queries[at * head_dim..(at + padded) * head_dim],
                        weights: &weights[at..at + padded],
                        entries: from..to_entry,
                        // SAFETY: jobs write disjoint parts of the scores.
                        out: unsafe { to.get().add(row * width + from) },
                    },
                );
            }
        });
        for row in 0..count {
            let seen = visible(first + row);
            if seen > top_k {
                let scores = &scratch.scores[row * width..row * width + seen];
                scratch.chosen[first + row] = Some(best(scores, top_k, &mut scratch.order));
            }
        }
    }
}

/// The places of the `k` largest scores, ascending; ties go to the lower place.
fn best(scores: &[f32], k: usize, order: &mut Vec<u32>) -> Vec<u32> {
    if k == 0 {
        return Vec::new();
    }
    order.clear();
    order.extend(0..scores.len() as u32);
    let score = |i: &u32| scores[*i as usize];
    order.select_nth_unstable_by(k - 1, |a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
    let mut kept = order[..k].to_vec();
    kept.sort_unstable();
    kept
}

/// Scores of one query: over heads `weight * max(0, query . key)`, by head modulo 16, then the tree. Factors that are the
/// same for all entries are left out.
struct Score<'a> {
    state: &'a CompressedState,
    cells: CellType,
    head_dim: usize,
    queries: &'a [f32],
    weights: &'a [f32],
    entries: std::ops::Range<usize>,
    out: *mut f32,
}

impl Kernel for Score<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.cells {
            CellType::F32 => self.scores::<S, false>(s),
            CellType::Bf16 => self.scores::<S, true>(s),
        }
    }
}

impl Score<'_> {
    #[inline(always)]
    fn scores<S: Simd, const BF16: bool>(self, s: S) {
        let n = self.head_dim;
        for (i, entry) in self.entries.enumerate() {
            let key = self.state.index_entry(entry).as_ptr();
            let mut sum = s.splat(0.0);
            for (group, weights) in self.weights.chunks_exact(16).enumerate() {
                let queries = self.queries[group * 16 * n..(group + 1) * 16 * n].as_ptr();
                // SAFETY: 16 queries of n values, a key of n values, room for every entry's score.
                unsafe {
                    let dots = dots::<S, BF16>(s, queries, key, n);
                    sum = s.fma(s.load(weights.as_ptr()), s.max(dots, s.splat(0.0)), sum);
                }
            }
            // SAFETY: as above.
            unsafe { self.out.add(i).write(s.reduce_add(sum)) };
        }
    }
}

/// The products of 16 queries, `n` values apart, with one kept row.
///
/// # Safety
/// Sixteen times `n` values at `queries`, `n` in the row; `n` is a multiple of 16.
#[inline(always)]
pub(super) unsafe fn dots<S: Simd, const BF16: bool>(
    s: S,
    queries: *const f32,
    row: *const u32,
    n: usize,
) -> S::F {
    let mut acc = [s.splat(0.0); 16];
    // SAFETY: forwarded.
    unsafe {
        for c in (0..n).step_by(16) {
            let key = load_cells::<S, BF16>(s, row, c);
            for i in 0..16 {
                acc[i] = s.fma(s.load(queries.add(i * n + c)), key, acc[i]);
            }
        }
    }
    s.reduce_add_16(acc)
}
