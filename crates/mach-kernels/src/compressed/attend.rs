//! Softmax attention of rows over their window and entries.

use super::index::dots;
use super::pool::load_cells;
use super::{CellType, CompressedShape, CompressedState, rotate_last};
use crate::math::exp;
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch, partition};

/// Heads of a job.
const HEADS: usize = 16;

/// What attends.
pub(super) struct Rows<'a> {
    pub(super) shape: &'a CompressedShape,
    pub(super) state: &'a CompressedState,
    /// `[rows, heads, head_dim]`, ready.
    pub(super) queries: &'a [f32],
    pub(super) sinks: &'a [f32],
    /// Angles of each row.
    pub(super) angles: &'a [f32],
    /// For each row the entries it sees; `None` for all of windows that have ended.
    pub(super) chosen: &'a [Option<Vec<u32>>],
    pub(super) position: usize,
    pub(super) rows: usize,
}

#[derive(Debug, Default)]
pub(super) struct ThreadScratch {
    keys: Vec<KeyAt>,
    /// `[keys, HEADS]`.
    scores: Vec<f32>,
    /// `[HEADS, head_dim]`.
    queries: Vec<f32>,
}

/// Where a key lies, while the state is borrowed.
#[derive(Debug, Clone, Copy)]
struct KeyAt(*const u32);

// SAFETY: an address; it is followed only by the thread that wrote it, in the call that borrows the state.
unsafe impl Send for KeyAt {}
// SAFETY: as above.
unsafe impl Sync for KeyAt {}

pub(super) fn run(cores: &mut Cores, rows: &Rows<'_>, scratch: &mut Vec<ThreadScratch>, out: &mut [f32]) {
    let (isa, threads) = (cores.isa(), cores.threads());
    scratch.resize_with(threads, ThreadScratch::default);
    let groups = rows.shape.heads.div_ceil(HEADS);
    let (scratch, out) = (SharedMut::new(scratch), SharedMut::new(out));
    cores.run(|t| {
        // SAFETY: one scratch for each thread.
        let scratch = unsafe { &mut *scratch.get().add(t) };
        let jobs = partition(rows.rows * groups, threads, t);
        dispatch(isa, Attend { rows, groups, jobs, scratch, out: out.get() });
    });
}

struct Attend<'a> {
    rows: &'a Rows<'a>,
    groups: usize,
    jobs: std::ops::Range<usize>,
    scratch: &'a mut ThreadScratch,
    out: *mut f32,
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Attend { rows, groups, jobs, scratch, out } = self;
        let CompressedShape { heads, head_dim, rotary_dim, .. } = *rows.shape;
        let mut row_of_keys = None;
        for job in jobs {
            let (row, first) = (job / groups, job % groups * HEADS);
            if row_of_keys != Some(row) {
                list_keys(rows, row, &mut scratch.keys);
                row_of_keys = Some(row);
            }
            let count = HEADS.min(heads - first);
            let at = (row * heads + first) * head_dim;
            scratch.queries.clear();
            scratch.queries.extend_from_slice(&rows.queries[at..at + count * head_dim]);
            scratch.queries.resize(HEADS * head_dim, 0.0);
            scratch.scores.resize(scratch.keys.len() * HEADS, 0.0);
            let mut sinks = [f32::NEG_INFINITY; HEADS];
            sinks[..count].copy_from_slice(&rows.sinks[first..first + count]);
            // SAFETY: the output has `heads * head_dim` values a row, and jobs write disjoint heads.
            let out = unsafe { std::slice::from_raw_parts_mut(out.add(at), count * head_dim) };
            match rows.shape.cells {
                CellType::F32 => heads_of_row::<S, false>(s, scratch, &sinks, head_dim, out),
                CellType::Bf16 => heads_of_row::<S, true>(s, scratch, &sinks, head_dim, out),
            }
            let angles = &rows.angles[row * rotary_dim..(row + 1) * rotary_dim];
            for head in out.chunks_exact_mut(head_dim) {
                rotate_last(head, angles, true);
            }
        }
    }
}

