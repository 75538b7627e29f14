//! The registry of families: what distinguishes them on disk. A family is a file here that ends in a [`Row`], a file in
//! `mach-models` that says what is computed, and its name in [`FAMILIES`].

mod deepseek_v4;
mod gemma;
mod gemma3_text;
mod gemma4;
mod gpt_oss;
mod llama;
mod mistral;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;

use mach_quant::Bits;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::Family;
use crate::synth::Shape;

pub(crate) use deepseek_v4::{Names, OwnSizes, own_sizes};

/// All families.
pub static FAMILIES: &[&Row] = &[
    &qwen3_5_moe::ROW,
    &qwen3_moe::ROW,
    &gpt_oss::ROW,
    &gemma4::ROW,
    &deepseek_v4::ROW,
    &qwen3::ROW,
    &qwen3_5::ROW,
    &llama::ROW,
    &mistral::ROW,
    &gemma::ROW,
    &gemma3_text::ROW,
];

/// Where a form of a family keeps the text model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Naming {
    /// Prefix of the text model's tensors.
    pub prefix: &'static str,
    /// Module of the output head.
    pub head: &'static str,
}

/// As `transformers` publishes text models.
const PUBLISHED: Naming = Naming { prefix: "model.", head: "lm_head" };

/// How experts combine gate and up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwigluVariant {
    /// `silu(gate) * up`.
    PlainSwiglu,
    /// Gate bounded from above and up from both sides, and combined by a sigmoid linear unit.
    SiluLimited,
    /// `gelu_tanh(gate) * up`.
    PlainGeglu,
}

/// What a sequence keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvCacheKind {
    /// Keys and values.
    Standard,
    /// Recurrent state in most layers, keys and values in the others.
    HybridGdn,
    /// Keys and values; some layers keep only those of the nearest positions.
    Rotating,
    /// Keys of a window, and entries that many tokens share.
    Compressed,
}

/// Where a family keeps its block for the token after the next (`mtp.`), if its checkpoints may hold one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtpNaming {
    /// It has none.
    None,
    /// Under the text model's prefix.
    Inside,
    /// Beside the text model, whatever its prefix.
    Root,
}

/// The generation of drafts that a family can be sped up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecdecKind {
    /// DFlash.
    SpecdecV7,
    /// None: there are no drafts for it.
    TargetOnly,
    /// The model's own block for the token after the next.
    V4Mtp,
}

/// Names as the API writes them.
macro_rules! named {
    ($type:ty { $($variant:pat => $name:expr),+ $(,)? }) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $($variant => $name),+ })
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

named!(SwigluVariant {
    SwigluVariant::PlainSwiglu => "plain_swiglu",
    SwigluVariant::SiluLimited => "silu_limited",
    SwigluVariant::PlainGeglu => "plain_geglu",
});
named!(KvCacheKind {
    KvCacheKind::Standard => "standard",
    KvCacheKind::HybridGdn => "hybrid_gdn",
    KvCacheKind::Rotating => "rotating",
    KvCacheKind::Compressed => "compressed",
});
named!(SpecdecKind {
    SpecdecKind::SpecdecV7 => "specdec_v7",
    SpecdecKind::V4Mtp => "v4_mtp",
    SpecdecKind::TargetOnly => "target-only",
});
named!(Batching { Batching::Able => "ok", Batching::Unable(reason) => reason });

/// How a family writes calls and reasoning where its chat template does not show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputConvention {
    /// Its templates always show it.
    AsTemplate,
}

/// Whether sequences can share passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batching {
    /// They can.
    Able,
    /// They cannot, and why.
    Unable(&'static str),
}

impl Batching {
    /// Why sequences cannot share passes, if they cannot.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Batching::Able => None,
            Batching::Unable(reason) => Some(reason),
        }
    }
}

/// Whether a family's rotary embeddings may be stretched by YaRN, and what then multiplies cosines and sines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Yarn {
    /// They may not.
    Never,
    /// `0.1 ln factor + 1`, unless the file says otherwise.
    Magnified,
    /// Nothing.
    Plain,
}

