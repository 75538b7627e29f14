//! Qwen3.5 and Qwen3.6 MoE (architectures.md section 2): Gated DeltaNet layers with a gated softmax attention layer
//! every few, each followed by routed experts and a shared one.

use mach_checkpoint::{CheckpointError, LayerKind};

use crate::backend::{Backend, Loader};
use crate::blocks::{Attention, FeedForward, GatedDelta, Layer, Mixer, Moe};
use crate::decoder::Parts;

pub(crate) fn load<B: Backend, L: Loader<Matrix = B::Matrix, Vector = B::Vector>>(
    from: &mut L,
) -> Result<Parts<B>, CheckpointError> {
    let config = from.config().clone();
    let hidden = config.hidden_size;
    let embedding = from.matrix("embed_tokens", config.vocab_size, hidden)?;
    let mut layers = Vec::with_capacity(config.layers.len());
    for (n, &kind) in config.layers.iter().enumerate() {
        let mixer = match (kind, &config.gdn) {
            (LayerKind::LinearAttention, Some(gdn)) => Mixer::GatedDelta(GatedDelta::load(from, n, gdn)?),
            _ => Mixer::Attention(Attention::load(from, n, true)?),
        };
        layers.push(Layer {
            input_norm: from.norm(&format!("layers.{n}.input_layernorm.weight"), hidden)?,
            mixer,
            post_norm: from.norm(&format!("layers.{n}.post_attention_layernorm.weight"), hidden)?,
            feed_forward: FeedForward::Moe(Moe::load(from, n)?),
        });
    }
    Ok(Parts {
        layers,
        final_norm: from.norm("norm.weight", hidden)?,
        head: from.head(&embedding)?,
        embedding,
    })
}
