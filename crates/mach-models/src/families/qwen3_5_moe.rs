//! Qwen3.5 and Qwen3.6 MoE (architectures.md section 2): Gated DeltaNet layers with a gated softmax attention layer
//! every few, each followed by routed experts and a shared one. Modules are named as in [`qwen3_moe`].

use mach_checkpoint::{Family, GdnConfig, LayerKind, ModelConfig};

use super::qwen3_moe;
use crate::device::{AttentionSpec, DeltaSpec, LayerSpec, MixerSpec, ModelSpec};

/// The layers in numbers.
pub fn spec(c: &ModelConfig) -> ModelSpec {
    let mixer = |kind: LayerKind| match (kind, &c.gdn) {
        (LayerKind::LinearAttention, Some(gdn)) => MixerSpec::GatedDelta(delta(gdn, c.rms_norm_eps)),
        _ => MixerSpec::Attention(qwen3_moe::attention(c, true)),
    };
    let layer =
        |(index, &kind)| LayerSpec { mixer: mixer(kind), feed_forward: qwen3_moe::feed_forward(c, index) };
    qwen3_moe::model(c, c.layers.iter().enumerate().map(layer).collect())
}

/// The layer of the block that predicts the token after the next, if the model may have one: attention with experts.
pub(crate) fn mtp_layer(c: &ModelConfig) -> Option<LayerSpec> {
    if c.family != Family::Qwen3_5Moe {
        return None;
    }
    let attention = AttentionSpec { plain_cache: true, ..qwen3_moe::attention(c, true) };
    let experts = c.moe_layers.iter().position(|&moe| moe)?;
    Some(LayerSpec {
        mixer: MixerSpec::Attention(attention),
        feed_forward: qwen3_moe::feed_forward(c, experts),
    })
}

fn delta(gdn: &GdnConfig, eps: f32) -> DeltaSpec {
    DeltaSpec {
        key_heads: gdn.key_heads,
        value_heads: gdn.value_heads,
        key_dim: gdn.key_dim,
        value_dim: gdn.value_dim,
        taps: gdn.conv_kernel,
        eps,
    }
}
