//! Gated DeltaNet: causal convolution and the token-by-token delta rule (Yang et al., "Gated Delta Networks", 2024).
//!
//! For each value head, state `S [key_dim, value_dim]` and token: `m = k^T S`, `d = (v - a m) beta`, `S = a S + k d^T`,
//! `o = q^T S`, with `a = e^g`. The two sums over rows of `S` are four partial sums by row modulo 4, rows ascending, then
//! `(0 + 1) + (2 + 3)`. Columns of `S` are independent.

mod recurrence;
mod state;

use recurrence::{Gates, Steps, recur};
pub use state::DeltaState;
use state::{Undo, keep_last};

use crate::{Cores, dispatch};

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
    /// Epsilon of the gated norm.
    pub eps: f32,
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
    rates: Vec<f32>,
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
    scratch.rates.clear();
    scratch.beta.clear();
    for (i, (&a, &b)) in inputs.a.iter().zip(inputs.b).take(rows * hv).enumerate() {
        scratch.decay.push(a + weights.dt_bias[i % hv]);
        scratch.rates.push(weights.neg_exp_a[i % hv]);
        scratch.beta.push(b);
    }
    scratch.decay.resize(pad, 0.0);
    scratch.rates.resize(pad, 0.0);
    scratch.beta.resize(pad, 0.0);
    let DeltaScratch { decay, rates, beta, .. } = scratch;
    dispatch(isa, Gates { decay, rates, beta });

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
