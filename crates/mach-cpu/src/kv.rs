//! How a layer keeps keys and values.

use mach_kernels::attention::turbo::{LEAST_HEAD_DIM, TurboQuant};
use mach_kernels::attention::{KvShape, KvType};
use mach_models::device::{AttentionSpec, MixerSpec, ModelSpec};
use mach_models::{Activations, KvFormat, ModelError};

/// The format that a model's keys and values are kept in, where layers are worth it.
pub fn format(activations: Activations, asked: Option<TurboQuant>) -> KvFormat {
    match (activations, asked) {
        (Activations::F32, _) => KvFormat::F32,
        (Activations::Int8, Some(widths)) => KvFormat::TurboQuant(widths),
        (Activations::Int8, None) => KvFormat::Bf16,
    }
}

/// Quantized keys and values pay where a layer has enough of them: sliding windows and narrow heads are exempt.
fn worth_quantizing(spec: &AttentionSpec) -> bool {
    !spec.plain_cache && spec.mask.window.is_none() && spec.head_dim >= LEAST_HEAD_DIM
}

/// Shape of the keys and values of a layer.
pub fn shape(spec: &AttentionSpec, format: KvFormat) -> KvShape {
    let kind = match format {
        KvFormat::F32 => KvType::F32,
        KvFormat::TurboQuant(widths) if worth_quantizing(spec) => KvType::Turbo(widths),
        KvFormat::TurboQuant(_) | KvFormat::Bf16 => KvType::Bf16,
    };
    KvShape { heads: spec.kv_heads, head_dim: spec.head_dim, kind }
}

/// Refuses to quantize where that would do nothing or spoil what was asked for.
pub(crate) fn check(
    spec: &ModelSpec,
    activations: Activations,
    asked: Option<TurboQuant>,
) -> Result<(), ModelError> {
    let Some(asked) = asked else { return Ok(()) };
    if activations == Activations::F32 {
        return Err(ModelError::Unsupported(format!(
            "turboquant-kv {asked}: f32 activations keep exact keys and values"
        )));
    }
    let mut attention = spec.layers.iter().filter_map(|layer| match &layer.mixer {
        MixerSpec::Attention(spec) => Some(spec),
        MixerSpec::GatedDelta(_) | MixerSpec::Compressed(_) => None,
    });
    if !attention.clone().any(worth_quantizing) {
        let head_dim = attention.next().map_or(0, |spec| spec.head_dim);
        return Err(ModelError::Unsupported(format!(
            "turboquant-kv {asked}: no layer of this model is worth it (heads of {head_dim} values, {LEAST_HEAD_DIM} at least)"
        )));
    }
    Ok(())
}
