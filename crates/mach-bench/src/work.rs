//! What one token needs: bytes of weights and state to read, and products to form.

use anyhow::Result;
use mach_checkpoint::{Checkpoint, Dtype, LayerKind, ModelConfig};
use mach_experts::Sidecar;
use mach_quant::{Codec, FloatType, MatrixLayout};
use serde::Serialize;

use products::macs;

/// Bytes that one decoded token must touch, and multiply-accumulates that one token costs.
///
/// The bytes follow from the checkpoint alone, not from what an implementation happens to read: every weight that
/// takes part counts once, at its size in the checkpoint. So a kernel that reads more than it must shows as a lower
/// fraction of the ceiling, never as a higher bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenWork {
    /// Context length that `kv_bytes` is for.
    pub context: usize,
    /// Weights that every token uses: projections, routers, shared experts, norms, convolutions.
    pub resident_bytes: u64,
    /// Weights of the experts of one token: `top_k` of `num_experts` in each layer.
    pub expert_bytes: u64,
    /// The head, all vocabulary rows.
    pub head_bytes: u64,
    /// One row of the embedding table (none if the head, which is read anyway, is the table).
    pub embedding_bytes: u64,
    /// Keys and values of `context` tokens in the full-attention layers, at 16 bits an element.
    pub kv_bytes: u64,
    /// Recurrent state of the Gated DeltaNet layers, read once, at 32 bits an element.
    pub recurrent_bytes: u64,
    /// Products with quantized weights, head excluded.
    pub int8_macs: u64,
    /// Products with float weights (including convolutions), head excluded.
    pub float_macs: u64,
    /// Products of the head; prefill needs them for one row only.
    pub head_macs: u64,
}

/// What the count needs to know of a tensor.
#[derive(Debug, Clone, Copy)]
pub struct TensorFacts<'a> {
    /// Full name.
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: &'a [usize],
    /// Bytes in the checkpoint.
    pub bytes: u64,
}

impl TokenWork {
    /// The work of one token of `checkpoint` after `context` others.
    pub fn of(checkpoint: &Checkpoint, context: usize) -> Result<Self> {
        let mut tensors = Vec::new();
        let index = checkpoint.resident_index();
        for name in checkpoint.names() {
            let view = checkpoint.tensor(name)?;
            // What `mach convert` laid out is a tensor of bytes; its index knows the matrix.
            let layout = index.and_then(|index| index.tensors.get(name)).and_then(|tensor| tensor.layout);
            tensors.push(match layout {
                Some(layout) => laid_out(name.to_owned(), &layout, None),
                None => Tensor {
                    name: name.to_owned(),
                    dtype: view.dtype,
                    shape: view.shape.to_vec(),
                    bytes: view.data.len() as u64,
                },
            });
        }
        if index.is_some() {
            let sidecar = Sidecar::open(checkpoint)?;
            let prefix = &checkpoint.config().tensor_prefix;
            for entry in &sidecar.manifest().layers {
                for part in entry.record.parts() {
                    let projection = part.projection.name();
                    let name = format!("{prefix}layers.{}.mlp.experts.{projection}_proj.weight", entry.layer);
                    tensors.push(laid_out(name, &part.layout, Some(sidecar.manifest().num_experts)));
                }
            }
        }
        let facts: Vec<_> = tensors.iter().map(Tensor::facts).collect();
        Self::count(checkpoint.config(), &facts, context)
    }

