//! Gated DeltaNet: causal convolution and the token-by-token delta rule (Yang et al., "Gated Delta Networks", 2024).
//!
//! For each value head, state `S [key_dim, value_dim]` and token: `m = k^T S`, `d = (v - a m) beta`, `S = a S + k d^T`,
//! `o = q^T S`, with `a = e^g`. The two sums over rows of `S` are four partial sums by row modulo 4, rows ascending, then
//! `(0 + 1) + (2 + 3)`. Columns of `S` are independent.

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

    /// Channels of one key head: its query, its key and the values of the heads that use it.
    fn local_width(&self) -> usize {
        2 * self.key_dim + self.value_heads / self.key_heads * self.value_dim
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
    /// A matrix `[key_dim, value_dim]` for each value head, stored in blocks of 32 columns (the last may have 16), rows
    /// of a block together, so that a block stays in the L1 cache over the tokens of a pass.
    pub state: Vec<f32>,
}

/// Columns of a block of the state.
const BLOCK: usize = 32;

impl DeltaState {
    /// Zeros.
    pub fn new(shape: &DeltaShape) -> Self {
        DeltaState {
            conv: vec![0.0; (shape.taps - 1) * shape.channels()],
            state: vec![0.0; shape.value_heads * shape.key_dim * shape.value_dim],
        }
    }

    /// The recurrent matrices in plain order `[value_heads, key_dim, value_dim]`.
    pub fn matrices(&self, shape: &DeltaShape) -> Vec<f32> {
        let DeltaShape { key_dim, value_dim, .. } = *shape;
        let mut out = vec![0.0; self.state.len()];
        for (h, head) in out.chunks_exact_mut(key_dim * value_dim).enumerate() {
            for (i, row) in head.chunks_exact_mut(value_dim).enumerate() {
                for (j, x) in row.iter_mut().enumerate() {
                    let first = j / BLOCK * BLOCK;
                    let width = BLOCK.min(value_dim - first);
                    *x = self.state[(h * value_dim + first) * key_dim + i * width + (j - first)];
                }
            }
        }
        out
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
    let local = TOKENS * shape.local_width();
    scratch.mixed.resize(threads * local, 0.0);
    let mixed = SharedMut::new(&mut scratch.mixed);
    let (matrices, to) = (SharedMut::new(&mut state.state), SharedMut::new(out));
    let (decay, beta, before) = (&scratch.decay, &scratch.beta, &state.conv);
    pool.run(|t| {
        let heads = partition(shape.key_heads, threads, t);
        // SAFETY: one part of the scratch for each thread.
        let mixed = unsafe { mixed.get().add(t * local) };
        let (matrices, out) = (matrices.get(), to.get());
        let job = Run { shape, weights, before, inputs, decay, beta, rows, mixed, matrices, out, heads };
        dispatch(isa, job);
    });
    keep_last(&mut state.conv, &inputs.u[..rows * channels], channels, shape.taps - 1);
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

/// Tokens handled together: what the convolution yields for them stays in the L2 cache.
const TOKENS: usize = 32;

/// All of the work of some key heads and the value heads that use them.
struct Run<'a> {
    shape: &'a DeltaShape,
    weights: &'a DeltaWeights<'a>,
    before: &'a [f32],
    inputs: &'a DeltaInputs<'a>,
    decay: &'a [f32],
    beta: &'a [f32],
    rows: usize,
    /// This thread's `[TOKENS, local_width]`: query, key, values.
    mixed: *mut f32,
    matrices: *mut f32,
    out: *mut f32,
    heads: std::ops::Range<usize>,
}

impl Kernel for Run<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = *self.shape;
        let width = value_heads * value_dim;
        let share = value_heads / key_heads;
        for head in self.heads.start..self.heads.end {
            let mut first = 0;
            while first < self.rows {
                let count = TOKENS.min(self.rows - first);
                // SAFETY: heads are disjoint between threads; `gated_delta` checked the lengths.
                unsafe {
                    self.convolve(s, head * key_dim, key_dim, 0, first, count, 1.0 / (key_dim as f32).sqrt());
                    self.convolve(s, (key_heads + head) * key_dim, key_dim, key_dim, first, count, 1.0);
                    let at = 2 * key_heads * key_dim + head * share * value_dim;
                    self.convolve(s, at, share * value_dim, 2 * key_dim, first, count, 0.0);
                    for h in 0..share {
                        let mut c = 0;
                        while c < value_dim {
                            if value_dim - c >= BLOCK {
                                self.columns::<S, 2>(s, head, h, c, first, count);
                                c += BLOCK;
                            } else {
                                self.columns::<S, 1>(s, head, h, c, first, count);
                                c += 16;
                            }
                        }
                        for row in first..first + count {
                            let at = row * width + (head * share + h) * value_dim;
                            let (o, z) = (self.out.add(at), self.inputs.z.as_ptr().add(at));
                            norm_row(s, o, self.weights.norm.as_ptr(), self.weights.eps, o, value_dim);
                            for c in (0..value_dim).step_by(16) {
                                s.store(o.add(c), s.mul(s.load(o.add(c)), silu(s, s.load(z.add(c)))));
                            }
                        }
                    }
                }
                first += count;
            }
        }
    }
}

