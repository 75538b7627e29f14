//! Attention over a sliding window and over entries that windows of tokens were pooled into (DeepSeek-AI, "DeepSeek-V4",
//! 2026). One vector a position is key and value for all heads.
//!
//! A query sees the last `window` positions, its own included, and the entries of windows that ended at or before it: all of
//! them, or those that an indexer scores highest. Its result is a function of these alone, in this order: scores are sums
//! of 16 partial ones by column modulo 16, sums over keys go in ascending order, window first.

mod attend;
mod index;
mod pool;
mod rope;
mod state;
mod tail;

pub use rope::{Yarn, stretched};
pub use state::CompressedState;

use crate::elementwise::{Rope, norm_row, over_rows, sum_of_squares};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch};

/// Element type of kept keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellType {
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// f32, exact.
    F32,
}

impl CellType {
    /// 32-bit words of a row of `width` values, an even number.
    pub(crate) fn words(self, width: usize) -> usize {
        match self {
            CellType::Bf16 => width / 2,
            CellType::F32 => width,
        }
    }
}

/// Sizes of the part that picks entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexShape {
    /// Heads of its queries.
    pub heads: usize,
    /// Width of a head and of its keys, a multiple of 16.
    pub head_dim: usize,
    /// Entries that a query keeps.
    pub top_k: usize,
}

/// How windows become entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShape {
    /// Tokens of a window.
    pub ratio: usize,
    /// Whether an entry pools the window before, too, by projections twice as wide.
    pub overlap: bool,
    /// What picks entries; without it all are seen.
    pub index: Option<IndexShape>,
}

/// Sizes of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressedShape {
    /// Query heads.
    pub heads: usize,
    /// Width of a head, a multiple of 16.
    pub head_dim: usize,
    /// Trailing elements of every vector that are rotated in adjacent pairs.
    pub rotary_dim: usize,
    /// Positions that a query sees one by one, its own included.
    pub window: usize,
    /// Entries, if the layer has any.
    pub pool: Option<PoolShape>,
    /// Element type of what is kept; what is pooled later is f32 in any case.
    pub cells: CellType,
}

/// Weights of a pool.
#[derive(Debug, Clone, Copy)]
pub struct PoolWeights<'a> {
    /// Added to the gates of a window's tokens, `[ratio, width]`, twice as wide if windows overlap.
    pub ape: &'a [f32],
    /// RMS norm of entries, `[width]`.
    pub norm: &'a [f32],
}

/// Weights outside the projections.
#[derive(Debug, Clone, Copy)]
pub struct CompressedWeights<'a> {
    /// RMS norm of keys, `[head_dim]`.
    pub kv_norm: &'a [f32],
    /// A score of each head that takes part in the softmax and has no value, `[heads]`.
    pub sinks: &'a [f32],
    /// The entries' pool.
    pub pool: Option<PoolWeights<'a>>,
    /// The index's pool.
    pub index: Option<PoolWeights<'a>>,
    /// Epsilon of all norms.
    pub eps: f32,
}

/// A pool's two projections, one row a token: values, and gates that say how much of each.
#[derive(Debug, Clone, Copy)]
pub struct PoolInputs<'a> {
    /// `[rows, width]`, twice as wide if windows overlap.
    pub values: &'a [f32],
    /// As `values`.
    pub gates: &'a [f32],
}

/// What the index is asked with.
#[derive(Debug, Clone, Copy)]
pub struct IndexInputs<'a> {
    /// Its pool's projections.
    pub pool: PoolInputs<'a>,
    /// `[rows, heads, head_dim]`, before rotation.
    pub queries: &'a [f32],
    /// Weights of its heads, `[rows, heads]`.
    pub weights: &'a [f32],
}

/// Projections of some tokens of one sequence, one row each.
#[derive(Debug, Clone, Copy)]
pub struct CompressedInputs<'a> {
    /// `[rows, heads, head_dim]`, before norm and rotation.
    pub queries: &'a [f32],
    /// `[rows, head_dim]`, before norm and rotation.
    pub keys: &'a [f32],
    /// The entries' pool.
    pub pool: Option<PoolInputs<'a>>,
    /// The index.
    pub index: Option<IndexInputs<'a>>,
}

/// Working memory of [`attend`].
#[derive(Debug, Default)]
pub struct CompressedScratch {
    angles: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    entries: Vec<f32>,
    index: index::IndexScratch,
    threads: Vec<attend::ThreadScratch>,
}

impl CompressedScratch {
    /// What the index kept in the last [`attend`]: for each row the entries, ascending, `None` where all visible ones were
    /// seen.
    pub fn chosen(&self) -> &[Option<Vec<u32>>] {
        &self.index.chosen
    }
}

/// Rotates the last `angles.len()` elements of `x` in adjacent pairs; `angles` are the cosines, then the sines.
#[inline(always)]
pub(crate) fn rotate_last(x: &mut [f32], angles: &[f32], inverse: bool) {
    let (cos, sin) = angles.split_at(angles.len() / 2);
    let start = x.len() - angles.len();
    for ((pair, cos), sin) in x[start..].chunks_exact_mut(2).zip(cos).zip(sin) {
        let (a, b) = (pair[0], pair[1]);
        let sin = if inverse { -sin } else { *sin };
        pair[0] = a * cos - b * sin;
        pair[1] = b * cos + a * sin;
    }
}

