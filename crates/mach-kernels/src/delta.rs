//! Gated DeltaNet: causal convolution and the token-by-token delta rule (Yang et al., "Gated Delta Networks", 2024).
//!
//! For each value head, state `S [key_dim, value_dim]` and token: `m = k^T S` (rows ascending), `d = (v - a m) beta`,
//! `S = a S + k d^T`, `o = q^T S` (rows ascending), with `a = e^g`. Columns of `S` are independent.

use crate::elementwise::{norm_row, sum_of_squares};
use crate::math::{exp, sigmoid, silu, softplus};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Isa, Kernel, Pool, dispatch, partition};

/// Sizes of a Gated DeltaNet layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaShape {
    /// Query/key heads.
    pub key_heads: usize,
    /// Value heads, a multiple of `key_heads`; value head `h` uses key head `h / (value_heads / key_heads)`.
    pub value_heads: usize,
    /// Width of a query/key head, a multiple of 16.
    pub key_dim: usize,
    /// Width of a value head, a multiple of 16.
    pub value_dim: usize,
    /// Taps of the convolution.
    pub taps: usize,
}

impl DeltaShape {
    /// Channels of the convolution: queries, keys, values.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }
}

/// Weights of the recurrence.
#[derive(Debug, Clone, Copy)]
pub struct DeltaWeights<'a> {
    /// Convolution `[taps, channels]`.
    pub conv: &'a [f32],
    /// `[value_heads]`.
    pub dt_bias: &'a [f32],
    /// `-e^A_log`, `[value_heads]`.
    pub neg_exp_a: &'a [f32],
    /// Gated norm `[value_dim]`.
    pub norm: &'a [f32],
    /// Its epsilon.
    pub eps: f32,
}

/// State carried from token to token.
#[derive(Debug, Clone, PartialEq)]
pub struct DeltaState {
    /// The last `taps - 1` inputs of the convolution, oldest first: `[taps - 1, channels]`.
    pub conv: Vec<f32>,
    /// `[value_heads, key_dim, value_dim]`.
    pub state: Vec<f32>,
}

impl DeltaState {
    /// Zeros.
    pub fn new(shape: &DeltaShape) -> Self {
        DeltaState {
            conv: vec![0.0; (shape.taps - 1) * shape.channels()],
            state: vec![0.0; shape.value_heads * shape.key_dim * shape.value_dim],
        }
    }
}

/// Inputs of some tokens, one row each.
#[derive(Debug, Clone, Copy)]
pub struct DeltaInputs<'a> {
    /// Projected queries, keys and values, `[rows, channels]`.
    pub u: &'a [f32],
    /// Output gate, `[rows, value_heads * value_dim]`.
    pub z: &'a [f32],
    /// Before the sigmoid, `[rows, value_heads]`.
    pub b: &'a [f32],
    /// Before the softplus, `[rows, value_heads]`.
    pub a: &'a [f32],
}

/// Working memory of [`gated_delta`].
#[derive(Debug, Default)]
pub struct DeltaScratch {
    mixed: Vec<f32>,
    decay: Vec<f32>,
    beta: Vec<f32>,
}

