//! The coarse operations that families are written in.
//!
//! Activations are buffers of rows `[rows, width]` that belong to the backend. Weights are handles. Every operation is
//! row-wise or causal inside a sequence, so rows of several sequences share a call without influencing each other.

use mach_checkpoint::{CheckpointError, ModelConfig};
use mach_kernels::delta::DeltaShape;

use crate::model::{ModelError, Purpose};
use crate::state::LayerState;

/// The rows of one sequence inside a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row in the batch.
    pub start: usize,
    /// Rows.
    pub rows: usize,
    /// What they are.
    pub purpose: Purpose,
}

/// The states of one layer for all spans of a batch, in span order.
pub type LayerStates<'a> = Vec<&'a mut LayerState>;

/// Settings of an attention block (architectures.md sections 2.5 and 3).
#[derive(Debug, Clone)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rotated elements of a head.
    pub rotary_dim: usize,
    /// Whether the query projection holds, after each head's query, a gate for its output.
    pub gated: bool,
    /// Epsilon of the query and key norms.
    pub eps: f32,
}

/// Which experts each row goes to.
#[derive(Debug, Clone, Default)]
pub struct Routing {
    /// `[rows, top_k]`, by falling weight.
    pub experts: Vec<u32>,
    /// `[rows, top_k]`, what multiplies the experts' outputs.
    pub weights: Vec<f32>,
    /// `[rows]`, what multiplies the shared expert's output; empty without one.
    pub shared: Vec<f32>,
}

/// Weights of a SwiGLU network that every row goes through.
#[derive(Debug, Clone, Copy)]
pub struct Mlp<M> {
    /// `[width, hidden]`.
    pub gate: M,
    /// `[width, hidden]`.
    pub up: M,
    /// `[hidden, width]`.
    pub down: M,
}

/// Weights of the Gated DeltaNet recurrence.
#[derive(Debug, Clone)]
pub struct DeltaParams<V> {
    /// Sizes.
    pub shape: DeltaShape,
    /// `[taps, channels]`.
    pub conv: V,
    /// `[value_heads]`.
    pub dt_bias: V,
    /// `-e^A_log`, `[value_heads]`.
    pub neg_exp_a: V,
    /// `[value_dim]`.
    pub norm: V,
    /// Epsilon of that norm.
    pub eps: f32,
}

/// Places a checkpoint's weights on a device. Modules are named relative to the text model's prefix unless said otherwise.
pub trait Loader {
    /// The backend's matrices.
    type Matrix;
    /// The backend's vectors.
    type Vector;

    /// The model's settings.
    fn config(&self) -> &ModelConfig;
    /// A weight matrix in the layout of the activation mode.
    fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<Self::Matrix, CheckpointError>;
    /// A weight matrix that always meets float activations: routers, gates and other small, sensitive ones.
    fn float_matrix(
        &mut self,
        module: &str,
        rows: usize,
        cols: usize,
    ) -> Result<Self::Matrix, CheckpointError>;
    /// The output head; the embedding where the two are tied.
    fn head(&mut self, embedding: &Self::Matrix) -> Result<Self::Matrix, CheckpointError>;
    /// A float tensor, each value passed through `map`.
    fn vector(
        &mut self,
        tensor: &str,
        shape: &[usize],
        map: &dyn Fn(f32) -> f32,
    ) -> Result<Self::Vector, CheckpointError>;
    /// A norm weight `[n]` that the family may store minus one.
    fn norm(&mut self, tensor: &str, n: usize) -> Result<Self::Vector, CheckpointError>;
    /// The causal convolution of a Gated DeltaNet layer, `[taps, channels]`.
    fn conv1d(&mut self, layer: usize, channels: usize, taps: usize)
    -> Result<Self::Vector, CheckpointError>;
}

/// A device that runs models.
pub trait Backend {
    /// Rows of activations.
    type Buf: Default + std::fmt::Debug + Send;
    /// A weight matrix.
    type Matrix: Copy + std::fmt::Debug + Send;
    /// A small float vector (norm weights and the like).
    type Vector: std::fmt::Debug + Send;

