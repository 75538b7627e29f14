//! What of a model the shaders do not know.

use mach_models::ModelError;
use mach_models::device::{FeedForwardSpec, MixerSpec, ModelSpec, RopeKind, RouterSpec, ScoreFunction};

/// Most experts of a layer, and most of a row: sizes of tables in a workgroup's memory.
const EXPERTS: usize = 512;
const TOP_K: usize = 32;

fn unsupported(what: impl std::fmt::Display) -> ModelError {
    ModelError::Unsupported(format!("{what} is not on the GPU: --device cpu"))
}

fn router(spec: &RouterSpec) -> Result<(), ModelError> {
    if spec.experts > EXPERTS || spec.top_k > TOP_K {
        return Err(unsupported(format!("a router of {} experts, {} of a row,", spec.experts, spec.top_k)));
    }
    match spec.score {
        ScoreFunction::Softmax | ScoreFunction::SoftmaxOfChosen => Ok(()),
        other => Err(unsupported(format!("a router by {other:?}"))),
    }
}

/// Refuses, naming it, what no shader does.
pub(crate) fn check(spec: &ModelSpec) -> Result<(), ModelError> {
    if spec.streams.is_some() {
        return Err(unsupported("a model of several residual streams"));
    }
    for layer in &spec.layers {
        match &layer.mixer {
            MixerSpec::Attention(attention) => {
                if attention.softcap.is_some() {
                    return Err(unsupported("a cap of attention scores"));
                }
                if attention.rope.kind == RopeKind::Interleaved {
                    return Err(unsupported("rotation of adjacent pairs"));
                }
            }
            MixerSpec::GatedDelta(_) => {}
            MixerSpec::Compressed(_) => return Err(unsupported("compressed attention")),
        }
        match &layer.feed_forward {
            FeedForwardSpec::Dense(_) => {}
            FeedForwardSpec::Moe { router: spec, .. } | FeedForwardSpec::Beside { router: spec, .. } => {
                router(spec)?;
            }
        }
    }
    Ok(())
}
