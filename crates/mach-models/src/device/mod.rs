//! The contract between what is computed and where: coarse operations that families, blocks and drafts are written in.
//!
//! Operations **record** and return nothing: a device may run them at once (the CPU does) or put them into a command buffer.
//! [`Device::finish`] submits what was recorded, waits, and returns what the host asked for; nothing else reads back.
//! Buffers, weights, routing and the state of layers belong to the device. Every operation is row-wise or causal inside
//! a sequence, so rows of several sequences share a pass without influencing each other.
//!
//! [`Device::experts`] may wait, for experts may have to be read. A device that would rather go on may instead stop at a
//! layer and say in [`Finish::Missing`] which experts it lacks; operations recorded behind that layer's `experts` then
//! count for nothing and are recorded again.

mod place;
mod spec;
mod state;

use std::sync::Arc;
use std::time::Duration;

use mach_checkpoint::Tensors;
use mach_experts::{HotExperts, StreamingStats};

pub use place::{CheckpointLoader, Loader, Place, Placement};
pub use spec::{
    AttentionSpec, CompressedSpec, DeltaSpec, FeedForwardSpec, FfnSpec, GateFunction, IndexSpec, LayerSpec,
    Mask, MixerSpec, ModelSpec, PoolSpec, RopeKind, RopeSpec, RouterSpec, ScoreFunction, StreamSpec,
    YarnSpec,
};
pub use state::{LayerState, StateSink, StateSource};

use crate::card::DeviceCard;
use crate::{ModelError, Purpose};

/// The rows of one sequence inside a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row in the pass.
    pub start: usize,
    /// How many rows.
    pub rows: usize,
    /// Position of the first row in its sequence.
    pub position: usize,
    /// What they are.
    pub purpose: Purpose,
}

/// Small weights of attention.
#[derive(Debug, Clone, Default)]
pub struct AttentionWeights<V> {
    /// `[head_dim]`, if queries are normed.
    pub q_norm: Option<V>,
    /// `[head_dim]`, if keys are normed.
    pub k_norm: Option<V>,
    /// `[heads]`, if the spec says sinks.
    pub sinks: Option<V>,
}

/// Small weights of a router, each `[experts]`.
#[derive(Debug, Clone)]
pub struct RouterWeights<V> {
    /// What is added to each expert's logit, if the spec says so.
    pub logit_bias: Option<V>,
    /// What each expert's weight is multiplied by in the end, if the spec says so.
    pub expert_scale: Option<V>,
}

/// Small weights of Gated DeltaNet.
#[derive(Debug, Clone)]
pub struct DeltaWeights<V> {
    /// `[taps, channels]`.
    pub conv: V,
    /// `[value_heads]`.
    pub dt_bias: V,
    /// `-e^A_log`, `[value_heads]`.
    pub neg_exp_a: V,
    /// `[value_dim]`.
    pub norm: V,
}

/// Small weights of a pool of compressed attention.
#[derive(Debug, Clone)]
pub struct PoolWeights<V> {
    /// Added to the gates of a window's tokens, `[ratio, width]`, twice as wide if windows overlap.
    pub ape: V,
    /// RMS norm of entries, `[width]`.
    pub norm: V,
}

/// Small weights of compressed attention.
#[derive(Debug, Clone)]
pub struct CompressedWeights<V> {
    /// RMS norm of keys, `[head_dim]`.
    pub kv_norm: V,
    /// `[heads]`.
    pub sinks: V,
    /// The entries' pool, if the layer has entries.
    pub pool: Option<PoolWeights<V>>,
    /// The index's pool, if it has an index.
    pub index: Option<PoolWeights<V>>,
}

