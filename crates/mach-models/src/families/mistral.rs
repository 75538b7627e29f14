//! Mistral: as [`llama`], with a sliding window in the layers that the configuration says.

use mach_checkpoint::ModelConfig;

use super::llama;
use crate::device::ModelSpec;

/// The layers in numbers.
pub fn spec(c: &ModelConfig) -> ModelSpec {
    llama::spec(c)
}
