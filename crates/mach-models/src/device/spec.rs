//! What is computed, in numbers: a family describes its layers with these, and a device says from them, before anything
//! is loaded, whether it can run the model.

/// How pairs of elements are chosen and how fast each turns.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeKind {
    /// Element `i` pairs with `i + rotary_dim / 2`; frequency `theta^(-2 i / rotary_dim)`.
    Half,
    /// Element `2 i` pairs with `2 i + 1`.
    Interleaved,
    /// As `Half`, low frequencies divided by `factor` (Peng et al., "YaRN", 2023).
    Yarn {
        /// By how much the context is stretched.
        factor: f64,
        /// Positions that the model was made for at first.
        original: usize,
        /// Rotations over those positions above which a frequency stays as it is.
        beta_fast: f64,
        /// Rotations below which it is divided in full.
        beta_slow: f64,
        /// Whether the bounds between these are whole pairs.
        truncate: bool,
        /// Multiplies cosines and sines, of queries and keys alike.
        magnitude: f64,
    },
    /// As `Half`, but only the first `turning` of the frequencies turn; the others are zero.
    Proportional {
        /// Frequencies that turn.
        turning: usize,
    },
    /// As `Half`, low frequencies divided by `factor` (Llama 3.1).
    Llama3 {
        /// By how much the context is stretched.
        factor: f64,
        /// Rotations over `original` positions up to which a frequency is divided in full.
        low: f64,
        /// Rotations from which it stays as it is; between the two it is blended.
        high: f64,
        /// Positions that the model was made for at first.
        original: usize,
    },
}

/// Rotary embedding of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies.
    pub theta: f64,
    /// Leading elements of a head that are rotated.
    pub rotary_dim: usize,
    /// Pairs and frequencies.
    pub kind: RopeKind,
}

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mask {
    /// Only keys nearer than this many positions.
    pub window: Option<usize>,
    /// Only keys up to the query's own position; without it, all rows of the pass.
    pub causal: bool,
}

impl Mask {
    /// Every key up to the query's own position.
    pub const CAUSAL: Mask = Mask { window: None, causal: true };

    /// The first position that a query right behind `len` positions may see.
    pub fn first_needed(&self, len: usize) -> usize {
        self.window.map_or(0, |window| (len + 1).saturating_sub(window))
    }

    /// Positions `(first, end)` that a query at `position` sees of `0..end`.
    ///
    /// ```
    /// use mach_models::device::Mask;
    /// let sliding = Mask { window: Some(4), causal: true };
    /// assert_eq!(sliding.range(10, 13), (7, 11));
    /// assert_eq!(Mask { causal: false, ..sliding }.range(10, 13), (7, 13));
    /// ```
    pub fn range(&self, position: usize, end: usize) -> (usize, usize) {
        let window = self.window.unwrap_or(usize::MAX);
        let first = (position + 1).saturating_sub(window);
        let last = if self.causal { position + 1 } else { position.saturating_add(window).min(end) };
        (first, last)
    }
}

/// Softmax attention over cached keys and values.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; query head `h` reads key/value head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rotary embedding.
    pub rope: RopeSpec,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Whether the query projection holds, after each head's query, a gate for its output.
    pub gated: bool,
    /// Epsilon of the RMS norms of queries and keys, if they are normed.
    pub qk_norm: Option<f32>,
    /// Epsilon of the RMS norm of values, which has no weight, if they are normed.
    pub v_norm: Option<f32>,
    /// Multiplies scores; `head_dim^(-1/2)` if not given.
    pub scale: Option<f32>,
    /// Caps scores: `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// Whether each query head has a learned score that takes part in the softmax and has no value.
    pub sinks: bool,
    /// Whether the four projections have biases.
    pub bias: bool,
    /// Whether values are the keys before their norm and rotation, so that there is no value projection.
    pub k_as_v: bool,
    /// Whether keys and values are kept as the activations ask even where a device was told to quantize them.
    pub plain_cache: bool,
}

/// Gated DeltaNet (Yang et al., "Gated Delta Networks", 2024).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DeltaSpec {
    /// Query/key heads.
    pub key_heads: usize,
    /// Value heads, a multiple of `key_heads`.
    pub value_heads: usize,
    /// Width of a query/key head.
    pub key_dim: usize,
    /// Width of a value head.
    pub value_dim: usize,
    /// Taps of the causal convolution.
    pub taps: usize,
    /// Epsilon of the gated norm.
    pub eps: f32,
}

impl DeltaSpec {
    /// Channels of the convolution: queries, keys, values.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }
}

/// Stretched rotary frequencies (Peng et al., "YaRN", 2023), the corrected range rounded to whole pairs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct YarnSpec {
    /// By how much the context is stretched.
    pub factor: f64,
    /// Positions that the model was made for at first.
    pub original: usize,
    /// Rotations over those positions above which a frequency stays as it is.
    pub beta_fast: f64,
    /// Rotations below which it is divided in full.
    pub beta_slow: f64,
}

/// What picks the entries that a query of compressed attention sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexSpec {
    /// Query heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Entries that a query keeps.
    pub top_k: usize,
}

/// Entries of compressed attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpec {
    /// Tokens of an entry.
    pub ratio: usize,
    /// Whether an entry pools the window before, too, by projections twice as wide.
    pub overlap: bool,
    /// What picks entries; without it all are seen.
    pub index: Option<IndexSpec>,
}