/// Projections of compressed attention; those that the layer does not have are not looked at.
#[derive(Debug)]
pub struct CompressedInputs<'a, B> {
    /// `[rows, heads * head_dim]`.
    pub queries: &'a B,
    /// `[rows, head_dim]`.
    pub keys: &'a B,
    /// Values and gates of the entries' pool, `[rows, head_dim]`, twice as wide if windows overlap.
    pub pool: [&'a B; 2],
    /// Values and gates of the index's pool, of its own width.
    pub index_pool: [&'a B; 2],
    /// Queries of the index, `[rows, heads * head_dim]`.
    pub index_queries: &'a B,
    /// Weights of its heads, `[rows, heads]`.
    pub index_weights: &'a B,
}

/// Weights of a place where residual streams meet a block, or of the end of the model.
#[derive(Debug, Clone)]
pub struct StreamWeights<V> {
    /// `[outputs, streams * hidden]`; outputs are `(2 + streams) * streams`, at the end of the model `streams`.
    pub project: V,
    /// `[outputs]`.
    pub base: V,
    /// `[3]`, at the end of the model `[1]`.
    pub scale: V,
}

/// What chooses experts beside the scores.
#[derive(Debug, Clone, Default)]
pub struct ChoiceWeights<V> {
    /// Added to what is chosen by, `[experts]`, if the spec says a bias.
    pub bias: Option<V>,
    /// The experts of each token, `[vocab, top_k]`, if the spec says by token.
    pub table: Option<V>,
}

/// A gated network that every row goes through.
#[derive(Debug, Clone)]
pub struct Mlp<M, V> {
    /// Sizes and activation.
    pub spec: FfnSpec,
    /// `[width, hidden]`.
    pub gate: M,
    /// `[width, hidden]`.
    pub up: M,
    /// `[hidden, width]`.
    pub down: M,
    /// What is added to the outputs of gate, up and down, if the spec says biases.
    pub biases: Option<[V; 3]>,
}

/// A grouped dynamic convolution over the rows of a block:
/// `out_i[ch] = sum_o (base[o, ch] + dynamic_i[o, ch / group]) x_{i - o}[ch]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvolutionSpec {
    /// Rows that it reaches over, its own included.
    pub kernel: usize,
    /// Channels that share a dynamic coefficient.
    pub group: usize,
    /// Which of the convolutions that lie side by side in `base` and `dynamic`.
    pub which: usize,
}

/// Weights that were brought to a device together.
#[derive(Debug, PartialEq, Eq)]
pub struct Placed(pub usize);

/// What a tapped buffer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tap {
    /// The residual stream: 0 after the embedding, `n + 1` after layer `n`.
    Hidden(usize),
    /// After the final norm; only the rows whose logits are wanted.
    LastNorm,
}

/// What the host asked for.
#[derive(Debug, Default)]
pub struct Readback {
    /// The buffers of [`Device::output`], row-major, in the order of the calls.
    pub outputs: std::vec::IntoIter<Vec<f32>>,
    /// The buffers of [`Device::tap`].
    pub taps: Vec<(Tap, Vec<f32>)>,
    /// What [`Device::tap_routing`] asked for: the layer, experts and weights `[rows, top_k]` by falling weight.
    pub routing: Vec<(usize, Vec<u32>, Vec<f32>)>,
    /// Time that the pass spent in [`Device::experts`], waiting for reads included.
    pub experts_took: Duration,
}

/// How a pass ended.
#[derive(Debug)]
pub enum Finish {
    /// It is done.
    Done(Readback),
    /// It stopped before the `experts` of a layer. Once [`Device::bring`] has fetched them, the pass goes on with that
    /// operation, recorded anew with all that follows it. What was tapped before is kept.
    Missing {
        /// Index of the layer that stopped.
        layer: usize,
        /// Experts of the layer that are not there.
        experts: Vec<usize>,
    },
}