/// Runs `rows` tokens of one sequence; `out` is `[rows, value_heads * value_dim]`, normed and gated.
#[allow(clippy::too_many_arguments)]
pub fn gated_delta(
    pool: &mut Pool,
    isa: Isa,
    shape: &DeltaShape,
    weights: &DeltaWeights<'_>,
    state: &mut DeltaState,
    scratch: &mut DeltaScratch,
    inputs: &DeltaInputs<'_>,
    rows: usize,
    out: &mut [f32],
) {
    let (channels, hv) = (shape.channels(), shape.value_heads);
    let width = hv * shape.value_dim;
    assert!(shape.key_dim.is_multiple_of(16) && shape.value_dim.is_multiple_of(16));
    assert!(inputs.u.len() >= rows * channels && inputs.z.len() >= rows * width && out.len() >= rows * width);
    assert!(inputs.a.len() >= rows * hv && inputs.b.len() >= rows * hv);
    scratch.mixed.resize(rows * channels, 0.0);
    let pad = (rows * hv).next_multiple_of(16);
    scratch.decay.clear();
    scratch.beta.clear();
    for (i, (&a, &b)) in inputs.a.iter().zip(inputs.b).take(rows * hv).enumerate() {
        scratch.decay.push(weights.neg_exp_a[i % hv] * softplus(a + weights.dt_bias[i % hv]));
        scratch.beta.push(b);
    }
    scratch.decay.resize(pad, 0.0);
    scratch.beta.resize(pad, 0.0);
    dispatch(isa, Gates { decay: &mut scratch.decay, beta: &mut scratch.beta });

    let threads = pool.threads();
    let mixed = SharedMut::new(&mut scratch.mixed);
    let heads = 2 * shape.key_heads + hv;
    let conv_state = &state.conv;
    pool.run(|t| {
        let part = partition(heads, threads, t);
        let (from, to) = (part.start, part.end);
        dispatch(
            isa,
            Convolve { shape, weights, before: conv_state, u: inputs.u, rows, mixed: mixed.get(), from, to },
        );
    });
    keep_last(&mut state.conv, &inputs.u[..rows * channels], channels, shape.taps - 1);

    let (matrices, to) = (SharedMut::new(&mut state.state), SharedMut::new(out));
    let (mixed, decay, beta) = (&scratch.mixed, &scratch.decay, &scratch.beta);
    pool.run(|t| {
        let part = partition(hv, threads, t);
        let job = Recur {
            shape,
            weights,
            mixed,
            decay,
            beta,
            z: inputs.z,
            rows,
            matrices: matrices.get(),
            out: to.get(),
            heads: part.start..part.end,
        };
        dispatch(isa, job);
    });
}

/// Shifts `new` rows into the window of the last `keep` rows.
fn keep_last(window: &mut [f32], new: &[f32], channels: usize, keep: usize) {
    let rows = new.len() / channels;
    if rows >= keep {
        window.copy_from_slice(&new[(rows - keep) * channels..]);
    } else {
        window.copy_within(rows * channels.., 0);
        window[(keep - rows) * channels..].copy_from_slice(new);
    }
}

struct Gates<'a> {
    decay: &'a mut [f32],
    beta: &'a mut [f32],
}
impl Kernel for Gates<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (d, b) in self.decay.chunks_exact_mut(16).zip(self.beta.chunks_exact_mut(16)) {
            // SAFETY: chunks of 16.
            unsafe {
                s.store(d.as_mut_ptr(), exp(s, s.load(d.as_ptr())));
                s.store(b.as_mut_ptr(), sigmoid(s, s.load(b.as_ptr())));
            }
        }
    }
}

/// Convolution, silu, and for query and key heads the division by their length, of heads `from..to` (queries, keys,
/// values in this order).
struct Convolve<'a> {
    shape: &'a DeltaShape,
    weights: &'a DeltaWeights<'a>,
    before: &'a [f32],
    u: &'a [f32],
    rows: usize,
    mixed: *mut f32,
    from: usize,
    to: usize,
}
impl Kernel for Convolve<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let DeltaShape { key_heads, key_dim, value_dim, taps, .. } = *self.shape;
        let channels = self.shape.channels();
        let query_scale = 1.0 / (key_dim as f32).sqrt();
        for head in self.from..self.to {
            let (at, width) = if head < 2 * key_heads {
                (head * key_dim, key_dim)
            } else {
                (2 * key_heads * key_dim + (head - 2 * key_heads) * value_dim, value_dim)
            };
            for row in 0..self.rows {
                // SAFETY: `gated_delta` checked the lengths; heads are disjoint channels of `mixed`.
                unsafe {
                    let out = self.mixed.add(row * channels + at);
                    for c in (0..width).step_by(16) {
                        let mut acc = s.splat(0.0);
                        for tap in 0..taps {
                            // Row `row + tap` of the window followed by the new rows.
                            let x = match (row + tap).checked_sub(taps - 1) {
                                Some(new) => self.u.as_ptr().add(new * channels + at + c),
                                None => self.before.as_ptr().add((row + tap) * channels + at + c),
                            };
                            let w = s.load(self.weights.conv.as_ptr().add(tap * channels + at + c));
                            acc = s.fma(w, s.load(x), acc);
                        }
                        s.store(out.add(c), silu(s, acc));
                    }
                    if head < 2 * key_heads {
                        let length = (sum_of_squares(s, out, width) + 1e-6).sqrt();
                        let factor = if head < key_heads { query_scale / length } else { 1.0 / length };
                        for c in (0..width).step_by(16) {
                            s.store(out.add(c), s.mul(s.load(out.add(c)), s.splat(factor)));
                        }
                    }
                }
            }
        }
    }
}

