//! gpt-oss on disk (architectures.md section 4).

use mach_quant::Bits;
use serde_json::{Value, json};

use super::{
    Batching, KvCacheKind, MtpNaming, OutputConvention, PUBLISHED, Row, SpecdecKind, SwigluVariant,
    Synthetic, Yarn,
};
use crate::Family;
use crate::synth::{Shape, extend};

pub(super) static ROW: Row = Row {
    model_type: "gpt_oss",
    family: Family::GptOss,
    text_config: false,
    namings: &[PUBLISHED],
    norm_minus_one: false,
    always_norm_topk: true,
    partial_rotary_factor: 1.0,
    full_attention_interval: None,
    sliding_interval: Some(2),
    attention_bias: true,
    yarn: Yarn::Magnified,
    swiglu_limit: true,
    expert_width: "intermediate_size",
    dense: false,
    tied_by_default: false,
    quant_method: Some("mxfp4"),
    shared_expert: false,
    swiglu_variant: SwigluVariant::SiluLimited,
    expert_bias: true,
    stacked: true,
    default_quantization: (Bits::B4, 64),
    kv_cache_kind: KvCacheKind::Rotating,
    specdec_kind: SpecdecKind::TargetOnly,
    mtp: MtpNaming::None,
    batching: Batching::Able,
    output: OutputConvention::AsTemplate,
    module: "mach_models::gpt_oss",
    synthetic: Synthetic {
        naming: PUBLISHED,
        shapes: SHAPES,
        gated_attention: false,
        normed_attention: false,
        between_norms: false,
        router: "mlp.router",
        stack: "mlp.experts",
        mxfp4_experts: true,
        biases: true,
        config,
    },
};

/// Keys that a query of a sliding layer sees.
const WINDOW: usize = 128;

const OSS_20B: Shape = Shape {
    name: "gpt-oss-20b",
    family: Family::GptOss,
    hidden: 2880,
    layers: 24,
    vocab: 201_088,
    attention: (64, 8, 64),
    full: None,
    experts: (32, 4, 2880),
    shared: 0,
    gdn: (0, 0, 0),
    interval: 2,
    theta: 150_000.0,
    positions: 131_072,
    mtp: false,
};

static SHAPES: &[Shape] = &[
    OSS_20B,
    Shape { name: "gpt-oss-120b", layers: 36, experts: (128, 4, 2880), ..OSS_20B },
    Shape {
        name: "tiny-gpt_oss",
        family: Family::GptOss,
        hidden: 256,
        layers: 4,
        vocab: 16_512,
        attention: (8, 2, 64),
        full: None,
        experts: (32, 4, 128),
        shared: 0,
        gdn: (0, 0, 0),
        interval: 2,
        theta: 150_000.0,
        positions: 4096,
        mtp: false,
    },
];

fn config(shape: &Shape, layers: usize, text: Value, mut root: Value) -> Value {
    let (experts, top_k, width) = shape.experts;
    let kind = |n| if shape.is_full(n) { "full_attention" } else { "sliding_attention" };
    let kinds: Vec<&str> = (0..layers).map(kind).collect();
    extend(&mut root, text);
    if let Value::Object(root) = &mut root {
        for other in ["num_experts", "moe_intermediate_size", "mlp_only_layers", "norm_topk_prob"] {
            root.remove(other);
        }
    }
    extend(
        &mut root,
        json!({
            "architectures": ["GptOssForCausalLM"],
            "attention_bias": true,
            "experts_per_token": top_k,
            "intermediate_size": width,
            "layer_types": kinds,
            "model_type": ROW.model_type,
            "num_local_experts": experts,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "factor": 32.0,
                "original_max_position_embeddings": 4096,
                "rope_type": "yarn",
                "truncate": false,
            },
            "rope_theta": shape.theta,
            "sliding_window": WINDOW,
            "swiglu_limit": 7.0,
        }),
    );
    root
}
