//! DeepSeek-V4 on disk (architectures.md section 6).

use std::borrow::Cow;

use mach_quant::Bits;
use serde_json::{Value, json};

use super::{
    Batching, KvCacheKind, MtpNaming, Naming, OutputConvention, PUBLISHED, Row, SpecdecKind, SwigluVariant,
    Synthetic, Yarn,
};
use crate::Family;
use crate::synth::{Shape, extend};

/// As the publisher writes it: no prefix, names of its own.
const OWN: Naming = Naming { prefix: "", head: "head" };

/// Experts may be stacked in what is converted; what is served must have them one by one.
pub(super) static ROW: Row = Row {
    model_type: "deepseek_v4",
    family: Family::DeepseekV4,
    text_config: false,
    namings: &[OWN, PUBLISHED],
    norm_minus_one: false,
    always_norm_topk: true,
    partial_rotary_factor: 1.0,
    full_attention_interval: None,
    sliding_interval: None,
    attention_bias: false,
    yarn: Yarn::Plain,
    swiglu_limit: true,
    expert_width: "moe_intermediate_size",
    dense: false,
    tied_by_default: false,
    quant_method: Some("fp8"),
    shared_expert: true,
    swiglu_variant: SwigluVariant::SiluLimited,
    expert_bias: false,
    stacked: false,
    default_quantization: (Bits::B4, 64),
    kv_cache_kind: KvCacheKind::Compressed,
    specdec_kind: SpecdecKind::V4Mtp,
    mtp: MtpNaming::Inside,
    batching: Batching::Able,
    output: OutputConvention::AsTemplate,
    module: "mach_models::deepseek_v4",
    synthetic: Synthetic {
        naming: OWN,
        shapes: SHAPES,
        gated_attention: false,
        normed_attention: false,
        between_norms: false,
        router: "ffn.gate",
        stack: "ffn.experts",
        mxfp4_experts: false,
        biases: false,
        config,
    },
};

/// Sizes that no other family has.
pub(crate) struct OwnSizes {
    /// Of which of [`SHAPES`].
    shape: &'static str,
    /// Width that queries are projected down to first.
    pub(crate) q_rank: usize,
    /// Rotated elements of a head.
    rotary: usize,
    /// Groups of heads, and the width of their projections.
    pub(crate) out: (usize, usize),
    /// Positions that a query sees one by one.
    window: usize,
    /// Heads of the index, their width, and entries that it keeps.
    pub(crate) index: (usize, usize, usize),
    /// Tokens of an entry of a layer.
    pub(crate) ratio: fn(usize) -> usize,
    /// Layers whose experts follow from the token.
    pub(crate) hash_layers: usize,
    /// Residual streams.
    pub(crate) streams: usize,
}

/// Those of a shape.
pub(crate) fn own_sizes(shape: &str) -> Option<&'static OwnSizes> {
    OWN_SIZES.iter().find(|own| own.shape == shape)
}

static OWN_SIZES: &[OwnSizes] = &[
    OwnSizes {
        shape: "deepseek-v4-flash",
        q_rank: 1024,
        rotary: 64,
        out: (8, 1024),
        window: 128,
        index: (64, 128, 512),
        ratio: |layer| match layer {
            0 | 1 => 0,
            layer if layer % 2 == 0 => 4,
            _ => 128,
        },
        hash_layers: 3,
        streams: 4,
    },
    OwnSizes {
        shape: "tiny-deepseek_v4",
        q_rank: 128,
        rotary: 16,
        out: (2, 64),
        window: 32,
        index: (8, 32, 16),
        ratio: |layer| [0, 4, 128].get(layer % 3).copied().unwrap_or(0),
        hash_layers: 1,
        streams: 4,
    },
];

static SHAPES: &[Shape] = &[
    Shape {
        name: "deepseek-v4-flash",
        family: Family::DeepseekV4,
        hidden: 4096,
        layers: 43,
        vocab: 129_280,
        attention: (64, 1, 512),
        experts: (256, 6, 2048),
        shared: 2048,
        gdn: (0, 0, 0),
        interval: 1,
        theta: 1e4,
        positions: 1 << 20,
        mtp: false,
        full: None,
    },
    Shape {
        name: "tiny-deepseek_v4",
        family: Family::DeepseekV4,
        hidden: 256,
        layers: 4,
        vocab: 16_512,
        attention: (4, 1, 64),
        experts: (32, 4, 64),
        shared: 64,
        gdn: (0, 0, 0),
        interval: 1,
        theta: 1e4,
        positions: 4096,
        mtp: false,
        full: None,
    },
];