/// What families without experts and without synthetic checkpoints have in common.
const DENSE: Row = Row {
    quant_method: None,
    model_type: "",
    family: Family::Llama,
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
    dense: true,
    tied_by_default: false,
    shared_expert: false,
    swiglu_variant: SwigluVariant::PlainSwiglu,
    expert_bias: false,
    stacked: false,
    default_quantization: (Bits::B4, 64),
    kv_cache_kind: KvCacheKind::Standard,
    specdec_kind: SpecdecKind::TargetOnly,
    mtp: MtpNaming::None,
    batching: Batching::Able,
    output: OutputConvention::AsTemplate,
    module: "",
    synthetic: Synthetic {
        naming: PUBLISHED,
        shapes: &[],
        gated_attention: false,
        normed_attention: false,
        between_norms: false,
        router: "",
        stack: "",
        mxfp4_experts: false,
        biases: false,
        config: |_, _, text, _| text,
    },
};

/// Synthetic checkpoints of a family.
#[derive(Clone, Copy)]
pub struct Synthetic {
    /// The naming that they are written in, MLX's.
    pub naming: Naming,
    /// Sizes of its models.
    pub shapes: &'static [Shape],
    /// Whether the query projection holds a gate.
    pub gated_attention: bool,
    /// Whether queries and keys are normed.
    pub normed_attention: bool,
    /// Whether both halves of a layer have norms behind them, and a dense network stands beside the experts.
    pub between_norms: bool,
    /// Name of the router inside a layer.
    pub router: &'static str,
    /// Name of the stacked experts inside a layer.
    pub stack: &'static str,
    /// Whether experts are MXFP4 instead of affine.
    pub mxfp4_experts: bool,
    /// Whether attention has sinks, and its projections, the router and the experts have biases.
    pub biases: bool,
    /// From the text settings that all families share, and the rest of `config.json`, to the family's `config.json`.
    pub config: fn(shape: &Shape, layers: usize, text: Value, root: Value) -> Value,
}

/// One family on disk.
///
/// ```
/// use mach_checkpoint::{KvCacheKind, Row};
/// let row = Row::named("qwen3_5_moe").unwrap();
/// assert_eq!(row.kv_cache_kind, KvCacheKind::HybridGdn);
/// assert_eq!(row.card().continuous_batching.to_string(), "ok");
/// assert!(Row::named("gpt9").is_none());
/// ```
#[derive(Clone, Copy)]
pub struct Row {
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
    /// Where layers may be `sliding_attention`: unless `layer_types` says otherwise, the last of so many is full
    /// attention and the others are sliding. `None` if none is.
    pub sliding_interval: Option<usize>,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// Whether rotary embeddings may be stretched.
    pub yarn: Yarn,
    /// Whether activations of experts may be bounded (`swiglu_limit`).
    pub swiglu_limit: bool,
    /// The setting that says how wide a routed expert is.
    pub expert_width: &'static str,
    /// The `quantization_config.quant_method` of its published files, if they are quantized.
    pub quant_method: Option<&'static str>,
    /// Whether no model of the family has routed experts.
    pub dense: bool,
    /// Whether the head is the embedding unless the file says otherwise.
    pub tied_by_default: bool,
    /// Whether layers have a shared expert.
    pub shared_expert: bool,
    /// How experts combine gate and up.
    pub swiglu_variant: SwigluVariant,
    /// Whether experts have biases.
    pub expert_bias: bool,
    /// Whether checkpoints may hold a layer's experts as one stacked tensor.
    pub stacked: bool,
    /// What experts are quantized to unless told otherwise: bits, and columns that share a scale.
    pub default_quantization: (Bits, usize),
    /// What a sequence keeps.
    pub kv_cache_kind: KvCacheKind,
    /// The generation of drafts that it can be sped up by.
    pub specdec_kind: SpecdecKind,
    /// Where its own block for the token after the next is.
    pub mtp: MtpNaming,
    /// Whether sequences can share passes.
    pub batching: Batching,
    /// How it writes calls and reasoning.
    pub output: OutputConvention,
    /// Module that computes it.
    pub module: &'static str,
    /// Its synthetic checkpoints.
    pub synthetic: Synthetic,
}