/// The recurrence of some value heads, then the gated norm.
struct Recur<'a> {
    shape: &'a DeltaShape,
    weights: &'a DeltaWeights<'a>,
    mixed: &'a [f32],
    decay: &'a [f32],
    beta: &'a [f32],
    z: &'a [f32],
    rows: usize,
    matrices: *mut f32,
    out: *mut f32,
    heads: std::ops::Range<usize>,
}
impl Kernel for Recur<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let DeltaShape { value_heads, value_dim, .. } = *self.shape;
        let width = value_heads * value_dim;
        for h in self.heads.clone() {
            let mut c = 0;
            // SAFETY: heads and columns are disjoint between threads and inside the buffers that were checked.
            unsafe {
                while c < value_dim {
                    if value_dim - c >= 64 {
                        self.columns::<S, 4>(s, h, c);
                        c += 64;
                    } else {
                        self.columns::<S, 1>(s, h, c);
                        c += 16;
                    }
                }
                for row in 0..self.rows {
                    let at = row * width + h * value_dim;
                    let (o, z) = (self.out.add(at), self.z.as_ptr().add(at));
                    norm_row(s, o, self.weights.norm.as_ptr(), self.weights.eps, o, value_dim);
                    for c in (0..value_dim).step_by(16) {
                        s.store(o.add(c), s.mul(s.load(o.add(c)), silu(s, s.load(z.add(c)))));
                    }
                }
            }
        }
    }
}

impl Recur<'_> {
    /// `16 N` columns of head `h` from column `c` on, over all tokens: they stay in the L1 cache.
    #[inline(always)]
    unsafe fn columns<S: Simd, const N: usize>(&self, s: S, h: usize, c: usize) {
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = *self.shape;
        let channels = self.shape.channels();
        let key_head = h / (value_heads / key_heads);
        // SAFETY: see `run`.
        unsafe {
            let matrix = self.matrices.add(h * key_dim * value_dim + c);
            for row in 0..self.rows {
                let mixed = self.mixed.as_ptr().add(row * channels);
                let q = mixed.add(key_head * key_dim);
                let k = mixed.add((key_heads + key_head) * key_dim);
                let v = mixed.add(2 * key_heads * key_dim + h * value_dim + c);
                let decay = s.splat(self.decay[row * value_heads + h]);
                let beta = s.splat(self.beta[row * value_heads + h]);
                let mut m = [s.splat(0.0); N];
                for i in 0..key_dim {
                    let ki = s.splat(k.add(i).read());
                    for n in 0..N {
                        m[n] = s.fma(ki, s.load(matrix.add(i * value_dim + 16 * n)), m[n]);
                    }
                }
                let mut d = [s.splat(0.0); N];
                for n in 0..N {
                    d[n] = s.mul(s.sub(s.load(v.add(16 * n)), s.mul(decay, m[n])), beta);
                }
                let mut o = [s.splat(0.0); N];
                for i in 0..key_dim {
                    let (ki, qi) = (s.splat(k.add(i).read()), s.splat(q.add(i).read()));
                    for n in 0..N {
                        let at = matrix.add(i * value_dim + 16 * n);
                        let updated = s.fma(ki, d[n], s.mul(decay, s.load(at)));
                        s.store(at, updated);
                        o[n] = s.fma(qi, updated, o[n]);
                    }
                }
                let out = self.out.add((row * value_heads + h) * value_dim + c);
                for n in 0..N {
                    s.store(out.add(16 * n), o[n]);
                }
            }
        }
    }
}
