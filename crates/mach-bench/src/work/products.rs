//! Products of one token with a tensor, by the tensor's place in the model.

use anyhow::{Context, Result, anyhow};
use mach_checkpoint::{Dtype, ModelConfig};

use super::{TensorFacts, elements, is_routed};

/// Products of one token with this tensor, `(quantized, float)`: its rows times the width of its input. Scales, zero
/// points, norms and other vectors are not products.
pub(super) fn macs(inner: &str, tensor: &TensorFacts<'_>, config: &ModelConfig) -> Result<(u64, u64)> {
    let module = inner.strip_suffix(".weight").unwrap_or(inner);
    let small = [".scales", ".scale", ".biases", ".bias", "_scales", "_bias", ".ape"];
    if small.iter().any(|end| inner.ends_with(end)) || tensor.shape.len() < 2 {
        return Ok((0, 0));
    }
    if inner.ends_with("_blocks") {
        // Two codes a byte.
        return Ok((2 * elements(tensor.shape), 0));
    }
    if module.ends_with(".conv1d") {
        return Ok((0, elements(tensor.shape)));
    }
    let width = width(inner, module, config)
        .with_context(|| format!("cannot count the products of tensor `{}`", tensor.name))?;
    let rows = elements(&tensor.shape[..tensor.shape.len() - 1]);
    Ok(match tensor.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => (0, elements(tensor.shape)),
        _ => (rows * width as u64, 0),
    })
}

/// Width of what a matrix multiplies.
fn width(inner: &str, module: &str, config: &ModelConfig) -> Result<usize> {
    let moe = &config.moe;
    let own = config.compressed.as_ref();
    let mut names = module.rsplit('.');
    let name = names.next().unwrap_or(module);
    Ok(match name {
        "q_proj" | "k_proj" | "v_proj" | "gate_proj" | "up_proj" | "gate_up_proj" | "gate" | "router"
        | "shared_expert_gate" | "in_proj_qkv" | "in_proj_z" | "in_proj_b" | "in_proj_a" => {
            config.hidden_size
        }
        "proj" if names.next() == Some("router") => config.hidden_size,
        // deepseek_v4.
        "wq_a" | "wkv" | "wgate" | "weights_proj" | "w1" | "w3" => config.hidden_size,
        "wq_b" => own.map_or(0, |own| own.q_rank),
        "wo_a" => config.num_heads * config.head_dim / own.map_or(1, |own| own.out_groups.max(1)),
        "wo_b" => own.map_or(0, |own| own.out_groups * own.out_rank),
        "fn" | "hc_attn_fn" | "hc_ffn_fn" | "hc_head_fn" => {
            config.hidden_size * own.map_or(1, |own| own.streams)
        }
        "o_proj" => config.num_heads * head_dim(inner, config),
        "out_proj" => config.gdn.as_ref().map_or(0, |gdn| gdn.value_heads * gdn.value_dim),
        "down_proj" | "w2" if is_routed(inner) => moe.intermediate_size,
        "down_proj" | "w2" if inner.contains(".shared_expert") => moe.shared_intermediate_size.unwrap_or(0),
        "down_proj" => config.intermediate_size,
        _ => return Err(anyhow!("its place in the model is unknown")),
    })
}

/// Width of a head of the layer that a tensor belongs to.
fn head_dim(inner: &str, config: &ModelConfig) -> usize {
    let layer = inner.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
    layer.map_or(config.head_dim, |layer| config.kv_heads(layer).1)
}
