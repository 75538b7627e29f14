//! How a layer keeps keys and values.

use mach_checkpoint::{LayerKind, ModelConfig};
use mach_kernels::attention::turbo::{LEAST_HEAD_DIM, TurboQuant};
use mach_kernels::attention::{KvShape, KvType};

use crate::model::{Activations, ModelError};

/// Quantized keys and values as asked for, where a layer has enough of them to be worth it: sliding windows and narrow heads
/// are exempt.
fn turbo(config: &ModelConfig, layer: LayerKind, asked: Option<TurboQuant>) -> Option<TurboQuant> {
    asked.filter(|_| layer == LayerKind::FullAttention && config.head_dim >= LEAST_HEAD_DIM)
}

/// Shape of the keys and values of a layer: exact in the float mode.
pub(crate) fn kv_shape(
    config: &ModelConfig,
    activations: Activations,
    asked: Option<TurboQuant>,
    layer: LayerKind,
) -> KvShape {
    let kind = match (activations, turbo(config, layer, asked)) {
        (Activations::F32, _) => KvType::F32,
        (Activations::Int8, Some(turbo)) => KvType::Turbo(turbo),
        (Activations::Int8, None) => KvType::Bf16,
    };
    KvShape { heads: config.num_kv_heads, head_dim: config.head_dim, kind }
}

/// Refuses to quantize where that would do nothing or spoil what was asked for.
pub(crate) fn check(
    config: &ModelConfig,
    activations: Activations,
    asked: Option<TurboQuant>,
) -> Result<(), ModelError> {
    let Some(asked) = asked else { return Ok(()) };
    if activations == Activations::F32 {
        return Err(ModelError::Unsupported(format!(
            "turboquant-kv {asked}: f32 activations keep exact keys and values"
        )));
    }
    if !config.layers.iter().any(|&layer| turbo(config, layer, Some(asked)).is_some()) {
        return Err(ModelError::Unsupported(format!(
            "turboquant-kv {asked}: no layer of this model is worth it (heads of {} values, {LEAST_HEAD_DIM} at least)",
            config.head_dim
        )));
    }
    Ok(())
}
