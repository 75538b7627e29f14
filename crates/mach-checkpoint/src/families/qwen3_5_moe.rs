//! Qwen3.5 and Qwen3.6 MoE on disk (architectures.md section 2).

use mach_quant::Bits;
use serde_json::{Value, json};

use super::{
    Batching, KvCacheKind, MtpNaming, Naming, OutputConvention, PUBLISHED, Row, SpecdecKind, SwigluVariant,
    Synthetic, Yarn,
};
use crate::Family;
use crate::synth::{Shape, TAPS, extend};

const MLX: Naming = Naming { prefix: "language_model.model.", head: "language_model.lm_head" };

pub(super) static ROW: Row = Row {
    model_type: "qwen3_5_moe",
    family: Family::Qwen3_5Moe,
    text_config: true,
    namings: &[Naming { prefix: "model.language_model.", head: "lm_head" }, MLX, PUBLISHED],
    norm_minus_one: true,
    always_norm_topk: true,
    partial_rotary_factor: 0.25,
    full_attention_interval: Some(4),
    sliding_interval: None,
    attention_bias: false,
    yarn: Yarn::Never,
    swiglu_limit: false,
    expert_width: "moe_intermediate_size",
    quant_method: None,
    dense: false,
    tied_by_default: false,
    shared_expert: true,
    swiglu_variant: SwigluVariant::PlainSwiglu,
    expert_bias: false,
    stacked: true,
    default_quantization: (Bits::B4, 64),
    kv_cache_kind: KvCacheKind::HybridGdn,
    specdec_kind: SpecdecKind::SpecdecV7,
    mtp: MtpNaming::Root,
    batching: Batching::Able,
    output: OutputConvention::AsTemplate,
    module: "mach_models::qwen3_5_moe",
    synthetic: Synthetic {
        naming: MLX,
        shapes: SHAPES,
        gated_attention: true,
        normed_attention: true,
        between_norms: false,
        router: "mlp.gate",
        stack: "mlp.switch_mlp",
        mxfp4_experts: false,
        biases: false,
        config,
    },
};

const LARGE: Shape = Shape {
    name: "qwen3.6-35b-a3b",
    family: Family::Qwen3_5Moe,
    hidden: 2048,
    layers: 40,
    vocab: 248_320,
    attention: (16, 2, 256),
    full: None,
    experts: (256, 8, 512),
    shared: 512,
    gdn: (16, 32, 128),
    interval: 4,
    theta: 1e7,
    positions: 262_144,
    mtp: false,
};

const TINY: Shape = Shape {
    name: "tiny-qwen3_5_moe",
    family: Family::Qwen3_5Moe,
    hidden: 256,
    layers: 4,
    vocab: 16_512,
    attention: (4, 2, 64),
    full: None,
    experts: (32, 4, 64),
    shared: 64,
    gdn: (2, 4, 64),
    interval: 4,
    theta: 1e7,
    positions: 4096,
    mtp: false,
};

static SHAPES: &[Shape] = &[
    LARGE,
    TINY,
    Shape { name: "qwen3.6-35b-a3b-mtp", mtp: true, ..LARGE },
    Shape { name: "tiny-qwen3_5_moe-mtp", mtp: true, ..TINY },
];

fn config(shape: &Shape, layers: usize, mut text: Value, mut root: Value) -> Value {
    let (key_heads, value_heads, dim) = shape.gdn;
    let kind = |n| if shape.is_full(n) { "full_attention" } else { "linear_attention" };
    let kinds: Vec<&str> = (0..layers).map(kind).collect();
    extend(
        &mut text,
        json!({
            "attn_output_gate": true,
            "full_attention_interval": shape.interval,
            "layer_types": kinds,
            "linear_conv_kernel_dim": TAPS,
            "linear_key_head_dim": dim,
            "linear_num_key_heads": key_heads,
            "linear_num_value_heads": value_heads,
            "linear_value_head_dim": dim,
            "model_type": "qwen3_5_moe_text",
            "mtp_num_hidden_layers": usize::from(shape.mtp),
            "rope_parameters": {
                "rope_type": "default", "rope_theta": shape.theta, "partial_rotary_factor": 0.25,
            },
            "shared_expert_intermediate_size": shape.shared,
        }),
    );
    extend(
        &mut root,
        json!({
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "model_type": ROW.model_type,
            "text_config": text,
        }),
    );
    root
}
