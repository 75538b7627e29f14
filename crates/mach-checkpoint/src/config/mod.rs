//! `config.json` and `generation_config.json`, normalised: one structure whatever the family, every default resolved.

mod compressed;
mod gemma3;
mod gemma4;
mod generation;
pub(crate) mod parse;
mod quantization;

pub use compressed::CompressedConfig;
pub use gemma3::Gemma3Config;
pub use gemma4::Gemma4Config;
pub(crate) use quantization::{Quantization, Scheme};

/// The model families that mach knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Qwen3.5 and Qwen3.6 MoE: gated attention and Gated DeltaNet layers, shared expert.
    Qwen3_5Moe,
    /// Qwen3 MoE: attention only, no shared expert.
    Qwen3Moe,
    /// gpt-oss: attention with sinks, full and sliding in turn, experts with biases.
    GptOss,
    /// Gemma 4 with experts: sliding and full attention layers of different head sizes, a dense network beside the
    /// experts.
    Gemma4,
    /// Qwen3 without experts.
    Qwen3,
    /// Qwen3.5 without experts: gated attention and Gated DeltaNet layers.
    Qwen3_5,
    /// Llama, and the many models of its form.
    Llama,
    /// Mistral: as Llama, perhaps with a sliding window.
    Mistral,
    /// The first Gemma.
    Gemma,
    /// DeepSeek-V4: attention over a window and compressed entries, several residual streams, shared expert.
    DeepseekV4,
    /// The text model of Gemma 3: norms before and behind each block, sliding and full attention layers.
    Gemma3Text,
}

/// What mixes tokens in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// Softmax attention over all keys.
    FullAttention,
    /// Softmax attention over the nearest [`sliding_window`](ModelConfig::sliding_window) keys.
    SlidingAttention,
    /// Gated DeltaNet recurrence.
    LinearAttention,
    /// Attention over a window, and over compressed entries if the layer has any.
    CompressedAttention,
}

/// Rotary embedding (split half).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many leading elements of a head are rotated.
    pub rotary_dim: usize,
    /// How the context is stretched, if it is.
    pub yarn: Option<YarnConfig>,
    /// The same in Llama 3.1's way.
    pub llama3: Option<Llama3Config>,
}

/// A rotary embedding stretched over a longer context as in Llama 3.1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3Config {
    /// By how much.
    pub factor: f64,
    /// Rotations over the positions of before up to which a frequency is divided in full.
    pub low: f64,
    /// Rotations from which it stays as it is; it is blended between the two.
    pub high: f64,
    /// Positions that the model was made for at first.
    pub original: usize,
}

/// A rotary embedding stretched over a longer context (YaRN).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct YarnConfig {
    /// By how much.
    pub factor: f64,
    /// Positions that the model was made for at first.
    pub original: usize,
    /// Rotations over those positions above which a frequency stays as it is.
    pub beta_fast: f64,
    /// Rotations below which it is divided in full.
    pub beta_slow: f64,
    /// Whether the bounds between these are whole pairs.
    pub truncate: bool,
    /// Multiplies cosines and sines.
    pub magnitude: f64,
}

/// Routed experts of the MoE layers.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    /// Routed experts per layer.
    pub num_experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Width of a routed expert.
    pub intermediate_size: usize,
    /// Width of the shared expert, if the family has one.
    pub shared_intermediate_size: Option<usize>,
    /// Whether the top-k weights are divided by their sum.
    pub norm_topk_prob: bool,
    /// Whether the projections of routed experts have biases.
    pub expert_bias: bool,
    /// Bounds the gate's outputs from above and those of `up` from both sides.
    pub swiglu_limit: Option<f32>,
    /// Slope of the sigmoid in the activation, where the file gives one.
    pub swiglu_alpha: Option<f32>,
}

/// Gated DeltaNet sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct GdnConfig {
    /// Query/key heads.
    pub key_heads: usize,
    /// Value heads; a multiple of `key_heads`.
    pub value_heads: usize,
    /// Width of a query/key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Taps of the causal convolution.
    pub conv_kernel: usize,
}

/// The text model's settings.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family computes it.
    pub family: Family,
    /// `model_type` as written.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Vocabulary rows of embedding and head.
    pub vocab_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads.
    pub num_kv_heads: usize,
    /// Width of an attention head.
    pub head_dim: usize,
    /// Width of dense MLP layers (layers that are not MoE); 0 if there are none.
    pub intermediate_size: usize,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f32,
    /// Rotary settings.
    pub rope: RopeConfig,
    /// One entry a layer.
    pub layers: Vec<LayerKind>,
    /// `true` where the layer's MLP is a mixture of experts; one entry a layer.
    pub moe_layers: Vec<bool>,
    /// Routed experts of the MoE layers.
    pub moe: MoeConfig,
    /// Whether the projections of attention have biases.
    pub attention_bias: bool,
    /// Keys that a query of a sliding layer sees, its own included; `None` if no layer is sliding.
    pub sliding_window: Option<usize>,
    /// Gated DeltaNet, if any layer is linear attention.
    pub gdn: Option<GdnConfig>,
    /// What only Gemma 3 has.
    pub gemma3: Option<Gemma3Config>,
    /// What only Gemma 4 has.
    pub gemma4: Option<Gemma4Config>,
    /// Compressed attention and what comes with it, if the family has it.
    pub compressed: Option<CompressedConfig>,
    /// Whether the head is the embedding.
    pub tie_word_embeddings: bool,
    /// Longest context the model was made for.
    pub max_position_embeddings: usize,
    /// End-of-sequence ids of `config.json` (`generation_config.json` wins).
    pub eos_token_ids: Vec<u32>,
    /// Prefix of the text model's tensors: `model.`, `model.language_model.` or `language_model.model.`.
    pub tensor_prefix: String,
    /// Name of the head's module, for instance `lm_head` or `language_model.lm_head`.
    pub head_module: String,
}

impl ModelConfig {
    /// Key/value heads and width of a head of the attention layer at `index`.
    pub fn kv_heads(&self, index: usize) -> (usize, usize) {
        let own = self.gemma4.as_ref().and_then(|gemma4| gemma4.heads.get(index));
        own.copied().unwrap_or((self.num_kv_heads, self.head_dim))
    }

    /// The widest head of any layer.
    pub fn widest_head(&self) -> usize {
        (0..self.layers.len()).map(|index| self.kv_heads(index).1).max().unwrap_or(self.head_dim)
    }
}

/// `generation_config.json`: sampling defaults and stop ids. Absent fields are `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationConfig {
    /// Stop ids.
    pub eos_token_ids: Vec<u32>,
    /// False means greedy.
    pub do_sample: Option<bool>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Nucleus mass.
    pub top_p: Option<f32>,
    /// Candidates kept.
    pub top_k: Option<u32>,
    /// Minimum probability relative to the best.
    pub min_p: Option<f32>,
    /// Multiplicative repetition penalty.
    pub repetition_penalty: Option<f32>,
}