fn config(shape: &Shape, layers: usize, text: Value, mut root: Value) -> Value {
    let Some(own) = own_sizes(shape.name) else { return root };
    let (experts, _, _) = shape.experts;
    extend(&mut root, text);
    if let Value::Object(root) = &mut root {
        for other in ["num_experts", "mlp_only_layers"] {
            root.remove(other);
        }
    }
    let ratios: Vec<usize> = (0..layers).map(own.ratio).collect();
    extend(
        &mut root,
        json!({
            "architectures": ["DeepseekV4ForCausalLM"],
            "compress_ratios": ratios,
            "compress_rope_theta": 160_000,
            "hc_eps": 1e-6,
            "hc_mult": own.streams,
            "hc_sinkhorn_iters": 20,
            "index_head_dim": own.index.1,
            "index_n_heads": own.index.0,
            "index_topk": own.index.2,
            "model_type": ROW.model_type,
            "n_routed_experts": experts,
            "n_shared_experts": 1,
            "num_hash_layers": own.hash_layers,
            "num_nextn_predict_layers": 0,
            "o_groups": own.out.0,
            "o_lora_rank": own.out.1,
            "q_lora_rank": own.q_rank,
            "qk_rope_head_dim": own.rotary,
            "rope_scaling": {
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 16,
                "original_max_position_embeddings": 65_536,
                "type": "yarn",
            },
            "rope_theta": shape.theta,
            "routed_scaling_factor": 1.5,
            "scoring_func": "sqrtsoftplus",
            "sliding_window": own.window,
            "swiglu_limit": 10.0,
        }),
    );
    root
}

/// In which words a file names what the publisher's names stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Names {
    /// As the family's code asks.
    #[default]
    AsAsked,
    /// As MLX conversions do.
    Mlx,
    /// As `transformers` exports do.
    Transformers,
}

/// Module of the embedding table in a naming.
pub(super) fn embedding(naming: &Naming) -> &'static str {
    if naming.prefix.is_empty() { "embed" } else { "embed_tokens" }
}

impl Names {
    /// Those of a file with this prefix, of which `has` knows the tensors.
    pub(super) fn of(naming: &Naming, has: impl Fn(&str) -> bool) -> Self {
        match naming.prefix {
            "" => Names::AsAsked,
            prefix if has(&format!("{prefix}layers.0.input_layernorm.weight")) => Names::Transformers,
            _ => Names::Mlx,
        }
    }

    /// The file's name for a module or tensor.
    ///
    /// The parts of a name are looked at one by one; what has no other name stays.
    pub(crate) fn rename(self, name: &str) -> Cow<'_, str> {
        match self {
            Names::AsAsked => Cow::Borrowed(name),
            Names::Mlx => Cow::Owned(streams(name, "hc_head.").unwrap_or_else(|| parts(name, mlx))),
            Names::Transformers => {
                let name = streams(name, "hc_head.hc_").unwrap_or_else(|| name.to_owned());
                // The indexer is part of the compressor there.
                let name = name.replace("indexer.compressor.", "compressor.indexer.");
                let name = name.replace("attn.indexer.", "attn.compressor.indexer.");
                Cow::Owned(parts(&name, transformers))
            }
        }
    }
}

/// `hc_attn_fn` and its like, which other files keep as tensors of a module.
fn streams(name: &str, head: &str) -> Option<String> {
    let (before, last) = name.rsplit_once('.').map_or(("", name), |(before, last)| (before, last));
    let (place, tensor) = last.strip_prefix("hc_")?.split_once('_')?;
    let dot = if before.is_empty() { "" } else { "." };
    Some(match place {
        "head" => format!("{before}{dot}{head}{tensor}"),
        _ => format!("{before}{dot}{place}_hc.{tensor}"),
    })
}

