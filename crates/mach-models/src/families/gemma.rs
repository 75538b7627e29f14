//! The first Gemma: as [`llama`], with embeddings scaled by the root of the hidden size, GeGLU, and norm weights that are
//! stored minus one.

use mach_checkpoint::ModelConfig;

use super::{gemma4, llama};
use crate::device::{FeedForwardSpec, GateFunction, ModelSpec};

/// The layers in numbers.
pub fn spec(c: &ModelConfig) -> ModelSpec {
    let mut spec = ModelSpec { embedding_scale: gemma4::embedding_scale(c.hidden_size), ..llama::spec(c) };
    for layer in &mut spec.layers {
        if let FeedForwardSpec::Dense(network) = &mut layer.feed_forward {
            network.gate = GateFunction::GeluTanh;
        }
    }
    spec
}
