//! The architecture registry: what distinguishes the families on disk. A family is added by adding a row.

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
