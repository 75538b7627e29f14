//! gpt-oss (architectures.md section 4): attention with sinks and biases, over all keys and over a window in turn, then
//! routed experts with biases and bounded activations. Modules are named as in [`qwen3_moe`], but for the router.

use mach_checkpoint::{LayerKind, ModelConfig};

use super::qwen3_moe;
use crate::device::{
    AttentionSpec, FeedForwardSpec, FfnSpec, GateFunction, LayerSpec, Mask, MixerSpec, ModelSpec, RopeKind,
    RouterSpec, ScoreFunction,
};

/// Slope of the activation's sigmoid where the file gives none.
const ALPHA: f32 = 1.702;

/// Bound of activations where the file gives none.
const LIMIT: f32 = 7.0;

/// The layers in numbers.
pub fn spec(c: &ModelConfig) -> ModelSpec {
    let layer =
        |&kind| LayerSpec { mixer: MixerSpec::Attention(attention(c, kind)), feed_forward: feed_forward(c) };
    qwen3_moe::model(c, c.layers.iter().map(layer).collect())
}

fn attention(c: &ModelConfig, kind: LayerKind) -> AttentionSpec {
    let window = c.sliding_window.filter(|_| kind == LayerKind::SlidingAttention);
    let mut spec = AttentionSpec {
        mask: Mask { window, causal: true },
        qk_norm: None,
        sinks: true,
        bias: c.attention_bias,
        ..qwen3_moe::attention(c, false)
    };
    if let Some(yarn) = c.rope.yarn {
        spec.rope.kind = RopeKind::Yarn {
            factor: yarn.factor,
            original: yarn.original,
            beta_fast: yarn.beta_fast,
            beta_slow: yarn.beta_slow,
            truncate: yarn.truncate,
            magnitude: yarn.magnitude,
        };
    }
    spec
}

fn feed_forward(c: &ModelConfig) -> FeedForwardSpec {
    FeedForwardSpec::Moe {
        router: RouterSpec {
            experts: c.moe.num_experts,
            top_k: c.moe.top_k,
            score: ScoreFunction::SoftmaxOfChosen,
            bias: false,
            logit_bias: true,
            expert_scale: false,
            normalise: false,
            scale: 1.0,
            hashed: false,
        },
        expert: FfnSpec {
            width: c.moe.intermediate_size,
            gate: GateFunction::SigmoidPlusOne { alpha: c.moe.swiglu_alpha.unwrap_or(ALPHA) },
            clamp: Some(c.moe.swiglu_limit.unwrap_or(LIMIT)),
            bias: c.moe.expert_bias,
        },
        shared: None,
    }
}