/// What is done to rows of vectors on their way in.
#[derive(Clone, Copy)]
enum Prepare<'a> {
    /// RMS norm, with a weight or without, then rotation.
    Norm(Option<&'a [f32]>, f32),
    /// Rotation.
    Plain,
}

/// Rows of vectors.
struct Vectors<'a> {
    x: &'a [f32],
    /// Vectors of a row in `x`, and in `out`, which has zeros where `x` has none.
    heads: (usize, usize),
    width: usize,
    prepare: Prepare<'a>,
    /// Angles of each row.
    angles: &'a [f32],
    rotary_dim: usize,
    out: *mut f32,
    first: usize,
    last: usize,
}

impl Kernel for Vectors<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (n, (heads, padded)) = (self.width, self.heads);
        for row in self.first..self.last {
            let angles = &self.angles[row * self.rotary_dim..(row + 1) * self.rotary_dim];
            for h in 0..padded {
                // SAFETY: `prepare` sized `out` for every row; rows are disjoint between threads.
                let out = unsafe { std::slice::from_raw_parts_mut(self.out.add((row * padded + h) * n), n) };
                if h >= heads {
                    out.fill(0.0);
                    continue;
                }
                let x = &self.x[(row * heads + h) * n..(row * heads + h + 1) * n];
                match self.prepare {
                    // SAFETY: `x`, weight and `out` have n values each.
                    Prepare::Norm(Some(w), eps) => unsafe {
                        norm_row(s, x.as_ptr(), w.as_ptr(), eps, out.as_mut_ptr(), n);
                    },
                    Prepare::Norm(None, eps) => {
                        // SAFETY: n values.
                        let squares = unsafe { sum_of_squares(s, x.as_ptr(), n) };
                        let factor = 1.0 / (squares / n as f32 + eps).sqrt();
                        for (out, x) in out.iter_mut().zip(x) {
                            *out = x * factor;
                        }
                    }
                    Prepare::Plain => out.copy_from_slice(x),
                }
                rotate_last(out, angles, false);
            }
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn prepare(
    cores: &mut Cores,
    x: &[f32],
    rows: usize,
    heads: (usize, usize),
    width: usize,
    prepare: Prepare<'_>,
    angles: &[f32],
    out: &mut Vec<f32>,
) {
    let isa = cores.isa();
    let rotary_dim = angles.len() / rows.max(1);
    assert!(x.len() >= rows * heads.0 * width && rotary_dim <= width);
    out.resize(rows * heads.1 * width, 0.0);
    let to = SharedMut::new(out);
    over_rows(cores, rows, |first, last| {
        let out = to.get();
        dispatch(isa, Vectors { x, heads, width, prepare, angles, rotary_dim, out, first, last });
    });
}

/// Runs `rows` tokens of one sequence; `out` is `[rows, heads, head_dim]`, rotated back.
///
/// # Panics
/// If shape, weights and inputs do not fit each other: a programming error.
#[allow(clippy::too_many_arguments)]
pub fn attend(
    cores: &mut Cores,
    shape: &CompressedShape,
    weights: &CompressedWeights<'_>,
    rope: &Rope,
    state: &mut CompressedState,
    scratch: &mut CompressedScratch,
    inputs: &CompressedInputs<'_>,
    rows: usize,
    out: &mut [f32],
) {
    let CompressedShape { heads, head_dim, rotary_dim, .. } = *shape;
    assert!(head_dim.is_multiple_of(16) && rope.dim() == rotary_dim && rotary_dim <= head_dim);
    assert!(weights.sinks.len() == heads && weights.kv_norm.len() == head_dim);
    assert!(out.len() >= rows * heads * head_dim);
    if rows == 0 {
        return;
    }
    let position = state.begin_pass();
    scratch.angles.clear();
    for position in position..position + rows {
        rope.angles(position, &mut scratch.angles);
    }
    let CompressedScratch { angles, queries, keys, entries, index, threads } = scratch;
    let norm = Prepare::Norm(Some(weights.kv_norm), weights.eps);
    prepare(cores, inputs.keys, rows, (1, 1), head_dim, norm, angles, keys);
    state.append_window(cores.isa(), keys);
    if let (Some(pool), Some(w)) = (&inputs.pool, &weights.pool) {
        state.append_pool(cores, rope, w, weights.eps, pool, rows, entries);
    }
    if let (Some(inputs), Some(w)) = (&inputs.index, &weights.index) {
        state.append_index(cores, rope, w, weights.eps, &inputs.pool, rows, entries);
    }
    state.advance(rows);
    prepare(
        cores,
        inputs.queries,
        rows,
        (heads, heads),
        head_dim,
        Prepare::Norm(None, weights.eps),
        angles,
        queries,
    );
    index::choose(cores, shape, state, index, inputs.index.as_ref(), position, rows, angles);
    let job = attend::Rows {
        shape,
        state,
        queries,
        sinks: weights.sinks,
        angles,
        chosen: &index.chosen,
        position,
        rows,
    };
    attend::run(cores, &job, threads, out);
    state.end_pass();
}