    /// Adds up the text model's tensors; those outside its prefix and its head (vision, draft layers) do not count.
    pub fn count(config: &ModelConfig, tensors: &[TensorFacts<'_>], context: usize) -> Result<Self> {
        let state = state_bytes(config, context);
        let mut work = Self {
            context,
            resident_bytes: 0,
            expert_bytes: 0,
            head_bytes: 0,
            embedding_bytes: 0,
            kv_bytes: state.kv,
            recurrent_bytes: state.recurrent,
            int8_macs: 0,
            float_macs: 0,
            head_macs: 0,
        };
        // Experts are added up over all of them and divided at the end, so that sliced and stacked forms agree.
        let (mut expert_bytes, mut expert_int8, mut expert_float) = (0u64, 0u64, 0u64);
        for tensor in tensors {
            let head = in_module(tensor.name, &config.head_module);
            let Some(inner) = tensor.name.strip_prefix(config.tensor_prefix.as_str()).or(head.then_some(""))
            else {
                continue;
            };
            // What predicts tokens after the next is a draft.
            if in_module(inner, "mtp") {
                continue;
            }
            let table = in_module(inner, "embed_tokens") || in_module(inner, "embed");
            if table && !config.tie_word_embeddings {
                work.embedding_bytes += tensor.bytes / config.vocab_size.max(1) as u64;
            } else if head || table {
                work.head_bytes += tensor.bytes;
            } else if is_routed(inner) {
                expert_bytes += tensor.bytes;
                let (int8, float) = macs(inner, tensor, config)?;
                expert_int8 += int8;
                expert_float += float;
            } else if inner.ends_with(".tid2eid") {
                // A table by token, of which one row is read.
                work.resident_bytes += tensor.bytes / config.vocab_size.max(1) as u64;
            } else {
                work.resident_bytes += tensor.bytes;
                let (int8, float) = macs(inner, tensor, config)?;
                work.int8_macs += int8;
                work.float_macs += float;
            }
        }
        let used = |all: u64| {
            let share = all as u128 * config.moe.top_k as u128 / config.moe.num_experts.max(1) as u128;
            u64::try_from(share).unwrap_or(u64::MAX)
        };
        work.expert_bytes = used(expert_bytes);
        work.int8_macs += used(expert_int8);
        work.float_macs += used(expert_float);
        work.head_macs = config.vocab_size as u64 * config.hidden_size as u64;
        Ok(work)
    }

    /// Bytes that decoding one token must touch.
    pub fn decode_bytes(&self) -> u64 {
        self.resident_bytes
            + self.expert_bytes
            + self.head_bytes
            + self.embedding_bytes
            + self.kv_bytes
            + self.recurrent_bytes
    }
}

/// [`TensorFacts`] that own what they name.
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
}

impl Tensor {
    fn facts(&self) -> TensorFacts<'_> {
        TensorFacts { name: &self.name, dtype: self.dtype, shape: &self.shape, bytes: self.bytes }
    }
}

/// A matrix, or a stack of them, in the engine format.
fn laid_out(name: String, layout: &MatrixLayout, stack: Option<usize>) -> Tensor {
    let dtype = match layout.codec {
        Codec::Dense(FloatType::Bf16) => Dtype::BF16,
        Codec::Dense(_) => Dtype::F32,
        _ => Dtype::U32,
    };
    let shape = stack.into_iter().chain([layout.rows, layout.cols]).collect();
    Tensor { name, dtype, shape, bytes: (layout.bytes() * stack.unwrap_or(1)) as u64 }
}

struct StateBytes {
    kv: u64,
    recurrent: u64,
}

fn state_bytes(config: &ModelConfig, context: usize) -> StateBytes {
    let mut state = StateBytes { kv: 0, recurrent: 0 };
    for (index, layer) in config.layers.iter().enumerate() {
        let (kv_heads, head_dim) = config.kv_heads(index);
        match (layer, &config.gdn) {
            (LayerKind::FullAttention, _) => {
                state.kv += 2 * 2 * (kv_heads * head_dim * context) as u64;
            }
            (LayerKind::SlidingAttention, _) => {
                let seen = context.min(config.sliding_window.unwrap_or(context));
                state.kv += 2 * 2 * (kv_heads * head_dim * seen) as u64;
            }
            (LayerKind::LinearAttention, Some(gdn)) => {
                state.recurrent += 4 * (gdn.value_heads * gdn.key_dim * gdn.value_dim) as u64;
            }
            (LayerKind::LinearAttention, None) => {}
            (LayerKind::CompressedAttention, _) => {
                state.kv += compressed_bytes(config, index, context);
            }
        }
    }
    state
}

/// What a token reads of a layer's window and entries: all entries, or those that the index keeps and all of the index.
fn compressed_bytes(config: &ModelConfig, layer: usize, context: usize) -> u64 {
    let Some(own) = &config.compressed else { return 0 };
    let entries = |ratio: &usize| context.checked_div(*ratio).unwrap_or(0);
    let entries = own.ratios.get(layer).map_or(0, entries);
    let window = own.window.min(context);
    let (seen, indexed) = match own.ratios.get(layer) {
        Some(4) => (entries.min(own.index_top_k), entries * own.index_head_dim),
        _ => (entries, 0),
    };
    2 * ((window + seen) * config.head_dim + indexed) as u64
}

fn in_module(name: &str, module: &str) -> bool {
    name.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn is_routed(name: &str) -> bool {
    name.contains(".experts.") || name.contains(".switch_mlp.")
}

fn elements(shape: &[usize]) -> u64 {
    shape.iter().map(|&n| n as u64).product()
}

mod products;

#[cfg(test)]
mod tests;
