//! What a model needs of memory, before anything is allocated.

use mach_checkpoint::{Checkpoint, CompressedConfig, ModelConfig};
use mach_experts::{RecordLayout, Sidecar};
use mach_kernels::attention::PAGE;
use mach_models::device::{CheckpointLoader, MixerSpec, ModelSpec};
use mach_models::{Activations, KvFormat, ModelError, StreamingSource, TurboQuant};

use crate::forms::delta_shape;
use crate::load::{expert_bytes, slices};
use crate::placement::CpuPlacement;
use crate::{compressed, kv, order_of};

/// At least as many rows as a block of speculation has.
const BLOCK: usize = 64;

/// Sizes that follow from a checkpoint and an activation path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Weights outside the experts.
    pub resident_bytes: usize,
    /// Weights of all experts, padding not counted.
    pub expert_weight_bytes: u64,
    /// One expert in memory.
    pub slot_bytes: usize,
    /// Routed experts of all layers.
    pub experts: usize,
    /// Experts that one token uses in all layers together.
    pub working_set: usize,
    /// Experts of one layer.
    pub layer_experts: usize,
}

/// Measures a checkpoint. `source` is what experts would be streamed from; `None` if all are to be in memory.
pub fn footprint(
    checkpoint: &Checkpoint,
    activations: Activations,
    source: Option<StreamingSource>,
) -> Result<Footprint, ModelError> {
    let order = order_of(activations);
    let placement = CpuPlacement::new(checkpoint.tensors(), order, 0);
    let mut loader = CheckpointLoader::new(checkpoint, placement);
    mach_models::place(&mut loader)?;
    let config = checkpoint.config();
    let sidecar = match source {
        Some(StreamingSource::Sidecar) => Some(Sidecar::open(checkpoint)?),
        None if checkpoint.resident_index().is_some() => Some(Sidecar::open(checkpoint)?),
        _ => None,
    };
    let (expert_weight_bytes, slot_bytes) = match (source, &sidecar) {
        (Some(StreamingSource::Bf16 | StreamingSource::Diagnostic), _) => {
            let slices = slices(checkpoint, source.unwrap_or_default(), order)?;
            (slices.weight_bytes(), slices.slot_bytes())
        }
        (_, Some(sidecar)) => {
            let records = sidecar.manifest().layers.iter().map(|e| e.record);
            let slots = records.map(|r| r.stride().max(r.in_order(order).stride()));
            (expert_bytes(checkpoint, Some(sidecar), order)?, slots.max().unwrap_or(0))
        }
        _ => {
            let mut most = 0;
            for layer in (0..config.layers.len()).filter(|&l| config.moe_layers[l]) {
                if let Some(first) = checkpoint.experts(layer)?.first() {
                    most = most.max(RecordLayout::of(first, order)?.stride());
                }
            }
            (expert_bytes(checkpoint, None, order)?, most)
        }
    };
    let moe_layers = config.moe_layers.iter().filter(|&&m| m).count();
    Ok(Footprint {
        resident_bytes: loader.placement.bytes(),
        expert_weight_bytes,
        slot_bytes,
        experts: moe_layers * config.moe.num_experts,
        working_set: moe_layers * config.moe.top_k,
        layer_experts: config.moe.num_experts,
    })
}

impl Footprint {
    /// Slots of an arena that keeps a drive busy while a step computes: about 256 MiB, at least what a few steps need, at
    /// most two layers.
    pub fn arena_slots(&self, depth: usize) -> usize {
        const BYTES: usize = 256 << 20;
        let fitting = BYTES / self.slot_bytes.max(1);
        fitting.max(2 * depth.clamp(4, 16)).min((2 * self.layer_experts).max(8))
    }
}

/// Bytes of state that a sequence of `tokens` tokens takes.
pub fn state_bytes(
    config: &ModelConfig,
    activations: Activations,
    turboquant_kv: Option<TurboQuant>,
    tokens: usize,
) -> usize {
    state_bytes_of(&mach_models::spec(config), kv::format(activations, turboquant_kv), tokens)
}

/// As [`state_bytes`], of a model in numbers.
pub fn state_bytes_of(spec: &ModelSpec, format: KvFormat, tokens: usize) -> usize {
    // Between passes a layer with a window holds what that sees before a block that may be cut short, and the block.
    let pages = |window: Option<usize>| {
        let held = window.map_or(usize::MAX, |window| (window - 1 + BLOCK).div_ceil(PAGE) + 1);
        tokens.div_ceil(PAGE).min(held)
    };
    let bytes = spec.layers.iter().map(|layer| match &layer.mixer {
        MixerSpec::GatedDelta(spec) => delta_shape(spec).state_bytes(),
        MixerSpec::Attention(spec) => kv::shape(spec, format).page_bytes() * pages(spec.mask.window),
        MixerSpec::Compressed(spec) => compressed::state_bytes(spec, format, tokens),
    });
    bytes.sum()
}

/// Floats that a row of compressed attention and of several streams takes beside what all families have.
fn compressed_floats(config: &ModelConfig, c: &CompressedConfig) -> usize {
    let streams = c.streams * config.hidden_size + (1 + c.streams) * c.streams;
    // The last norm reads the streams of the rows whose logits are wanted once more; projections of pools are twice as wide
    // where windows overlap.
    let pools = 4 * (config.head_dim + c.index_head_dim);
    let index = 2 * c.index_heads.next_multiple_of(16) * c.index_head_dim;
    // What waits to be pooled holds a pass's projections until it ends.
    2 * streams + 2 * pools + index + 2 * c.q_rank + c.out_groups * c.out_rank
}

/// Bytes of working memory of passes over `rows` rows: activations, what experts read and write, logits of one row. The
/// buffers are those of the CPU backend; each stays as large as its largest use.
pub fn scratch_bytes(config: &ModelConfig, rows: usize, threads: usize) -> usize {
    let (hidden, moe) = (config.hidden_size, &config.moe);
    let heads = config.num_heads * config.widest_head();
    let kv = (0..config.layers.len()).map(|layer| config.kv_heads(layer)).map(|(heads, dim)| heads * dim);
    let kv = kv.max().unwrap_or(0);
    let (delta_in, delta_out) = config.gdn.as_ref().map_or((0, 0), |g| {
        let values = g.value_heads * g.value_dim;
        (2 * g.key_heads * g.key_dim + values, values)
    });
    let gated = if config.gdn.is_some() { 2 } else { 1 };
    let ranks = (moe.top_k + usize::from(moe.shared_intermediate_size.is_some())).max(1);
    let width = moe.intermediate_size.max(moe.shared_intermediate_size.unwrap_or(0));
    // A dense network is one expert that all rows go to.
    let width = width.max(config.intermediate_size.div_ceil(ranks));
    // Residual stream, normed input, output, what stands aside; the four projections; the mixer's output.
    let activations =
        4 * hidden + (gated * heads).max(delta_in) + kv.max(delta_out) + kv + heads.max(delta_out);
    // Queries and keys once more, where they are rotated; values, where they are normed.
    let prepared = 3 * heads + 2 * kv + delta_in;
    let pairs = ranks * (hidden + width);
    let compressed = config.compressed.as_ref().map_or(0, |c| compressed_floats(config, c));
    // Activations quantized for the widest product, and each thread's gathered rows.
    let widest = hidden.max(heads).max(delta_out);
    let operands = 2 * widest + threads * (hidden + width);
    let floats = rows * (activations + prepared + pairs + operands + compressed) + 4 * config.vocab_size;
    4 * floats
}
