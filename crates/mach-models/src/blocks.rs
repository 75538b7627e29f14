//! The blocks that families are put together from.

use mach_checkpoint::{CheckpointError, GdnConfig};
use mach_kernels::delta::DeltaShape;

use crate::backend::{AttentionSpec, Backend, DeltaParams, LayerStates, Loader, Mlp, Routing, Span};
use crate::model::{ModelError, Observer};
use crate::state::LayerState;

/// Buffers that a forward pass reuses.
#[derive(Debug)]
pub(crate) struct Workspace<B: Backend> {
    /// Residual stream.
    pub(crate) h: B::Buf,
    /// Normed input of a block.
    pub(crate) x: B::Buf,
    /// Output of a block.
    pub(crate) y: B::Buf,
    /// Projections.
    pub(crate) p: [B::Buf; 4],
    /// What the mixer hands to its output projection.
    pub(crate) mixed: B::Buf,
    /// Logits on their way out; by itself, for it is large.
    pub(crate) logits: B::Buf,
    pub(crate) routing: Routing,
}

impl<B: Backend> Default for Workspace<B> {
    fn default() -> Self {
        Workspace {
            h: B::Buf::default(),
            x: B::Buf::default(),
            y: B::Buf::default(),
            p: Default::default(),
            mixed: B::Buf::default(),
            logits: B::Buf::default(),
            routing: Routing::default(),
        }
    }
}

/// Softmax attention with query and key norms and rotary embedding.
#[derive(Debug)]
pub(crate) struct Attention<B: Backend> {
    spec: AttentionSpec,
    theta: f64,
    q: B::Matrix,
    k: B::Matrix,
    v: B::Matrix,
    o: B::Matrix,
    q_norm: B::Vector,
    k_norm: B::Vector,
}

impl<B: Backend> Attention<B> {
    pub(crate) fn load<L: Loader<Matrix = B::Matrix, Vector = B::Vector>>(
        from: &mut L,
        layer: usize,
        gated: bool,
    ) -> Result<Self, CheckpointError> {
        let c = from.config();
        let spec = AttentionSpec {
            heads: c.num_heads,
            kv_heads: c.num_kv_heads,
            head_dim: c.head_dim,
            rotary_dim: c.rope.rotary_dim,
            gated,
            eps: c.rms_norm_eps,
        };
        let (hidden, theta) = (c.hidden_size, c.rope.theta);
        let (width, kv_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let base = format!("layers.{layer}.self_attn");
        Ok(Attention {
            q: from.matrix(&format!("{base}.q_proj"), if gated { 2 * width } else { width }, hidden)?,
            k: from.matrix(&format!("{base}.k_proj"), kv_width, hidden)?,
            v: from.matrix(&format!("{base}.v_proj"), kv_width, hidden)?,
            o: from.matrix(&format!("{base}.o_proj"), hidden, width)?,
            q_norm: from.norm(&format!("{base}.q_norm.weight"), spec.head_dim)?,
            k_norm: from.norm(&format!("{base}.k_norm.weight"), spec.head_dim)?,
            spec,
            theta,
        })
    }

    /// From `ws.x` to `ws.y`.
    fn forward(
        &self,
        b: &mut B,
        ws: &mut Workspace<B>,
        positions: &[usize],
        spans: &[Span],
        states: &mut LayerStates<'_>,
    ) {
        let [q, k, v, _] = &mut ws.p;
        b.positions(positions, self.theta, self.spec.rotary_dim);
        b.linear(&ws.x, &[self.q, self.k, self.v], &mut [&mut *q, &mut *k, &mut *v]);
        b.attention(&self.spec, (&self.q_norm, &self.k_norm), q, k, v, spans, states, &mut ws.mixed);
        b.linear(&ws.mixed, &[self.o], &mut [&mut ws.y]);
    }
}

/// Gated DeltaNet.
#[derive(Debug)]
pub(crate) struct GatedDelta<B: Backend> {
    params: DeltaParams<B::Vector>,
    qkv: B::Matrix,
    z: B::Matrix,
    b: B::Matrix,
    a: B::Matrix,
    out: B::Matrix,
}

/// The kernel's sizes.
pub(crate) fn delta_shape(c: &GdnConfig) -> DeltaShape {
    DeltaShape {
        key_heads: c.key_heads,
        value_heads: c.value_heads,
        key_dim: c.key_dim,
        value_dim: c.value_dim,
        taps: c.conv_kernel,
    }
}

impl<B: Backend> GatedDelta<B> {
    pub(crate) fn load<L: Loader<Matrix = B::Matrix, Vector = B::Vector>>(
        from: &mut L,
        layer: usize,
        config: &GdnConfig,
    ) -> Result<Self, CheckpointError> {
        let shape = delta_shape(config);
        let (hidden, eps) = (from.config().hidden_size, from.config().rms_norm_eps);
        let (heads, width) = (shape.value_heads, shape.value_heads * shape.value_dim);
        let base = format!("layers.{layer}.linear_attn");
        let as_stored = |w: f32| w;
        Ok(GatedDelta {
            qkv: from.matrix(&format!("{base}.in_proj_qkv"), shape.channels(), hidden)?,
            z: from.matrix(&format!("{base}.in_proj_z"), width, hidden)?,
            b: from.float_matrix(&format!("{base}.in_proj_b"), heads, hidden)?,
            a: from.float_matrix(&format!("{base}.in_proj_a"), heads, hidden)?,
            out: from.matrix(&format!("{base}.out_proj"), hidden, width)?,
            params: DeltaParams {
                shape,
                conv: from.conv1d(layer, shape.channels(), shape.taps)?,
                dt_bias: from.vector(&format!("{base}.dt_bias"), &[heads], &as_stored)?,
                neg_exp_a: from.vector(&format!("{base}.A_log"), &[heads], &|a| {
                    -mach_kernels::math::exp64(f64::from(a)) as f32
                })?,
                norm: from.vector(&format!("{base}.norm.weight"), &[shape.value_dim], &as_stored)?,
                eps,
            },
        })
    }

