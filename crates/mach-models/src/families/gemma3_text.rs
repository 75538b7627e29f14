//! The text model of Gemma 3: sliding and full attention layers of different rotary bases, norms before and behind each block,
//! norms of queries and keys, GeGLU; norm weights are stored minus one.

use mach_checkpoint::{CheckpointError, LayerKind, ModelConfig};

use super::{Parts, gemma4, qwen3_moe};
use crate::blocks::Layer;
use crate::device::{
    AttentionSpec, FeedForwardSpec, FfnSpec, GateFunction, LayerSpec, Loader, Mask, MixerSpec, ModelSpec,
    RopeSpec,
};

/// The layers in numbers.
pub fn spec(c: &ModelConfig) -> ModelSpec {
    let network = FfnSpec { gate: GateFunction::GeluTanh, ..FfnSpec::swiglu(c.intermediate_size) };
    let layer = |&kind| LayerSpec {
        mixer: MixerSpec::Attention(attention(c, kind)),
        feed_forward: FeedForwardSpec::Dense(network),
    };
    ModelSpec {
        embedding_scale: gemma4::embedding_scale(c.hidden_size),
        softcap: c.gemma3.as_ref().and_then(|gemma3| gemma3.softcap),
        ..qwen3_moe::model(c, c.layers.iter().map(layer).collect())
    }
}

fn attention(c: &ModelConfig, kind: LayerKind) -> AttentionSpec {
    let plain = qwen3_moe::attention(c, false);
    let scale = c.gemma3.as_ref().map(|gemma3| gemma3.scale);
    match (kind, &c.gemma3) {
        (LayerKind::FullAttention, Some(gemma3)) => {
            AttentionSpec { rope: RopeSpec { theta: gemma3.full_theta, ..plain.rope }, scale, ..plain }
        }
        _ => AttentionSpec { mask: Mask { window: c.sliding_window, causal: true }, scale, ..plain },
    }
}

pub(super) fn load<L: Loader>(
    from: &mut L,
    spec: &ModelSpec,
) -> Result<Parts<L::Matrix, L::Vector>, CheckpointError> {
    qwen3_moe::load_layers(from, spec, |from, index, layer| {
        Layer::load_between_norms(from, index, layer, None)
    })
}