/// The keys of a row: its window, ascending, then its entries, ascending.
fn list_keys(rows: &Rows<'_>, row: usize, keys: &mut Vec<KeyAt>) {
    let position = rows.position + row;
    keys.clear();
    let first = (position + 1).saturating_sub(rows.shape.window);
    keys.extend((first..=position).map(|p| KeyAt(rows.state.key(p).as_ptr())));
    let Some(pool) = rows.shape.pool else { return };
    match &rows.chosen[row] {
        Some(chosen) => keys.extend(chosen.iter().map(|&w| KeyAt(rows.state.entry(w as usize).as_ptr()))),
        None => {
            let seen = (position + 1) / pool.ratio;
            keys.extend((0..seen).map(|w| KeyAt(rows.state.entry(w).as_ptr())));
        }
    }
}

/// Up to 16 heads of one row: lanes are heads while scores become weights.
#[inline(always)]
fn heads_of_row<S: Simd, const BF16: bool>(
    s: S,
    scratch: &mut ThreadScratch,
    sinks: &[f32; HEADS],
    head_dim: usize,
    out: &mut [f32],
) {
    let ThreadScratch { keys, scores, queries } = scratch;
    let scale = s.splat(1.0 / (head_dim as f32).sqrt());
    let scores = scores.as_mut_ptr();
    // SAFETY: `Attend` sized scores and queries; every key has `head_dim` values, a multiple of 16.
    unsafe {
        let sinks = s.load(sinks.as_ptr());
        let mut top = sinks;
        for (j, key) in keys.iter().enumerate() {
            let score = s.mul(dots::<S, BF16>(s, queries.as_ptr(), key.0, head_dim), scale);
            top = s.max(score, top);
            s.store(scores.add(j * HEADS), score);
        }
        let mut total = s.splat(0.0);
        for j in 0..keys.len() {
            let p = exp(s, s.sub(s.load(scores.add(j * HEADS)), top));
            s.store(scores.add(j * HEADS), p);
            total = s.add(total, p);
        }
        total = s.add(total, exp(s, s.sub(sinks, top)));
        let mut totals = [0.0f32; HEADS];
        s.store(totals.as_mut_ptr(), total);
        let heads = out.len() / head_dim;
        for first in (0..heads).step_by(4) {
            let mut c = 0;
            while c < head_dim {
                if head_dim - c >= 64 {
                    values::<S, BF16, 4>(s, keys, scores.add(first), head_dim, c, &totals, first, out);
                    c += 64;
                } else {
                    values::<S, BF16, 1>(s, keys, scores.add(first), head_dim, c, &totals, first, out);
                    c += 16;
                }
            }
        }
    }
}

/// `16 N` columns, from `c` on, of four heads from `first` on.
///
/// # Safety
/// As in [`heads_of_row`]; `weights` points at the first head's.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn values<S: Simd, const BF16: bool, const N: usize>(
    s: S,
    keys: &[KeyAt],
    weights: *const f32,
    head_dim: usize,
    c: usize,
    totals: &[f32; HEADS],
    first: usize,
    out: &mut [f32],
) {
    let mut acc = [[s.splat(0.0); N]; 4];
    // SAFETY: forwarded.
    unsafe {
        for (j, key) in keys.iter().enumerate() {
            let mut value = [s.splat(0.0); N];
            for n in 0..N {
                value[n] = load_cells::<S, BF16>(s, key.0, c + 16 * n);
            }
            for h in 0..4 {
                let p = s.splat(weights.add(j * HEADS + h).read());
                for n in 0..N {
                    acc[h][n] = s.fma(p, value[n], acc[h][n]);
                }
            }
        }
        for h in 0..4 {
            if (first + h + 1) * head_dim > out.len() {
                break;
            }
            let total = s.splat(totals[first + h]);
            for n in 0..N {
                let at = (first + h) * head_dim + c + 16 * n;
                s.store(out.as_mut_ptr().add(at), s.div(acc[h][n], total));
            }
        }
    }
}
