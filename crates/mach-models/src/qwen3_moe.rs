//! Qwen3 MoE (architectures.md section 3): pre-norm attention with query and key norms, then routed experts without a
//! shared one; single layers may be dense.

use mach_checkpoint::CheckpointError;

use crate::backend::{Backend, Loader};
use crate::blocks::{Attention, FeedForward, Layer, Mixer, Moe, load_mlp};
use crate::decoder::Parts;

pub(crate) fn load<B: Backend, L: Loader<Matrix = B::Matrix, Vector = B::Vector>>(
    from: &mut L,
) -> Result<Parts<B>, CheckpointError> {
    let config = from.config().clone();
    let hidden = config.hidden_size;
    let embedding = from.matrix("embed_tokens", config.vocab_size, hidden)?;
    let mut layers = Vec::with_capacity(config.layers.len());
    for (n, &moe) in config.moe_layers.iter().enumerate() {
        layers.push(Layer {
            input_norm: from.norm(&format!("layers.{n}.input_layernorm.weight"), hidden)?,
            mixer: Mixer::Attention(Attention::load(from, n, false)?),
            post_norm: from.norm(&format!("layers.{n}.post_attention_layernorm.weight"), hidden)?,
            feed_forward: if moe {
                FeedForward::Moe(Moe::load(from, n)?)
            } else {
                FeedForward::Dense(load_mlp(from, &format!("layers.{n}.mlp"), config.intermediate_size)?)
            },
        });
    }
    Ok(Parts {
        layers,
        final_norm: from.norm("norm.weight", hidden)?,
        head: from.head(&embedding)?,
        embedding,
    })
}