    /// From `ws.x` to `ws.y`.
    fn forward(&self, b: &mut B, ws: &mut Workspace<B>, spans: &[Span], states: &mut LayerStates<'_>) {
        let [u, z, beta, a] = &mut ws.p;
        b.linear(&ws.x, &[self.qkv, self.z, self.b, self.a], &mut [&mut *u, &mut *z, &mut *beta, &mut *a]);
        b.gated_delta(&self.params, [u, z, beta, a], spans, states, &mut ws.mixed);
        b.linear(&ws.mixed, &[self.out], &mut [&mut ws.y]);
    }

    /// Cuts the last block back to its first `keep` rows.
    pub(crate) fn rewind(&self, b: &mut B, state: &mut LayerState, keep: usize) {
        b.rewind_delta(&self.params, state, keep);
    }
}

/// What mixes tokens.
#[derive(Debug)]
pub(crate) enum Mixer<B: Backend> {
    Attention(Attention<B>),
    GatedDelta(GatedDelta<B>),
}

/// Routed experts, with the expert that every token shares if the family has one.
#[derive(Debug)]
pub(crate) struct Moe<B: Backend> {
    router: B::Matrix,
    top_k: usize,
    norm_topk: bool,
    shared: Option<(Mlp<B::Matrix>, B::Matrix)>,
}

impl<B: Backend> Moe<B> {
    pub(crate) fn load<L: Loader<Matrix = B::Matrix, Vector = B::Vector>>(
        from: &mut L,
        layer: usize,
    ) -> Result<Self, CheckpointError> {
        let (hidden, moe) = (from.config().hidden_size, from.config().moe.clone());
        let base = format!("layers.{layer}.mlp");
        let shared = match moe.shared_intermediate_size {
            Some(width) => Some((
                load_mlp(from, &format!("{base}.shared_expert"), width)?,
                from.float_matrix(&format!("{base}.shared_expert_gate"), 1, hidden)?,
            )),
            None => None,
        };
        Ok(Moe {
            router: from.float_matrix(&format!("{base}.gate"), moe.num_experts, hidden)?,
            top_k: moe.top_k,
            norm_topk: moe.norm_topk_prob,
            shared,
        })
    }
}

/// `gate_proj`, `up_proj` and `down_proj` under `base`.
pub(crate) fn load_mlp<L: Loader>(
    from: &mut L,
    base: &str,
    width: usize,
) -> Result<Mlp<L::Matrix>, CheckpointError> {
    let hidden = from.config().hidden_size;
    Ok(Mlp {
        gate: from.matrix(&format!("{base}.gate_proj"), width, hidden)?,
        up: from.matrix(&format!("{base}.up_proj"), width, hidden)?,
        down: from.matrix(&format!("{base}.down_proj"), hidden, width)?,
    })
}

/// What works on each token by itself.
#[derive(Debug)]
pub(crate) enum FeedForward<B: Backend> {
    Moe(Moe<B>),
    Dense(Mlp<B::Matrix>),
}

/// One pre-norm layer: `h += mix(norm h)`, `h += feed_forward(norm h)`.
#[derive(Debug)]
pub(crate) struct Layer<B: Backend> {
    pub(crate) input_norm: B::Vector,
    pub(crate) mixer: Mixer<B>,
    pub(crate) post_norm: B::Vector,
    pub(crate) feed_forward: FeedForward<B>,
}

impl<B: Backend> Layer<B> {
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn forward(
        &self,
        b: &mut B,
        ws: &mut Workspace<B>,
        index: usize,
        eps: f32,
        positions: &[usize],
        spans: &[Span],
        states: &mut LayerStates<'_>,
        observer: &mut dyn Observer,
    ) -> Result<(), ModelError> {
        b.rms_norm(&ws.h, &self.input_norm, eps, &mut ws.x);
        match &self.mixer {
            Mixer::Attention(attention) => attention.forward(b, ws, positions, spans, states),
            Mixer::GatedDelta(delta) => delta.forward(b, ws, spans, states),
        }
        b.add(&mut ws.h, &ws.y);
        b.rms_norm(&ws.h, &self.post_norm, eps, &mut ws.x);
        match &self.feed_forward {
            FeedForward::Moe(moe) => {
                let (shared, gate) = moe.shared.as_ref().map(|(mlp, gate)| (mlp, gate)).unzip();
                b.route(&ws.x, &moe.router, gate, moe.top_k, moe.norm_topk, &mut ws.routing);
                observer.routed(index, &ws.routing.experts, &ws.routing.weights);
                b.experts(index, &ws.x, &ws.routing, shared, &mut ws.h)?;
            }
            FeedForward::Dense(mlp) => b.mlp(mlp, &ws.x, &mut ws.h),
        }
        Ok(())
    }
}
