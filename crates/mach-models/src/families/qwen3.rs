//! Qwen3 without experts: the layers of [`qwen3_moe`], each with a dense network.

use mach_checkpoint::ModelConfig;

use super::qwen3_moe;
use crate::device::ModelSpec;

/// The layers in numbers.
pub fn spec(c: &ModelConfig) -> ModelSpec {
    qwen3_moe::spec(c)
}
