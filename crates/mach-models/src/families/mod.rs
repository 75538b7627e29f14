//! What each family computes: its layers in numbers, and where its weights go. What is on disk is described by
//! [`mach_checkpoint::FAMILIES`].

pub mod deepseek_v4;
pub mod gemma;
pub mod gemma3_text;
pub mod gemma4;
pub mod gpt_oss;
pub mod llama;
pub mod mistral;
pub mod qwen3;
pub mod qwen3_5;
pub mod qwen3_5_moe;
pub mod qwen3_moe;

use mach_checkpoint::{CheckpointError, Family, ModelConfig};

use crate::blocks::Layer;
use crate::device::{Loader, ModelSpec, StreamWeights};

/// A family's weights.
#[derive(Debug)]
pub(crate) struct Parts<M, V> {
    pub(crate) embedding: M,
    pub(crate) layers: Vec<Layer<M, V>>,
    /// What makes one of several residual streams at the end.
    pub(crate) collapse: Option<StreamWeights<V>>,
    pub(crate) final_norm: V,
    pub(crate) head: M,
}

/// The layers of a model in numbers.
pub fn spec(config: &ModelConfig) -> ModelSpec {
    match config.family {
        Family::Qwen3Moe => qwen3_moe::spec(config),
        Family::Qwen3_5Moe => qwen3_5_moe::spec(config),
        Family::GptOss => gpt_oss::spec(config),
        Family::Gemma4 => gemma4::spec(config),
        Family::Qwen3 => qwen3::spec(config),
        Family::Qwen3_5 => qwen3_5::spec(config),
        Family::Llama => llama::spec(config),
        Family::Mistral => mistral::spec(config),
        Family::Gemma => gemma::spec(config),
        Family::DeepseekV4 => deepseek_v4::spec(config),
        Family::Gemma3Text => gemma3_text::spec(config),
    }
}

/// Asks `from` for every weight beside the experts.
pub(crate) fn load<L: Loader>(
    from: &mut L,
    spec: &ModelSpec,
) -> Result<Parts<L::Matrix, L::Vector>, CheckpointError> {
    match from.config().family {
        Family::Gemma4 => gemma4::load(from, spec),
        Family::DeepseekV4 => deepseek_v4::load(from, spec),
        Family::Gemma3Text => gemma3_text::load(from, spec),
        Family::GptOss => qwen3_moe::load(from, spec, "router"),
        Family::Qwen3Moe
        | Family::Qwen3_5Moe
        | Family::Qwen3
        | Family::Qwen3_5
        | Family::Llama
        | Family::Mistral
        | Family::Gemma => qwen3_moe::load(from, spec, "gate"),
    }
}

/// Gives every weight of a checkpoint, experts aside, its place: to learn what they need.
pub fn place<L: Loader>(from: &mut L) -> Result<(), CheckpointError> {
    let spec = spec(from.config());
    load(from, &spec).map(drop)
}
