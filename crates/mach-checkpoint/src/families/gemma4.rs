//! Gemma 4 with experts on disk (architectures.md section 5).

use mach_quant::Bits;
use serde_json::{Value, json};

use super::{
    Batching, KvCacheKind, MtpNaming, Naming, OutputConvention, Row, SpecdecKind, SwigluVariant, Synthetic,
    Yarn,
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
    quant_method: None,
    dense: false,
    tied_by_default: true,
    shared_expert: false,
    swiglu_variant: SwigluVariant::PlainGeglu,
    expert_bias: false,
    stacked: true,
    default_quantization: (Bits::B4, 64),
    kv_cache_kind: KvCacheKind::Rotating,
    specdec_kind: SpecdecKind::TargetOnly,
    mtp: MtpNaming::None,
    batching: Batching::Able,
    output: OutputConvention::AsTemplate,
    module: "mach_models::gemma4",
    synthetic: Synthetic {
        naming: MLX,
        shapes: SHAPES,
        gated_attention: false,
        normed_attention: true,
        between_norms: true,
        router: "router.proj",
        stack: "experts.switch_glu",
        mxfp4_experts: false,
        biases: false,
        config,
    },
};

static SHAPES: &[Shape] = &[
    Shape {
        name: "gemma-4-26b-a4b",
        family: Family::Gemma4,
        hidden: 2816,
        layers: 30,
        vocab: 262_144,
        attention: (16, 8, 256),
        full: Some((2, 512)),
        experts: (128, 8, 704),
        shared: 2112,
        gdn: (0, 0, 0),
        interval: 6,
        theta: 1e4,
        positions: 262_144,
        mtp: false,
    },
    Shape {
        name: "tiny-gemma4",
        family: Family::Gemma4,
        hidden: 256,
        layers: 6,
        vocab: 16_512,
        attention: (4, 2, 64),
        full: Some((1, 128)),
        experts: (32, 4, 64),
        shared: 128,
        gdn: (0, 0, 0),
        interval: 3,
        theta: 1e4,
        positions: 4096,
        mtp: false,
    },
];

fn config(shape: &Shape, layers: usize, mut text: Value, mut root: Value) -> Value {
    let (_, top_k, _) = shape.experts;
    let (kv_heads, head_dim) = shape.full.unwrap_or((shape.attention.1, shape.attention.2));
    let kind = |n| if shape.is_full(n) { "full_attention" } else { "sliding_attention" };
    let kinds: Vec<&str> = (0..layers).map(kind).collect();
    if let Value::Object(text) = &mut text {
        for other in ["hidden_act", "mlp_only_layers", "norm_topk_prob", "num_experts_per_tok"] {
            text.remove(other);
        }
    }
    extend(
        &mut text,
        json!({
            "attention_k_eq_v": true,
            "enable_moe_block": true,
            "final_logit_softcapping": 30.0,
            "global_head_dim": head_dim,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size_per_layer_input": 0,
            "intermediate_size": shape.shared,
            "layer_types": kinds,
            "model_type": "gemma4_text",
            "num_global_key_value_heads": kv_heads,
            "num_kv_shared_layers": 0,
            "rope_parameters": {
                "full_attention": {
                    "partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional",
                },
                "sliding_attention": { "rope_theta": shape.theta, "rope_type": "default" },
            },
            "sliding_window": if shape.positions > 4096 { 1024 } else { 64 },
            "tie_word_embeddings": true,
            "top_k_experts": top_k,
            "use_double_wide_mlp": false,
        }),
    );
    extend(
        &mut root,
        json!({
            "architectures": ["Gemma4ForConditionalGeneration"],
            "model_type": ROW.model_type,
            "text_config": text,
            "tie_word_embeddings": true,
        }),
    );
    root
}
