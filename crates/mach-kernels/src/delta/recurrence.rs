//! The arithmetic: convolution, decay, the delta rule over blocks of columns, the gated norm.

use super::state::BLOCK;
use super::{DeltaShape, DeltaWeights};
use crate::elementwise::{norm_row, sum_of_squares};
use crate::math::{exp, sigmoid, silu, softplus};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch, partition};

/// Runs `steps` from the matrices `start` (from `matrices` themselves if there are none) into `matrices`.
pub(super) fn recur(
    cores: &mut Cores,
    steps: &Steps<'_>,
    mixed: &mut Vec<f32>,
    start: Option<&[f32]>,
    matrices: &mut [f32],
    out: &mut [f32],
) {
    let isa = cores.isa();
    assert!(start.is_none_or(|s| s.len() == matrices.len()));
    let threads = cores.threads();
    let local = TOKENS * steps.shape.local_width();
    mixed.resize(threads * local, 0.0);
    let (mixed, matrices, out) = (SharedMut::new(mixed), SharedMut::new(matrices), SharedMut::new(out));
    cores.run(|t| {
        let heads = partition(steps.shape.key_heads, threads, t);
        // SAFETY: one part of the scratch for each thread.
        let mixed = unsafe { mixed.get().add(t * local) };
        let (matrices, out) = (matrices.get(), out.get());
        let start = start.map_or(matrices.cast_const(), <[f32]>::as_ptr);
        dispatch(isa, Run { steps, mixed, start, matrices, out, heads });
    });
}

/// Decay factors `e^(rate softplus(x))` and update rates `sigmoid(x)`, in place.
pub(super) struct Gates<'a> {
    pub(super) decay: &'a mut [f32],
    pub(super) rates: &'a [f32],
    pub(super) beta: &'a mut [f32],
}
impl Kernel for Gates<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rates = self.rates.chunks_exact(16);
        for ((d, r), b) in self.decay.chunks_exact_mut(16).zip(rates).zip(self.beta.chunks_exact_mut(16)) {
            // SAFETY: chunks of 16.
            unsafe {
                let g = s.mul(s.load(r.as_ptr()), softplus(s, s.load(d.as_ptr())));
                s.store(d.as_mut_ptr(), exp(s, g));
                s.store(b.as_mut_ptr(), sigmoid(s, s.load(b.as_ptr())));
            }
        }
    }
}

/// Tokens handled together: what the convolution yields for them stays in the L2 cache.
const TOKENS: usize = 32;

/// Inputs of the recurrence.
pub(super) struct Steps<'a> {
    pub(super) shape: &'a DeltaShape,
    pub(super) weights: &'a DeltaWeights<'a>,
    /// The convolution's window before the first token.
    pub(super) before: &'a [f32],
    pub(super) u: &'a [f32],
    /// The gate of the outputs; without it they are left as they come.
    pub(super) z: Option<&'a [f32]>,
    pub(super) decay: &'a [f32],
    pub(super) beta: &'a [f32],
    pub(super) rows: usize,
}

/// All of the work of some key heads and the value heads that use them.
struct Run<'a> {
    steps: &'a Steps<'a>,
    /// This thread's `[TOKENS, local_width]`: query, key, values.
    mixed: *mut f32,
    /// Where the first token finds its matrices.
    start: *const f32,
    matrices: *mut f32,
    out: *mut f32,
    heads: std::ops::Range<usize>,
}

impl Kernel for Run<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = *self.steps.shape;
        let width = value_heads * value_dim;
        let share = value_heads / key_heads;
        for head in self.heads.start..self.heads.end {
            let mut first = 0;
            while first < self.steps.rows {
                let count = TOKENS.min(self.steps.rows - first);
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
                        let Some(z) = self.steps.z else { continue };
                        for row in first..first + count {
                            let at = row * width + (head * share + h) * value_dim;
                            let (o, z) = (self.out.add(at), z.as_ptr().add(at));
                            norm_row(
                                s,
                                o,
                                self.steps.weights.norm.as_ptr(),
                                self.steps.weights.eps,
                                o,
                                value_dim,
                            );
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
        let (channels, taps) = (self.steps.shape.channels(), self.steps.shape.taps);
        // SAFETY: see `run`.
        unsafe {
            for token in 0..count {
                let out = self.mixed.add(token * self.steps.shape.local_width() + to);
                for c in (0..width).step_by(16) {
                    let mut acc = s.splat(0.0);
                    for tap in 0..taps {
                        // Row `first + token + tap` of the window followed by the new rows.
                        let row = first + token + tap;
                        let x = if row >= taps - 1 {
                            self.steps.u.as_ptr().add((row + 1 - taps) * channels + channel + c)
                        } else {
                            self.steps.before.as_ptr().add(row * channels + channel + c)
                        };
                        let w = s.load(self.steps.weights.conv.as_ptr().add(tap * channels + channel + c));
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
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, .. } = *self.steps.shape;
        let value_head = head * (value_heads / key_heads) + h;
        // SAFETY: see `run`.
        unsafe {
            let matrix = self.matrices.add((value_head * value_dim + c) * key_dim);
            let start = self.start.add((value_head * value_dim + c) * key_dim);
            let mut source = if first == 0 { start } else { matrix.cast_const() };
            for token in 0..count {
                let q = self.mixed.add(token * self.steps.shape.local_width());
                let (k, v) = (q.add(key_dim), q.add(2 * key_dim + h * value_dim + c));
                let row = first + token;
                let decay = s.splat(self.steps.decay[row * value_heads + value_head]);
                let beta = s.splat(self.steps.beta[row * value_heads + value_head]);
                let mut m = [[s.splat(0.0); N]; 4];
                for i in (0..key_dim).step_by(4) {
                    for j in 0..4 {
                        let ki = s.splat(k.add(i + j).read());
                        for n in 0..N {
                            let x = s.load(source.add((i + j) * 16 * N + 16 * n));
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
                            let at = (i + j) * 16 * N + 16 * n;
                            let updated = s.fma(ki, d[n], s.mul(decay, s.load(source.add(at))));
                            s.store(matrix.add(at), updated);
                            o[j][n] = s.fma(qi, updated, o[j][n]);
                        }
                    }
                }
                source = matrix.cast_const();
                let out = self.out.add((row * value_heads + value_head) * value_dim + c);
                for n in 0..N {
                    let o = s.add(s.add(o[0][n], o[1][n]), s.add(o[2][n], o[3][n]));
                    s.store(out.add(16 * n), o);
                }
            }
        }
    }
}
