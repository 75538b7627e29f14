//! Gemma 4 with experts on disk (architectures.md section 5).

use mach_quant::Bits;
use serde_json::{Value, json};

use super::{
    Batching, KvCacheKind, Naming, OutputConvention, Row, SpecdecKind, SwigluVariant, Synthetic, Yarn,
};
use crate::Family;
use crate::synth::{Shape, extend};

/// The head is the embedding; the names are for a file that has one all the same.
const MLX: Naming = Naming { prefix: "language_model.model.", head: "language_model.lm_head" };

pub(super) static ROW: Row = Row {
    model_type: "gemma4",
    family: Family::Gemma4,
    text_config: true,
    namings: &[Naming { prefix: "model.language_model.", head: "lm_head" }, MLX],
    norm_minus_one: false,
    always_norm_topk: true,
    partial_rotary_factor: 1.0,
    full_attention_interval: None,
    sliding_interval: Some(6),
    attention_bias: false,
    yarn: Yarn::Never,
    swiglu_limit: false,
    expert_width: "moe_intermediate_size",
    dense: false,
    tied_by_default: true,
    shared_expert: false,
    swiglu_variant: SwigluVariant::PlainGeglu,
    expert_bias: false,
    stacked: true,
    default_quantization: (Bits::B4, 64),
    kv_cache_kind: KvCacheKind::Rotating,
    specdec_kind: SpecdecKind::TargetOnly,
    batching: Batching::Able,
    output: OutputConvention::AsTemplate,
    module: "mach_models::gemma4",
    synthetic: Synthetic { naming: MLX, shapes: SHAPES, gated_attention: false, config },
};

static SHAPES: &[Shape] = &[];

fn config(shape: &Shape, layers: usize, mut text: Value, mut root: Value) -> Value {
    extend(&mut text, json!({}));
    let _ = (shape, layers);
    extend(&mut root, json!({ "text_config": text }));
    root
}