impl std::fmt::Debug for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Row").field(&self.model_type).finish()
    }
}

/// What a family is, as `mach-archs --json` and the server's capabilities tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FamilyCard {
    /// `model_type` at the top level of `config.json`.
    pub model_type: &'static str,
    /// How experts combine gate and up.
    pub swiglu_variant: SwigluVariant,
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
    /// What a sequence keeps.
    pub kv_cache_kind: KvCacheKind,
    /// The generation of drafts that it can be sped up by.
    pub specdec_kind: SpecdecKind,
    /// `ok`, or why sequences cannot share passes.
    pub continuous_batching: Batching,
}

impl Row {
    /// The row of a `model_type`.
    pub fn named(model_type: &str) -> Option<&'static Row> {
        FAMILIES.iter().copied().find(|row| row.model_type == model_type)
    }

    /// Module of the embedding table in a form of the family, without the prefix.
    pub(crate) fn embedding(&self, naming: &Naming) -> &'static str {
        match self.family {
            Family::DeepseekV4 => deepseek_v4::embedding(naming),
            _ => "embed_tokens",
        }
    }

    /// In which words a file of this naming names its tensors.
    pub(crate) fn names(&self, naming: &Naming, has: impl Fn(&str) -> bool) -> Names {
        match self.family {
            Family::DeepseekV4 => Names::of(naming, has),
            _ => Names::default(),
        }
    }

    /// The known `model_type`s, comma separated.
    pub fn known() -> String {
        FAMILIES.iter().map(|row| row.model_type).collect::<Vec<_>>().join(", ")
    }

    /// The family in the terms of the API.
    pub fn card(&self) -> FamilyCard {
        let (default_bits, default_group_size) = self.default_quantization;
        FamilyCard {
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
            continuous_batching: self.batching,
        }
    }

    /// Whether requests share passes. `asked`: what the operator said, if anything. Asking for what the family cannot do
    /// is an error that says why.
    pub fn batching(&self, asked: Option<bool>) -> Result<bool, String> {
        match (asked, self.batching) {
            (Some(true), Batching::Unable(reason)) => {
                Err(format!("{} cannot batch: {reason}", self.model_type))
            }
            (asked, batching) => Ok(asked.unwrap_or(true) && batching == Batching::Able),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_cannot_batch_refuses_with_the_reason() {
        let able = *FAMILIES[0];
        assert_eq!((able.batching(None), able.batching(Some(true))), (Ok(true), Ok(true)));
        assert_eq!(
            (able.batching(Some(false)), able.card().continuous_batching),
            (Ok(false), Batching::Able)
        );
        let unable = Row { batching: Batching::Unable("its cache is one sequence's"), ..able };
        assert_eq!((unable.batching(None), unable.batching(Some(false))), (Ok(false), Ok(false)));
        let refusal = unable.batching(Some(true)).unwrap_err();
        assert!(refusal.contains(able.model_type) && refusal.ends_with("its cache is one sequence's"));
        assert_eq!(unable.card().continuous_batching.to_string(), "its cache is one sequence's");
    }

    /// Every family has its own names, so that nothing is found twice.
    #[test]
    fn names_are_unique() {
        for (i, row) in FAMILIES.iter().enumerate() {
            assert!(std::ptr::eq(Row::named(row.model_type).unwrap(), *row));
            assert!(FAMILIES[..i].iter().all(|other| other.family != row.family));
            for shape in row.synthetic.shapes {
                assert_eq!(shape.family, row.family, "{}", shape.name);
                assert!(Shape::named(shape.name).is_some_and(|(_, found)| found.family == row.family));
            }
        }
    }
}
