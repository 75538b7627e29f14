//! Qwen3 MoE on disk (architectures.md section 3).

use mach_quant::Bits;
use serde_json::{Value, json};

use super::{
    Batching, KvCacheKind, MtpNaming, OutputConvention, PUBLISHED, Row, SpecdecKind, SwigluVariant,
    Synthetic, Yarn,
};
use crate::Family;
use crate::synth::{Shape, extend};

pub(super) static ROW: Row = Row {
    model_type: "qwen3_moe",
    family: Family::Qwen3Moe,
    text_config: false,
    namings: &[PUBLISHED],
    norm_minus_one: false,
    always_norm_topk: false,
    partial_rotary_factor: 1.0,
    full_attention_interval: None,
    sliding_interval: None,
    attention_bias: false,
    yarn: Yarn::Never,
    swiglu_limit: false,
    expert_width: "moe_intermediate_size",
    quant_method: None,
    dense: false,
    tied_by_default: false,
    shared_expert: false,
    swiglu_variant: SwigluVariant::PlainSwiglu,
    expert_bias: false,
    stacked: true,
    default_quantization: (Bits::B4, 64),
    kv_cache_kind: KvCacheKind::Standard,
    specdec_kind: SpecdecKind::SpecdecV7,
    mtp: MtpNaming::None,
    batching: Batching::Able,
    output: OutputConvention::AsTemplate,
    module: "mach_models::qwen3_moe",
    synthetic: Synthetic {
        naming: PUBLISHED,
        shapes: SHAPES,
        gated_attention: false,
        normed_attention: true,
        between_norms: false,
        router: "mlp.gate",
        stack: "mlp.switch_mlp",
        mxfp4_experts: false,
        biases: false,
        config,
    },
};

static SHAPES: &[Shape] = &[
    Shape {
        name: "qwen3-30b-a3b",
        family: Family::Qwen3Moe,
        hidden: 2048,
        layers: 48,
        vocab: 151_936,
        attention: (32, 4, 128),
        full: None,
        experts: (128, 8, 768),
        shared: 0,
        gdn: (0, 0, 0),
        interval: 1,
        theta: 1e6,
        positions: 40_960,
        mtp: false,
    },
    Shape {
        name: "tiny-qwen3_moe",
        family: Family::Qwen3Moe,
        hidden: 256,
        layers: 3,
        vocab: 16_512,
        attention: (8, 2, 64),
        full: None,
        experts: (32, 4, 128),
        shared: 0,
        gdn: (0, 0, 0),
        interval: 1,
        theta: 1e6,
        positions: 4096,
        mtp: false,
    },
];

fn config(shape: &Shape, _: usize, text: Value, mut root: Value) -> Value {
    extend(&mut root, text);
    extend(
        &mut root,
        json!({
            "architectures": ["Qwen3MoeForCausalLM"],
            "decoder_sparse_step": 1,
            "intermediate_size": 3 * shape.hidden,
            "model_type": ROW.model_type,
            "rope_scaling": null,
            "rope_theta": shape.theta,
        }),
    );
    root
}
