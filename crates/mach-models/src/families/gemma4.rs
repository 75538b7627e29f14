//! Gemma 4 with experts (architectures.md section 5): sliding and full attention layers of different head sizes, norms
//! before and behind each block, and a dense network beside the experts.

use mach_checkpoint::{CheckpointError, Gemma4Config, LayerKind, ModelConfig};

use super::{Parts, qwen3_moe};
use crate::blocks::Layer;
use crate::device::{
    AttentionSpec, FeedForwardSpec, FfnSpec, GateFunction, LayerSpec, Loader, Mask, MixerSpec, ModelSpec,
    RopeKind, RopeSpec, RouterSpec,
};

/// The layers in numbers.
pub fn spec(c: &ModelConfig) -> ModelSpec {
    let layer = |(index, &kind)| LayerSpec {
        mixer: MixerSpec::Attention(attention(c, index, kind)),
        feed_forward: feed_forward(c, index),
    };
    ModelSpec {
        embedding_scale: embedding_scale(c.hidden_size),
        softcap: c.gemma4.as_ref().and_then(|gemma4| gemma4.softcap),
        ..qwen3_moe::model(c, c.layers.iter().enumerate().map(layer).collect())
    }
}

/// The root of the hidden size, rounded to bfloat16 as it is where such models are trained.
pub(super) fn embedding_scale(hidden: usize) -> f32 {
    half::bf16::from_f32((hidden as f32).sqrt()).to_f32()
}

fn attention(c: &ModelConfig, index: usize, kind: LayerKind) -> AttentionSpec {
    let (kv_heads, head_dim) = c.kv_heads(index);
    let plain = qwen3_moe::attention(c, false);
    let spec = AttentionSpec {
        kv_heads,
        head_dim,
        rope: RopeSpec { theta: c.rope.theta, rotary_dim: head_dim, kind: RopeKind::Half },
        v_norm: Some(c.rms_norm_eps),
        scale: Some(1.0),
        ..plain
    };
    match (kind, &c.gemma4) {
        (LayerKind::FullAttention, Some(gemma4)) => {
            AttentionSpec { rope: full_rope(gemma4, head_dim), k_as_v: gemma4.k_as_v, ..spec }
        }
        _ => AttentionSpec { mask: Mask { window: c.sliding_window, causal: true }, ..spec },
    }
}

fn full_rope(gemma4: &Gemma4Config, head_dim: usize) -> RopeSpec {
    let turning = (gemma4.full_turning * head_dim as f64 / 2.0) as usize;
    RopeSpec { theta: gemma4.full_theta, rotary_dim: head_dim, kind: RopeKind::Proportional { turning } }
}

fn feed_forward(c: &ModelConfig, index: usize) -> FeedForwardSpec {
    let geglu = |width| FfnSpec { gate: GateFunction::GeluTanh, ..FfnSpec::swiglu(width) };
    match qwen3_moe::feed_forward(c, index) {
        FeedForwardSpec::Moe { router, expert, .. } => FeedForwardSpec::Beside {
            dense: geglu(c.intermediate_size),
            router: RouterSpec { expert_scale: true, ..router },
            expert: geglu(expert.width),
        },
        other => other,
    }
}

pub(super) fn load<L: Loader>(
    from: &mut L,
    spec: &ModelSpec,
) -> Result<Parts<L::Matrix, L::Vector>, CheckpointError> {
    qwen3_moe::load_layers(from, spec, |from, index, layer| {
        Layer::load_between_norms(from, index, layer, Some("layer_scalar"))
    })
}