impl Run<'_> {
    /// Convolution and silu of `width` channels from `channel` on, for tokens `first..first + count`, into column `to` of
    /// the scratch. With `scale` not 0 each row is divided by its length and scaled.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    unsafe fn convolve<S: Simd>(
        &self,
        s: S,
        channel: usize,
        width: usize,
        to: usize,
        first: usize,
        count: usize,
        scale: f32,
    ) {
        let (channels, taps) = (self.shape.channels(), self.shape.taps);
        // SAFETY: see `run`.
        unsafe {
            for token in 0..count {
                let out = self.mixed.add(token * self.shape.local_width() + to);
                for c in (0..width).step_by(16) {
                    let mut acc = s.splat(0.0);
                    for tap in 0..taps {
                        // Row `first + token + tap` of the window followed by the new rows.
                        let row = first + token + tap;
                        let x = if row >= taps - 1 {
                            self.inputs.u.as_ptr().add((row + 1 - taps) * channels + channel + c)
                        } else {
                            self.before.as_ptr().add(row * channels + channel + c)
                        };
                        let w = s.load(self.weights.conv.as_ptr().add(tap * channels + channel + c));
                        acc = s.fma(w, s.load(x), acc);
                    }
                    s.store(out.add(c), silu(s, acc));
                }
                if scale != 0.0 {
                    let factor = scale / (sum_of_squares(s, out, width) + 1e-6).sqrt();
                    for c in (0..width).step_by(16) {
                        s.store(out.add(c), s.mul(s.load(out.add(c)), s.splat(factor)));
                    }
                }
            }
        }
    }

    /// `16 N` columns, from `c` on, of the `h`-th value head of key head `head`, over some tokens.
    #[inline(always)]
    unsafe fn columns<S: Simd, const N: usize>(
        &self,
        s: S,
        head: usize,
        h: usize,
        c: usize,
        first: usize,
        count: usize,
    ) {
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = *self.shape;
        let value_head = head * (value_heads / key_heads) + h;
        // SAFETY: see `run`.
        unsafe {
            let matrix = self.matrices.add((value_head * value_dim + c) * key_dim);
            for token in 0..count {
                let q = self.mixed.add(token * self.shape.local_width());
                let (k, v) = (q.add(key_dim), q.add(2 * key_dim + h * value_dim + c));
                let row = first + token;
                let decay = s.splat(self.decay[row * value_heads + value_head]);
                let beta = s.splat(self.beta[row * value_heads + value_head]);
                let mut m = [[s.splat(0.0); N]; 4];
                for i in (0..key_dim).step_by(4) {
                    for j in 0..4 {
                        let ki = s.splat(k.add(i + j).read());
                        for n in 0..N {
                            let x = s.load(matrix.add((i + j) * 16 * N + 16 * n));
                            m[j][n] = s.fma(ki, x, m[j][n]);
                        }
                    }
                }
                let mut d = [s.splat(0.0); N];
                for n in 0..N {
                    let m = s.add(s.add(m[0][n], m[1][n]), s.add(m[2][n], m[3][n]));
                    d[n] = s.mul(s.sub(s.load(v.add(16 * n)), s.mul(decay, m)), beta);
                }
                let mut o = [[s.splat(0.0); N]; 4];
                for i in (0..key_dim).step_by(4) {
                    for j in 0..4 {
                        let (ki, qi) = (s.splat(k.add(i + j).read()), s.splat(q.add(i + j).read()));
                        for n in 0..N {
                            let at = matrix.add((i + j) * 16 * N + 16 * n);
                            let updated = s.fma(ki, d[n], s.mul(decay, s.load(at)));
                            s.store(at, updated);
                            o[j][n] = s.fma(qi, updated, o[j][n]);
                        }
                    }
                }
                let out = self.out.add((row * value_heads + value_head) * value_dim + c);
                for n in 0..N {
                    let o = s.add(s.add(o[0][n], o[1][n]), s.add(o[2][n], o[3][n]));
                    s.store(out.add(16 * n), o);
                }
            }
        }
    }
}
