//! Qwen3 MoE (architectures.md section 3): pre-norm attention with query and key norms, then routed experts without a
//! shared one; single layers may be dense.

use mach_checkpoint::{CheckpointError, ModelConfig};

use super::Parts;
use crate::blocks::Layer;
use crate::device::{
    AttentionSpec, FeedForwardSpec, FfnSpec, LayerSpec, Loader, Mask, MixerSpec, ModelSpec, RopeKind,
    RopeSpec, RouterSpec, ScoreFunction,
};

/// The layers in numbers.
pub fn spec(c: &ModelConfig) -> ModelSpec {
    let layer = |index| LayerSpec {
        mixer: MixerSpec::Attention(attention(c, false)),
        feed_forward: feed_forward(c, index),
    };
    model(c, (0..c.layers.len()).map(layer).collect())
}

/// A model of the Qwen families with these layers.
pub(super) fn model(c: &ModelConfig, layers: Vec<LayerSpec>) -> ModelSpec {
    ModelSpec {
        hidden: c.hidden_size,
        vocab: c.vocab_size,
        eps: c.rms_norm_eps,
        embedding_scale: 1.0,
        softcap: None,
        streams: None,
        layers,
    }
}

/// Attention over all keys up to a query's own, queries and keys normed.
pub(super) fn attention(c: &ModelConfig, gated: bool) -> AttentionSpec {
    let rope = RopeSpec { theta: c.rope.theta, rotary_dim: c.rope.rotary_dim, kind: RopeKind::Half };
    AttentionSpec {
        heads: c.num_heads,
        kv_heads: c.num_kv_heads,
        head_dim: c.head_dim,
        rope,
        mask: Mask::CAUSAL,
        gated,
        qk_norm: Some(c.rms_norm_eps),
        v_norm: None,
        scale: None,
        softcap: None,
        sinks: false,
        bias: false,
        k_as_v: false,
        plain_cache: false,
    }
}

/// Experts chosen by softmax, with the shared one if there is one; a dense network where the layer has no experts.
pub(super) fn feed_forward(c: &ModelConfig, index: usize) -> FeedForwardSpec {
    if !c.moe_layers.get(index).is_some_and(|&moe| moe) {
        return FeedForwardSpec::Dense(FfnSpec::swiglu(c.intermediate_size));
    }
    FeedForwardSpec::Moe {
        router: RouterSpec {
            experts: c.moe.num_experts,
            top_k: c.moe.top_k,
            score: ScoreFunction::Softmax,
            bias: false,
            logit_bias: false,
            normalise: c.moe.norm_topk_prob,
            scale: 1.0,
            expert_scale: false,
            hashed: false,
        },
        expert: FfnSpec::swiglu(c.moe.intermediate_size),
        shared: c.moe.shared_intermediate_size.map(FfnSpec::swiglu),
    }
}

pub(super) fn load<L: Loader>(
    from: &mut L,
    spec: &ModelSpec,
    router: &str,
) -> Result<Parts<L::Matrix, L::Vector>, CheckpointError> {
    load_layers(from, spec, |from, index, layer| Layer::load(from, index, router, layer))
}

/// A model of layers that `layer` loads.
pub(super) fn load_layers<L: Loader>(
    from: &mut L,
    spec: &ModelSpec,
    layer: impl Fn(&mut L, usize, &LayerSpec) -> Result<Layer<L::Matrix, L::Vector>, CheckpointError>,
) -> Result<Parts<L::Matrix, L::Vector>, CheckpointError> {
    let embedding = from.matrix("embed_tokens", spec.vocab, spec.hidden)?;
    let layers = spec.layers.iter().enumerate();
    Ok(Parts {
        layers: layers.map(|(index, spec)| layer(from, index, spec)).collect::<Result<_, _>>()?,
        collapse: None,
        final_norm: from.norm("norm.weight", spec.hidden)?,
        head: from.head(&embedding)?,
        embedding,
    })
}