/// Attention with one key for all heads, which is the value as well: over a window of positions, and over entries that
/// windows of tokens are pooled into (DeepSeek-AI, "DeepSeek-V4", 2026). Elements turn in adjacent pairs; outputs are
/// turned back.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CompressedSpec {
    /// Query heads, each with a learned score that takes part in the softmax and has no value.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Trailing elements of a head that are rotated.
    pub rotary_dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are stretched, if they are.
    pub yarn: Option<YarnSpec>,
    /// Positions that a query sees one by one, its own included.
    pub window: usize,
    /// Entries, if the layer has any.
    pub pool: Option<PoolSpec>,
    /// Width that queries are projected down to first.
    pub q_rank: usize,
    /// Groups of heads whose outputs are projected by themselves.
    pub out_groups: usize,
    /// Width of a group's projection.
    pub out_rank: usize,
    /// Epsilon of the norms.
    pub eps: f32,
}

/// Several residual streams, mixed around every block (Xie et al., "mHC: Manifold-Constrained Hyper-Connections", 2025).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct StreamSpec {
    /// Streams.
    pub streams: usize,
    /// Normalisations of the mixing matrix by columns; by rows one fewer.
    pub iterations: usize,
    /// Added to weights and to what is divided by.
    pub eps: f32,
    /// Epsilon of the RMS norm before the projection.
    pub norm_eps: f32,
}

/// From a router's logits to scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreFunction {
    /// Over all experts.
    Softmax,
    /// Over the chosen ones.
    SoftmaxOfChosen,
    /// Of each by itself.
    Sigmoid,
    /// `sqrt(softplus(x))` of each by itself.
    SqrtSoftplus,
}

/// How rows choose experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterSpec {
    /// Routed experts.
    pub experts: usize,
    /// Experts of a row.
    pub top_k: usize,
    /// From logits to scores.
    pub score: ScoreFunction,
    /// Whether a learned bias is added to what is chosen by, and not to the weights.
    pub bias: bool,
    /// Whether a learned bias is added to the logits, and so to both.
    pub logit_bias: bool,
    /// Whether the chosen weights are divided by their sum.
    pub normalise: bool,
    /// Multiplies the weights in the end.
    pub scale: f32,
    /// Whether the weight of each expert is multiplied by a learned scale of its own in the end.
    pub expert_scale: bool,
    /// Whether experts follow from the token's id alone, by a table.
    pub hashed: bool,
}

/// How gate and up are combined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GateFunction {
    /// `silu(gate) * up`.
    Silu,
    /// `gelu_tanh(gate) * up`.
    GeluTanh,
    /// `gate * sigmoid(alpha * gate) * (up + 1)`.
    SigmoidPlusOne {
        /// Slope of the sigmoid.
        alpha: f32,
    },
}

/// A gated network `down (act(gate x) * up x)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FfnSpec {
    /// Rows of gate and up.
    pub width: usize,
    /// How they are combined.
    pub gate: GateFunction,
    /// Bounds gate from above and up from both sides before that.
    pub clamp: Option<f32>,
    /// Whether the three projections have biases.
    pub bias: bool,
}

impl FfnSpec {
    /// SwiGLU without biases.
    pub fn swiglu(width: usize) -> Self {
        FfnSpec { width, gate: GateFunction::Silu, clamp: None, bias: false }
    }
}

/// What mixes tokens in a layer.
#[derive(Debug, Clone, PartialEq)]
pub enum MixerSpec {
    /// Softmax attention.
    Attention(AttentionSpec),
    /// Gated DeltaNet.
    GatedDelta(DeltaSpec),
    /// Attention over a window and compressed entries.
    Compressed(CompressedSpec),
}

/// What works on each token by itself.
#[derive(Debug, Clone, PartialEq)]
pub enum FeedForwardSpec {
    /// One network for all tokens.
    Dense(FfnSpec),
    /// Routed experts.
    Moe {
        /// How they are chosen.
        router: RouterSpec,
        /// Each of them.
        expert: FfnSpec,
        /// The expert that every token shares, times the sigmoid of a gate.
        shared: Option<FfnSpec>,
    },
    /// Routed experts, and one network for all tokens beside them.
    Beside {
        /// For all tokens.
        dense: FfnSpec,
        /// How experts are chosen.
        router: RouterSpec,
        /// Each of them.
        expert: FfnSpec,
    },
}

/// One layer; layers of a model may differ in every size but the hidden one.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// Mixes tokens.
    pub mixer: MixerSpec,
    /// Works on each token.
    pub feed_forward: FeedForwardSpec,
}

/// A model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of embedding and head.
    pub vocab: usize,
    /// Epsilon of the norms between blocks.
    pub eps: f32,
    /// Multiplies embeddings.
    pub embedding_scale: f32,
    /// Caps logits: `cap * tanh(logit / cap)`.
    pub softcap: Option<f32>,
    /// Several residual streams in place of one.
    pub streams: Option<StreamSpec>,
    /// Every layer, in the order of a pass.
    pub layers: Vec<LayerSpec>,
}

impl ModelSpec {
    /// Whether the layer at `index` has routed experts.
    pub fn is_moe(&self, index: usize) -> bool {
        self.router(index).is_some()
    }

    /// The router of the layer at `index`, if it has one.
    pub fn router(&self, index: usize) -> Option<&RouterSpec> {
        match &self.layers.get(index)?.feed_forward {
            FeedForwardSpec::Moe { router, .. } | FeedForwardSpec::Beside { router, .. } => Some(router),
            FeedForwardSpec::Dense(_) => None,
        }
    }
}