/// A device that runs models.
pub trait Device: std::fmt::Debug + Send + 'static {
    /// Rows of activations `[rows, width]`.
    type Buf: Default + std::fmt::Debug + Send;
    /// A weight matrix `[rows, cols]`.
    type Matrix: Copy + std::fmt::Debug + Send;
    /// A small float vector (norm weights and the like).
    type Vector: std::fmt::Debug + Send;
    /// Which experts each row goes to, and with which weights.
    type Routing: Default + std::fmt::Debug + Send;
    /// The state of a layer of one sequence.
    type LayerState: LayerState;
    /// Weights on their way to the device.
    type Placement<'a>: Placement<'a, Matrix = Self::Matrix, Vector = Self::Vector>;

    /// Name of the arithmetic: with equal names, equal tokens lead to equal logits and states, bit for bit. Part of every key
    /// of a prefix cache.
    fn numerics(&self) -> String;
    /// What runs here.
    fn card(&self) -> DeviceCard;
    /// Says what of a model cannot be run, naming it.
    fn check(&self, spec: &ModelSpec) -> Result<(), ModelError>;
    /// Where streaming publishes its counters; `None` if all experts are in memory.
    fn streaming_stats(&self) -> Option<Arc<StreamingStats>>;
    /// Has experts that are likely to be used read while there is nothing better to do.
    fn bring_hot(&mut self, hot: &HotExperts);

    /// Begins to place weights of these files.
    fn placement<'a>(&self, tensors: &'a Tensors) -> Self::Placement<'a>;
    /// Brings placed weights into memory. Their handles are good until they are released.
    fn fill(
        &mut self,
        placement: Self::Placement<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Placed, ModelError>;
    /// Frees weights that were placed together.
    fn release(&mut self, placed: Placed);

    /// The empty state of a layer.
    fn new_state(&self, layer: &LayerSpec) -> Self::LayerState;
    /// Bytes of state that a sequence of `tokens` tokens takes.
    fn state_bytes(&self, spec: &ModelSpec, tokens: usize) -> usize;

    /// A pass over these spans begins.
    fn begin(&mut self, spans: &[Span]);
    /// The token of each row of the pass that has begun, for routers that go by it.
    fn tokens(&mut self, ids: &[u32]);
    /// Submits what was recorded since [`begin`](Self::begin), waits for it, and reads back. After an error the states of
    /// the pass are unusable, and the device is ready for the next one.
    fn finish(&mut self) -> Result<Finish, ModelError>;
    /// Fetches experts that a pass has stopped for.
    fn bring(&mut self, layer: usize, experts: &[usize]) -> Result<(), ModelError>;
    /// Has `finish` return the values of a buffer, which loses them.
    fn output(&mut self, x: &mut Self::Buf);
    /// Lets a buffer use the memory of values that were read back and are done with.
    fn reuse(&mut self, values: Vec<f32>, buf: &mut Self::Buf);
    /// Has `finish` return a copy of the values as they are now.
    fn tap(&mut self, tap: Tap, x: &Self::Buf);
    /// Has `finish` return a copy of the routing as it is now.
    fn tap_routing(&mut self, layer: usize, routing: &Self::Routing);

    /// Takes in rows `[_, width]` from the host.
    fn write(&mut self, rows: &[f32], width: usize, out: &mut Self::Buf);
    /// `out[row] = scale * table[ids[row]]`.
    fn embed(&mut self, table: &Self::Matrix, ids: &[u32], scale: f32, out: &mut Self::Buf);
    /// `out = 0`, in the shape of `x`.
    fn clear(&mut self, x: &Self::Buf, out: &mut Self::Buf);
    /// Copies the listed rows.
    fn select(&mut self, x: &Self::Buf, rows: &[usize], out: &mut Self::Buf);
    /// `out[row] = [left[row], right[row]]`.
    fn join(&mut self, left: &Self::Buf, right: &Self::Buf, out: &mut Self::Buf);
    /// Row-wise RMS norm.
    fn norm(&mut self, x: &Self::Buf, weight: &Self::Vector, eps: f32, out: &mut Self::Buf);
    /// `x += y`.
    fn add(&mut self, x: &mut Self::Buf, y: &Self::Buf);
    /// Adds a bias to every row.
    fn add_bias(&mut self, x: &mut Self::Buf, bias: &Self::Vector);
    /// `out[i] = x weights[i]^T` for each pair; several products of one input share its preparation.
    fn linear(&mut self, x: &Self::Buf, weights: &[Self::Matrix], out: &mut [&mut Self::Buf]);
    /// `gate = act(gate) * up`.
    fn gate(&mut self, spec: &FfnSpec, gate: &mut Self::Buf, up: &Self::Buf);
    /// `x = cap * tanh(scale * x / cap)`; without a cap, `x = scale * x`.
    fn cap(&mut self, x: &mut Self::Buf, scale: f32, cap: Option<f32>);
    /// One convolution of [`ConvolutionSpec`]: `base` is `[_, kernel, channels]`, `dynamic` `[rows, _ kernel channels / group]`.
    fn convolve(
        &mut self,
        spec: &ConvolutionSpec,
        base: &Self::Vector,
        dynamic: &Self::Buf,
        x: &Self::Buf,
        out: &mut Self::Buf,
    );
    /// For each row `[1]` by how much its largest value leads the second largest.
    fn margins(&mut self, x: &Self::Buf, out: &mut Self::Buf);
    /// The `k` largest values of each row by falling value, as a routing: their places and themselves.
    fn top_k(&mut self, x: &Self::Buf, k: usize, out: &mut Self::Routing);

    /// Norms (if there are weights) and rotates queries and keys, appends keys and values to the spans' states, attends,
    /// applies the gate. `q` is `[rows, heads * head_dim]`, twice as wide if gated; `states` has one state a span. Where a
    /// window hides keys from every query that can still come, they may be forgotten: what a block that is cut short, or
    /// a copy that was asked for, goes back to is kept.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &mut self,
        spec: &AttentionSpec,
        weights: &AttentionWeights<Self::Vector>,
        q: &Self::Buf,
        k: &Self::Buf,
        v: &Self::Buf,
        states: &mut [&mut Self::LayerState],
        out: &mut Self::Buf,
    );
    /// The part of [`attention`](Self::attention) that appends keys and values, for rows that nothing is asked of. What no
    /// later row can see is forgotten.
    fn append(
        &mut self,
        spec: &AttentionSpec,
        weights: &AttentionWeights<Self::Vector>,
        k: &Self::Buf,
        v: &Self::Buf,
        states: &mut [&mut Self::LayerState],
    );
    /// Convolution, delta rule and gated norm; `u`, `z`, `b`, `a` are the block's four projections.
    fn gated_delta(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Self::Vector>,
        inputs: [&Self::Buf; 4],
        states: &mut [&mut Self::LayerState],
        out: &mut Self::Buf,
    );
    /// Cuts the block that the last [`gated_delta`](Self::gated_delta) of this state ran back to its first `keep` rows.
    fn rewind_delta(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Self::Vector>,
        state: &mut Self::LayerState,
        keep: usize,
    );

    /// `out[row, g] = x[row, g] weight[g]^T` for each of `groups` equal parts of a row, `weight` being as many matrices one
    /// below the other.
    fn grouped_linear(&mut self, x: &Self::Buf, weight: &Self::Matrix, groups: usize, out: &mut Self::Buf);
    /// Norms and rotates queries and keys, takes keys, and windows that became full, into the spans' states, attends, and
    /// rotates what comes out back.
    fn compressed_attention(
        &mut self,
        spec: &CompressedSpec,
        weights: &CompressedWeights<Self::Vector>,
        inputs: &CompressedInputs<'_, Self::Buf>,
        states: &mut [&mut Self::LayerState],
        out: &mut Self::Buf,
    );

    /// `out[row] = [x[row]; streams]`.
    fn spread(&mut self, x: &Self::Buf, streams: usize, out: &mut Self::Buf);
    /// The weighted sum of a row's streams, `[rows, hidden]`, and into `mixing` what [`mix`](Self::mix) needs behind the
    /// block; nothing at the end of the model.
    fn collapse(
        &mut self,
        spec: &StreamSpec,
        weights: &StreamWeights<Self::Vector>,
        streams: &Self::Buf,
        mixing: &mut Self::Buf,
        out: &mut Self::Buf,
    );
    /// Mixes a row's streams and adds `y` to each, by the weights of the last [`collapse`](Self::collapse).
    fn mix(&mut self, spec: &StreamSpec, mixing: &Self::Buf, y: &Self::Buf, streams: &mut Self::Buf);

    /// Chooses experts by scores that do not depend on each other (float arithmetic whatever the activation mode). A
    /// shared expert has weight 1.
    fn route_by_score(
        &mut self,
        spec: &RouterSpec,
        x: &Self::Buf,
        router: &Self::Matrix,
        choice: &ChoiceWeights<Self::Vector>,
        out: &mut Self::Routing,
    );
    /// Chooses experts (float arithmetic whatever the activation mode), and the sigmoid of the shared expert's gate if
    /// there is one.
    #[allow(clippy::too_many_arguments)]
    fn route(
        &mut self,
        spec: &RouterSpec,
        x: &Self::Buf,
        router: &Self::Matrix,
        weights: &RouterWeights<Self::Vector>,
        shared_gate: Option<&Self::Matrix>,
        out: &mut Self::Routing,
    );
    /// `h += routed experts of x + shared expert of x`, each times its weight in `routing`; `spec` is that of the routed
    /// ones. Fails if an expert cannot be read; the pass has failed then.
    #[allow(clippy::too_many_arguments)]
    fn experts(
        &mut self,
        layer: usize,
        spec: &FfnSpec,
        x: &Self::Buf,
        routing: &Self::Routing,
        shared: Option<&Mlp<Self::Matrix, Self::Vector>>,
        h: &mut Self::Buf,
    ) -> Result<(), ModelError>;
    /// As [`experts`](Self::experts) where the experts are weights of their own, one after the other, and in no bank.
    fn placed_experts(
        &mut self,
        experts: &[Mlp<Self::Matrix, Self::Vector>],
        x: &Self::Buf,
        routing: &Self::Routing,
        shared: Option<&Mlp<Self::Matrix, Self::Vector>>,
        h: &mut Self::Buf,
    );
    /// `h += mlp(x)`.
    fn mlp(&mut self, mlp: &Mlp<Self::Matrix, Self::Vector>, x: &Self::Buf, h: &mut Self::Buf);
}
