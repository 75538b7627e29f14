//! The architecture registry: what distinguishes the families on disk. A family is added by adding a row.

use mach_quant::Bits;
use serde::Serialize;

use crate::Family;

/// Where a form of a family keeps the text model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Naming {
    /// Prefix of the text model's tensors.
    pub prefix: &'static str,
    /// Module of the output head.
    pub head: &'static str,
}

/// One row of the registry.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Architecture {
    /// `model_type` at the top level of `config.json`.
    pub model_type: &'static str,
    /// Family that computes it.
    pub family: Family,
    /// Whether the text settings lie in `text_config`.
    pub text_config: bool,
    /// Published naming first, then MLX and other re-exports.
    pub namings: &'static [Naming],
    /// Whether published norm weights are stored minus one.
    pub norm_minus_one: bool,
    /// Whether top-k weights are renormalised whatever the file says.
    pub always_norm_topk: bool,
    /// Default share of a head that is rotated.
    pub partial_rotary_factor: f64,
    /// Default `full_attention_interval`; `None` if every layer is full attention.
    pub full_attention_interval: Option<usize>,
    /// Whether layers have a shared expert.
    pub shared_expert: bool,
    /// How experts combine gate and up.
    pub swiglu_variant: &'static str,
    /// Whether experts have biases.
    pub expert_bias: bool,
    /// Module that computes it.
    pub module: &'static str,
    /// Why sequences cannot share passes, if they cannot.
    pub unbatchable: Option<&'static str>,
    /// Whether checkpoints may hold a layer's experts as one stacked tensor.
    pub stacked: bool,
    /// What experts are quantized to unless told otherwise: bits, and columns that share a scale.
    pub default_quantization: (Bits, usize),
    /// What a sequence keeps.
    pub kv_cache_kind: &'static str,
    /// The generation of drafts that it can be sped up by.
    pub specdec_kind: &'static str,
}

/// What a family is, as `mach-archs --json` and the server's capabilities tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ArchitectureCard {
    /// `model_type` at the top level of `config.json`.
    pub model_type: &'static str,
    /// How experts combine gate and up.
    pub swiglu_variant: &'static str,
    /// Whether checkpoints may hold a layer's experts as one stacked tensor.
    pub stacked_supported: bool,
    /// Whether experts have biases.
    pub has_expert_bias: bool,
    /// Whether the text settings lie in `text_config`.
    pub text_config_wrapped: bool,
    /// Module that computes it.
    pub model_module: &'static str,
    /// Bits that experts are quantized to unless told otherwise.
    pub default_bits: Bits,
    /// Columns that share a scale then.
    pub default_group_size: usize,
    /// What a sequence keeps: `standard` keys and values, or `hybrid_gdn` where recurrent layers alternate with attention.
    pub kv_cache_kind: &'static str,
    /// The generation of drafts that it can be sped up by.
    pub specdec_kind: &'static str,
    /// `ok`, or why sequences cannot share passes.
    pub continuous_batching: &'static str,
}

impl Architecture {
    /// The family in the terms of the API.
    pub fn card(&self) -> ArchitectureCard {
        let (default_bits, default_group_size) = self.default_quantization;
        ArchitectureCard {
            model_type: self.model_type,
            swiglu_variant: self.swiglu_variant,
            stacked_supported: self.stacked,
            has_expert_bias: self.expert_bias,
            text_config_wrapped: self.text_config,
            model_module: self.module,
            default_bits,
            default_group_size,
            kv_cache_kind: self.kv_cache_kind,
            specdec_kind: self.specdec_kind,
            continuous_batching: self.unbatchable.unwrap_or("ok"),
        }
    }

    /// Whether requests share passes. `asked`: what the operator said, if anything. Asking for what the family cannot do
    /// is an error that says why.
    pub fn batching(&self, asked: Option<bool>) -> Result<bool, String> {
        match (asked, self.unbatchable) {
            (Some(true), Some(reason)) => Err(format!("{} cannot batch: {reason}", self.model_type)),
            (asked, reason) => Ok(asked.unwrap_or(true) && reason.is_none()),
        }
    }
}

const PUBLISHED: Naming = Naming { prefix: "model.", head: "lm_head" };

/// All rows.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        model_type: "qwen3_5_moe",
        family: Family::Qwen3_5Moe,
        text_config: true,
        namings: &[
            Naming { prefix: "model.language_model.", head: "lm_head" },
            Naming { prefix: "language_model.model.", head: "language_model.lm_head" },
            PUBLISHED,
        ],
        norm_minus_one: true,
        always_norm_topk: true,
        partial_rotary_factor: 0.25,
        full_attention_interval: Some(4),
        shared_expert: true,
        swiglu_variant: "plain_swiglu",
        expert_bias: false,
        module: "mach_models::qwen3_5_moe",
        unbatchable: None,
        stacked: true,
        default_quantization: (Bits::B4, 64),
        kv_cache_kind: "hybrid_gdn",
        specdec_kind: "specdec_v7",
    },
    Architecture {
        model_type: "qwen3_moe",
        family: Family::Qwen3Moe,
        text_config: false,
        namings: &[PUBLISHED],
        norm_minus_one: false,
        always_norm_topk: false,
        partial_rotary_factor: 1.0,
        full_attention_interval: None,
        shared_expert: false,
        swiglu_variant: "plain_swiglu",
        expert_bias: false,
        module: "mach_models::qwen3_moe",
        unbatchable: None,
        stacked: true,
        default_quantization: (Bits::B4, 64),
        kv_cache_kind: "standard",
        specdec_kind: "specdec_v7",
    },
];

/// The row of a `model_type`.
pub fn architecture(model_type: &str) -> Option<&'static Architecture> {
    ARCHITECTURES.iter().find(|a| a.model_type == model_type)
}

/// The known `model_type`s, comma separated.
pub fn known_model_types() -> String {
    ARCHITECTURES.iter().map(|a| a.model_type).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_cannot_batch_refuses_with_the_reason() {
        let able = ARCHITECTURES[0];
        assert_eq!((able.batching(None), able.batching(Some(true))), (Ok(true), Ok(true)));
        assert_eq!((able.batching(Some(false)), able.card().continuous_batching), (Ok(false), "ok"));
        let unable = Architecture { unbatchable: Some("its cache is one sequence's"), ..able };
        assert_eq!((unable.batching(None), unable.batching(Some(false))), (Ok(false), Ok(false)));
        let refusal = unable.batching(Some(true)).unwrap_err();
        assert!(refusal.contains(able.model_type) && refusal.ends_with("its cache is one sequence's"));
        assert_eq!(unable.card().continuous_batching, "its cache is one sequence's");
    }
}