    /// The values of a buffer, row-major.
    fn read<'a>(&'a self, buf: &'a Self::Buf) -> &'a [f32];
    /// Takes in rows `[_, width]`.
    fn write(&mut self, rows: &[f32], width: usize, out: &mut Self::Buf);
    /// Moves the values of a buffer out of it.
    fn take(&mut self, buf: &mut Self::Buf) -> Vec<f32>;
    /// Lets a buffer reuse the memory of values that were taken out.
    fn reuse(&mut self, values: Vec<f32>, buf: &mut Self::Buf);
    /// A pass over these spans begins.
    fn begin(&mut self, spans: &[Span]);
    /// `out[row] = table[ids[row]]`.
    fn embed(&mut self, table: &Self::Matrix, ids: &[u32], out: &mut Self::Buf);
    /// Row-wise RMS norm.
    fn rms_norm(&mut self, x: &Self::Buf, weight: &Self::Vector, eps: f32, out: &mut Self::Buf);
    /// `x += y`.
    fn add(&mut self, x: &mut Self::Buf, y: &Self::Buf);
    /// `out[i] = x weights[i]^T` for each pair; several products of one input share its preparation.
    fn linear(&mut self, x: &Self::Buf, weights: &[Self::Matrix], out: &mut [&mut Self::Buf]);
    /// Sets the positions of the batch's rows for the rotary embeddings of the calls that follow.
    fn positions(&mut self, positions: &[usize], theta: f64, rotary_dim: usize);
    /// Norms (if weights are given) and rotates queries and keys, appends keys and values to the spans' caches, attends,
    /// applies the gate. `q` is `[rows, heads * head_dim]`, twice as wide if gated.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &mut self,
        spec: &AttentionSpec,
        norms: (&Self::Vector, &Self::Vector),
        q: &Self::Buf,
        k: &Self::Buf,
        v: &Self::Buf,
        spans: &[Span],
        states: &mut LayerStates<'_>,
        out: &mut Self::Buf,
    );
    /// Convolution, delta rule and gated norm; `u`, `z`, `b`, `a` are the block's four projections.
    #[allow(clippy::too_many_arguments)]
    fn gated_delta(
        &mut self,
        params: &DeltaParams<Self::Vector>,
        inputs: [&Self::Buf; 4],
        spans: &[Span],
        states: &mut LayerStates<'_>,
        out: &mut Self::Buf,
    );
    /// Cuts the block that the last [`gated_delta`](Backend::gated_delta) of this state ran back to its first `keep`
    /// rows.
    fn rewind_delta(&mut self, params: &DeltaParams<Self::Vector>, state: &mut LayerState, keep: usize);
    /// Softmax over the experts' logits (float arithmetic whatever the activation mode), the `top_k` largest,
    /// renormalised if asked; and the sigmoid of the shared expert's gate, if there is one.
    fn route(
        &mut self,
        x: &Self::Buf,
        router: &Self::Matrix,
        shared_gate: Option<&Self::Matrix>,
        top_k: usize,
        norm: bool,
        out: &mut Routing,
    );
    /// `h += routed experts of x + shared expert of x`, each times its weight in `routing`. Fails if an expert cannot be
    /// read; `h` is then undefined.
    fn experts(
        &mut self,
        layer: usize,
        x: &Self::Buf,
        routing: &Routing,
        shared: Option<&Mlp<Self::Matrix>>,
        h: &mut Self::Buf,
    ) -> Result<(), ModelError>;
    /// `h += mlp(x)`.
    fn mlp(&mut self, mlp: &Mlp<Self::Matrix>, x: &Self::Buf, h: &mut Self::Buf);
    /// Copies the listed rows.
    fn select(&mut self, x: &Self::Buf, rows: &[usize], out: &mut Self::Buf);
}