fn parts(name: &str, rename: fn(&[&str], usize) -> Option<&'static str>) -> String {
    let all: Vec<&str> = name.split('.').collect();
    let renamed = (0..all.len()).map(|i| rename(&all, i).or_else(|| all.get(i).copied()).unwrap_or_default());
    renamed.collect::<Vec<_>>().join(".")
}

fn part<'a>(all: &[&'a str], at: Option<usize>) -> &'a str {
    at.and_then(|at| all.get(at)).copied().unwrap_or_default()
}

fn mlx(all: &[&str], i: usize) -> Option<&'static str> {
    match (part(all, i.checked_sub(1)), part(all, Some(i))) {
        (_, "embed") => Some("embed_tokens"),
        ("gate", "bias") => Some("e_score_correction_bias"),
        ("shared_experts", "w1") => Some("gate_proj"),
        ("shared_experts", "w2") => Some("down_proj"),
        ("shared_experts", "w3") => Some("up_proj"),
        _ => None,
    }
}

fn transformers(all: &[&str], i: usize) -> Option<&'static str> {
    let before = part(all, i.checked_sub(1));
    Some(match part(all, Some(i)) {
        "attn" => "self_attn",
        "ffn" => "mlp",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_sink" => "sinks",
        "wq_a" => "q_a_proj",
        "wq_b" => "q_b_proj",
        "wkv" => "kv_proj",
        "wgate" => "gate_proj",
        "wo_a" => "o_a_proj",
        "wo_b" => "o_b_proj",
        "q_norm" => "q_a_norm",
        "ape" => "position_bias",
        "norm" if matches!(before, "compressor" | "indexer") => "kv_norm",
        "weights_proj" => "scorer.weights_proj",
        _ => return mlx(all, i),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_files() {
        let names = [
            ("embed", "embed_tokens", "embed_tokens"),
            ("norm.weight", "norm.weight", "norm.weight"),
            ("hc_head_fn", "hc_head.fn", "hc_head.hc_fn"),
            ("layers.3.attn_norm.weight", "layers.3.attn_norm.weight", "layers.3.input_layernorm.weight"),
            ("layers.3.hc_ffn_scale", "layers.3.ffn_hc.scale", "layers.3.ffn_hc.scale"),
            ("layers.3.attn.wq_a", "layers.3.attn.wq_a", "layers.3.self_attn.q_a_proj"),
            ("layers.3.attn.attn_sink", "layers.3.attn.attn_sink", "layers.3.self_attn.sinks"),
            (
                "layers.3.attn.compressor.norm.weight",
                "layers.3.attn.compressor.norm.weight",
                "layers.3.self_attn.compressor.kv_norm.weight",
            ),
            (
                "layers.3.attn.indexer.compressor.ape",
                "layers.3.attn.indexer.compressor.ape",
                "layers.3.self_attn.compressor.indexer.position_bias",
            ),
            (
                "layers.3.attn.indexer.compressor.norm.weight",
                "layers.3.attn.indexer.compressor.norm.weight",
                "layers.3.self_attn.compressor.indexer.kv_norm.weight",
            ),
            (
                "layers.3.attn.indexer.wq_b",
                "layers.3.attn.indexer.wq_b",
                "layers.3.self_attn.compressor.indexer.q_b_proj",
            ),
            (
                "layers.3.attn.indexer.weights_proj",
                "layers.3.attn.indexer.weights_proj",
                "layers.3.self_attn.compressor.indexer.scorer.weights_proj",
            ),
            (
                "layers.3.ffn.gate.bias",
                "layers.3.ffn.gate.e_score_correction_bias",
                "layers.3.mlp.gate.e_score_correction_bias",
            ),
            (
                "layers.3.ffn.shared_experts.w2",
                "layers.3.ffn.shared_experts.down_proj",
                "layers.3.mlp.shared_experts.down_proj",
            ),
            ("layers.3.ffn", "layers.3.ffn", "layers.3.mlp"),
        ];
        for (asked, in_mlx, in_transformers) in names {
            assert_eq!(Names::AsAsked.rename(asked), asked);
            assert_eq!(Names::Mlx.rename(asked), in_mlx);
            assert_eq!(Names::Transformers.rename(asked), in_transformers);
        }
    }
}
