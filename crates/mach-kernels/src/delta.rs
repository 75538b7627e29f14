//! Gated DeltaNet: causal convolution and the token-by-token delta rule (Yang et al., "Gated Delta Networks", 2024).
//!
//! For each value head, state `S [key_dim, value_dim]` and token: `m = k^T S`, `d = (v - a m) beta`, `S = a S + k d^T`,
//! `o = q^T S`, with `a = e^g`. The two sums over rows of `S` are four partial sums by row modulo 4, rows ascending, then
//! `(0 + 1) + (2 + 3)`. Columns of `S` are independent.

use crate::elementwise::{norm_row, sum_of_squares};
use crate::math::{exp, sigmoid, silu, softplus};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch, partition};

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

    /// Bytes of the state that is carried from token to token.
    pub fn state_bytes(&self) -> usize {
        4 * ((self.taps - 1) * self.channels() + self.value_heads * self.key_dim * self.value_dim)
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
#[derive(Debug, Clone)]
pub struct DeltaState {
    /// The last `taps - 1` inputs of the convolution, oldest first: `[taps - 1, channels]`.
    pub conv: Vec<f32>,
    /// A matrix `[key_dim, value_dim]` for each value head, stored in blocks of 32 columns (the last may have 16), rows
    /// of a block together, so that a block stays in the L1 cache over the tokens of a pass.
    pub state: Vec<f32>,
    undo: Undo,
    copies: Copies,
}

impl PartialEq for DeltaState {
    fn eq(&self, other: &Self) -> bool {
        (&self.conv, &self.state) == (&other.conv, &other.state)
    }
}

/// What is needed to cut a pass over several tokens short: the state before it and the inputs of the recurrence.
#[derive(Debug, Default)]
struct Undo {
    /// The next pass is to be kept.
    begun: bool,
    rows: usize,
    conv: Vec<f32>,
    state: Vec<f32>,
    u: Vec<f32>,
    decay: Vec<f32>,
    beta: Vec<f32>,
}

/// A copy of a state cannot be cut back: it does not pay for the memory.
impl Clone for Undo {
    fn clone(&self) -> Self {
        Undo::default()
    }
}

/// States in the middle of a pass.
#[derive(Debug, Default)]
struct Copies {
    /// Numbers of rows of the next pass after which the state is to be copied, ascending.
    after: Vec<usize>,
    kept: Vec<DeltaState>,
}

/// Copies are taken out, never copied along.
impl Clone for Copies {
    fn clone(&self) -> Self {
        Copies::default()
    }
}

/// Columns of a block of the state.
const BLOCK: usize = 32;

impl DeltaState {
    /// Zeros.
    pub fn new(shape: &DeltaShape) -> Self {
        DeltaState {
            conv: vec![0.0; (shape.taps - 1) * shape.channels()],
            state: vec![0.0; shape.value_heads * shape.key_dim * shape.value_dim],
            undo: Undo::default(),
            copies: Copies::default(),
        }
    }

    /// Has the next [`gated_delta`] keep a copy of the state after each of these numbers of rows, ascending. A pass that
    /// may be cut short keeps none.
    pub fn copy_after(&mut self, rows: &[usize]) {
        self.copies.after = rows.to_vec();
        self.copies.kept.clear();
    }

    /// The copies that the last [`gated_delta`] kept, in order.
    pub fn take_copies(&mut self) -> Vec<DeltaState> {
        std::mem::take(&mut self.copies.kept)
    }

    /// Has the next [`gated_delta`] keep what [`rewind`] needs.
    pub fn begin_block(&mut self) {
        self.undo.begun = true;
        self.undo.rows = 0;
    }

    /// Rows of the last pass that can still be cut short.
    pub fn block_rows(&self) -> usize {
        self.undo.rows
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

impl<'a> DeltaInputs<'a> {
    fn after(&self, row: usize, shape: &DeltaShape) -> DeltaInputs<'a> {
        let hv = shape.value_heads;
        DeltaInputs {
            u: &self.u[row * shape.channels()..],
            z: &self.z[row * hv * shape.value_dim..],
            b: &self.b[row * hv..],
            a: &self.a[row * hv..],
        }
    }
}

/// Working memory of [`gated_delta`].
#[derive(Debug, Default)]
pub struct DeltaScratch {
    mixed: Vec<f32>,
    decay: Vec<f32>,
    beta: Vec<f32>,
    dropped: Vec<f32>,
}

/// Runs `rows` tokens of one sequence; `out` is `[rows, value_heads * value_dim]`, normed and gated.
#[allow(clippy::too_many_arguments)]
pub fn gated_delta(
    cores: &mut Cores,
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
    let after = std::mem::take(&mut state.copies.after);
    let mut first = 0;
    if !state.undo.begun {
        for &end in after.iter().filter(|&&end| end <= rows) {
            let (inputs, out) = (inputs.after(first, shape), &mut out[first * width..]);
            steps(cores, shape, weights, state, scratch, &inputs, end - first, out);
            let copy = state.clone();
            state.copies.kept.push(copy);
            first = end;
        }
    }
    let (inputs, out) = (inputs.after(first, shape), &mut out[first * width..]);
    steps(cores, shape, weights, state, scratch, &inputs, rows - first, out);
}

#[allow(clippy::too_many_arguments)]
fn steps(
    cores: &mut Cores,
    shape: &DeltaShape,
    weights: &DeltaWeights<'_>,
    state: &mut DeltaState,
    scratch: &mut DeltaScratch,
    inputs: &DeltaInputs<'_>,
    rows: usize,
    out: &mut [f32],
) {
    let isa = cores.isa();
    let (channels, hv) = (shape.channels(), shape.value_heads);
    if rows == 0 {
        return;
    }
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

    let DeltaState { conv, state: matrices, undo, .. } = state;
    undo.rows = 0;
    if std::mem::take(&mut undo.begun) {
        undo.rows = rows;
        undo.conv.clone_from(conv);
        undo.u.clear();
        undo.u.extend_from_slice(&inputs.u[..rows * channels]);
        undo.decay.clone_from(&scratch.decay);
        undo.beta.clone_from(&scratch.beta);
        // The matrices before the pass stay; those after its first token go elsewhere.
        std::mem::swap(&mut undo.state, matrices);
        matrices.resize(undo.state.len(), 0.0);
    }
    let start = (undo.rows > 0).then_some(undo.state.as_slice());
    let (decay, beta) = (&scratch.decay, &scratch.beta);
    let steps = Steps { shape, weights, before: conv, u: inputs.u, z: Some(inputs.z), decay, beta, rows };
    recur(cores, &steps, &mut scratch.mixed, start, matrices, out);
    keep_last(conv, &inputs.u[..rows * channels], channels, shape.taps - 1);
}

/// Cuts the pass that the last [`gated_delta`] made after [`DeltaState::begin_block`] short: the state becomes what its
/// first `keep` rows alone would have left. Does nothing if it had no more rows.
pub fn rewind(
    cores: &mut Cores,
    shape: &DeltaShape,
    weights: &DeltaWeights<'_>,
    state: &mut DeltaState,
    scratch: &mut DeltaScratch,
    keep: usize,
) {
    let DeltaState { conv, state: matrices, undo, .. } = state;
    if keep >= undo.rows {
        return;
    }
    undo.rows = 0;
    let (channels, width) = (shape.channels(), shape.value_heads * shape.value_dim);
    conv.clone_from(&undo.conv);
    if keep == 0 {
        std::mem::swap(matrices, &mut undo.state);
        return;
    }
    scratch.dropped.resize(keep * width, 0.0);
    let Undo { u, decay, beta, state: start, .. } = undo;
    let steps = Steps { shape, weights, before: conv, u, z: None, decay, beta, rows: keep };
    recur(cores, &steps, &mut scratch.mixed, Some(start), matrices, &mut scratch.dropped);
    keep_last(conv, &u[..keep * channels], channels, shape.taps - 1);
}

/// Runs `steps` from the matrices `start` (from `matrices` themselves if there are none) into `matrices`.
fn recur(
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

/// Inputs of the recurrence.
struct Steps<'a> {
    shape: &'a DeltaShape,
    weights: &'a DeltaWeights<'a>,
    /// The convolution's window before the first token.
    before: &'a [f32],
    u: &'a [f32],
    /// The gate of the outputs; without it they are left as they come.
    z: Option<&'a [f32]>,
    decay: &'a [f32],
    beta: &'a [f32],
    rows: usize,
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
