//! Llama, and the many models of its form: pre-norm attention without norms of queries and keys, then a dense network.
//! Frequencies of the rotary embedding may be stretched as in Llama 3.1.

use mach_checkpoint::{LayerKind, ModelConfig};

use super::qwen3_moe;
use crate::device::{AttentionSpec, LayerSpec, Mask, MixerSpec, ModelSpec, RopeKind, RopeSpec};

/// The layers in numbers.
pub fn spec(c: &ModelConfig) -> ModelSpec {
    let layer = |(index, &kind)| LayerSpec {
        mixer: MixerSpec::Attention(attention(c, kind)),
        feed_forward: qwen3_moe::feed_forward(c, index),
    };
    qwen3_moe::model(c, c.layers.iter().enumerate().map(layer).collect())
}

fn attention(c: &ModelConfig, kind: LayerKind) -> AttentionSpec {
    let plain = qwen3_moe::attention(c, false);
    let window = c.sliding_window.filter(|_| kind == LayerKind::SlidingAttention);
    let rope = match c.rope.llama3 {
        Some(llama3) => {
            let kind = RopeKind::Llama3 {
                factor: llama3.factor,
                low: llama3.low,
                high: llama3.high,
                original: llama3.original,
            };
            RopeSpec { kind, ..plain.rope }
        }
        None => plain.rope,
    };
    AttentionSpec { rope, mask: Mask { window, causal: true }, qk_norm: None, ..plain }
}
