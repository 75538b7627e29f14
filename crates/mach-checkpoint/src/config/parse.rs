//! From the JSON of `config.json` to a checked [`ModelConfig`].

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::gemma3;
use super::gemma4::{self, Common};
use super::{
    Family, GdnConfig, LayerKind, Llama3Config, ModelConfig, MoeConfig, Quantization, RopeConfig, YarnConfig,
    compressed,
};
use crate::families::{Row, SwigluVariant, Yarn};
use crate::{CheckpointError, json};

/// Bounds above any model, small enough that no product of two sizes overflows.
const MAX_HIDDEN: u64 = 1 << 20;
const MAX_VOCAB: u64 = 1 << 24;
const MAX_LAYERS: u64 = 1 << 12;
pub(super) const MAX_HEADS: u64 = 1 << 12;
pub(super) const MAX_HEAD_DIM: u64 = 1 << 14;
const MAX_EXPERTS: u64 = 1 << 16;
const MAX_CONV: u64 = 64;
const MAX_POSITIONS: u64 = 1 << 40;

#[derive(Deserialize)]
struct Envelope {
    model_type: String,
    text_config: Option<Value>,
    tie_word_embeddings: Option<bool>,
    eos_token_id: Option<Ids>,
}

/// The text settings as written. Absent and null are the same.
#[derive(Deserialize)]
struct Text {
    hidden_size: Option<u64>,
    vocab_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    intermediate_size: Option<u64>,
    rms_norm_eps: Option<f64>,
    rope_parameters: Option<Rope>,
    rope_scaling: Option<Rope>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    layer_types: Option<Vec<String>>,
    full_attention_interval: Option<u64>,
    sliding_window: Option<u64>,
    sliding_window_pattern: Option<u64>,
    mlp_only_layers: Option<Vec<u64>>,
    decoder_sparse_step: Option<u64>,
    num_experts: Option<u64>,
    /// Another spelling of `num_experts`; files may have both.
    num_local_experts: Option<u64>,
    num_experts_per_tok: Option<u64>,
    /// Another spelling of `num_experts_per_tok`; files may have both.
    experts_per_token: Option<u64>,
    swiglu_limit: Option<f64>,
    swiglu_alpha: Option<f64>,
    /// Gemma 4's name of the same.
    top_k_experts: Option<u64>,
    moe_intermediate_size: Option<u64>,
    shared_expert_intermediate_size: Option<u64>,
    norm_topk_prob: Option<bool>,
    linear_num_key_heads: Option<u64>,
    linear_num_value_heads: Option<u64>,
    linear_key_head_dim: Option<u64>,
    linear_value_head_dim: Option<u64>,
    linear_conv_kernel_dim: Option<u64>,
    tie_word_embeddings: Option<bool>,
    max_position_embeddings: Option<u64>,
    eos_token_id: Option<Ids>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    attn_output_gate: Option<bool>,
    use_sliding_window: Option<bool>,
}

#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    /// Older spelling of `rope_type`; files may have both.
    #[serde(rename = "type")]
    kind: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    original_max_position_embeddings: Option<u64>,
    truncate: Option<bool>,
    attention_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
}

/// One id or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Ids {
    One(u32),
    Many(Vec<u32>),
}

impl Ids {
    pub(super) fn into_vec(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl ModelConfig {
    /// Parses and checks `config.json`. `file` is named in errors. The tensor prefix is the published one;
    /// [`Checkpoint::open`](crate::Checkpoint::open) replaces it by the one that the shards use.
    pub fn from_json(file: &Path, bytes: &[u8]) -> Result<Self, CheckpointError> {
        parse_config(file, bytes).map(|(config, ..)| config)
    }
}

/// The configuration, its family's row, and what the file says about quantization.
pub(crate) fn parse_config(
    file: &Path,
    bytes: &[u8],
) -> Result<(ModelConfig, &'static Row, Quantization), CheckpointError> {
    let root: Value = json::parse(file, bytes)?;
    let fail = |reason: String| CheckpointError::invalid(file, reason);
    let envelope: Envelope = from_value(root.clone(), "").map_err(fail)?;
    let Some(arch) = Row::named(&envelope.model_type) else {
        return Err(CheckpointError::UnknownArchitecture {
            file: file.to_owned(),
            model_type: envelope.model_type,
            known: Row::known(),
        });
    };
    let quantization = Quantization::from_config(&root, arch.quant_method).map_err(fail)?;
    let (section, value) = match (arch.text_config, envelope.text_config) {
        (true, Some(text)) => ("text_config.", text),
        (true, None) => return Err(fail(format!("`text_config` is missing ({})", arch.model_type))),
        (false, _) => ("", root),
    };
    let (value, compressed) = match arch.family {
        Family::DeepseekV4 => {
            compressed::split(value).map(|(value, own)| (value, Some(own))).map_err(fail)?
        }
        _ => (value, None),
    };
    let text: Text = from_value(value.clone(), section).map_err(fail)?;
    let mut config = Builder { arch, section, text: &text, value: &value }
        .build(envelope.tie_word_embeddings)
        .map_err(fail)?;
    if compressed.is_some() {
        config.layers.fill(LayerKind::CompressedAttention);
    }
    config.compressed = compressed;
    config.eos_token_ids = envelope.eos_token_id.or(text.eos_token_id).map_or_else(Vec::new, Ids::into_vec);
    Ok((config, arch, quantization))
}

pub(super) fn from_value<T: serde::de::DeserializeOwned>(value: Value, section: &str) -> Result<T, String> {
    // Derived readers also take arrays, field by field; a configuration never is one.
    if !value.is_object() {
        let place = section.strip_suffix('.').map_or("the file".to_owned(), |name| format!("`{name}`"));
        return Err(format!("{place} is not a JSON object"));
    }
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        format!("`{section}{field}`: {}", error.into_inner())
    })
}

struct Builder<'a> {
    arch: &'static Row,
    section: &'a str,
    text: &'a Text,
    value: &'a Value,
}

impl Builder<'_> {
    fn build(&self, top_level_tie: Option<bool>) -> Result<ModelConfig, String> {
        let t = self.text;
        self.refuse_variants()?;
        let hidden_size = self.size("hidden_size", t.hidden_size, MAX_HIDDEN)?;
        let vocab_size = self.size("vocab_size", t.vocab_size, MAX_VOCAB)?;
        let layer_count = self.size("num_hidden_layers", t.num_hidden_layers, MAX_LAYERS)?;
        let num_heads = self.size("num_attention_heads", t.num_attention_heads, MAX_HEADS)?;
        // Dense models of before grouped heads do not say.
        let kv_heads = t.num_key_value_heads.or(t.num_attention_heads.filter(|_| self.arch.dense));
        let num_kv_heads = self.size("num_key_value_heads", kv_heads, MAX_HEADS)?;
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(format!(
                "`{0}num_attention_heads` ({num_heads}) is not a multiple of `{0}num_key_value_heads` ({num_kv_heads})",
                self.section
            ));
        }
        let head_dim = match t.head_dim {
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                return Err(format!(
                    "`{0}head_dim` is missing and `{0}hidden_size` ({hidden_size}) is not a multiple of the {num_heads} heads",
                    self.section
                ));
            }
            given => self.size("head_dim", given, MAX_HEAD_DIM)?,
        };
        let layers = self.layers(layer_count)?;
        let gdn = if layers.contains(&LayerKind::LinearAttention) { Some(self.gdn()?) } else { None };
        let sliding_window = if layers.contains(&LayerKind::SlidingAttention) {
            Some(self.size("sliding_window", t.sliding_window, MAX_POSITIONS)?)
        } else {
            None
        };
        let (moe, moe_layers) = self.moe(layer_count)?;
        let beside = self.arch.family == Family::Gemma4;
        let intermediate_size = if moe_layers.iter().all(|&m| m) && !beside {
            0
        } else {
            self.size("intermediate_size", t.intermediate_size, MAX_HIDDEN)?
        };
        let mut rope = self.rope(head_dim)?;
        let gemma3 = if self.arch.family == Family::Gemma3Text {
            let (gemma3, theta) = gemma3::parse(self.value.clone(), self.section)?;
            rope.theta = theta;
            Some(gemma3)
        } else {
            None
        };
        let gemma4 = if self.arch.family == Family::Gemma4 {
            let common = Common { layers: &layers, heads: num_heads, kv_heads: num_kv_heads, head_dim };
            let (gemma4, theta) = gemma4::parse(self.value.clone(), self.section, &common)?;
            rope = RopeConfig { theta, rotary_dim: head_dim, yarn: None, llama3: None };
            Some(gemma4)
        } else {
            None
        };
        let naming = self.arch.namings.first().ok_or("family without naming")?;
        Ok(ModelConfig {
            family: self.arch.family,
            model_type: self.arch.model_type.to_owned(),
            hidden_size,
            vocab_size,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size,
            rms_norm_eps: self.positive("rms_norm_eps", t.rms_norm_eps.unwrap_or(1e-6), 1.0)? as f32,
            rope,
            layers,
            moe_layers,
            moe,
            attention_bias: self.arch.attention_bias,
            sliding_window,
            gdn,
            gemma3,
            gemma4,
            compressed: None,
            tie_word_embeddings: top_level_tie.or(t.tie_word_embeddings).unwrap_or(self.arch.tied_by_default),
            max_position_embeddings: self.size(
                "max_position_embeddings",
                t.max_position_embeddings.or(Some(32768)),
                MAX_POSITIONS,
            )?,
            eos_token_ids: Vec::new(),
            tensor_prefix: naming.prefix.to_owned(),
            head_module: naming.head.to_owned(),
        })
    }

    /// A required size between 1 and `max`.
    fn size(&self, field: &str, value: Option<u64>, max: u64) -> Result<usize, String> {
        match value {
            None => Err(format!("`{}{field}` is missing", self.section)),
            Some(n) if n == 0 || n > max => {
                Err(format!("`{}{field}` is {n}; it must be between 1 and {max}", self.section))
            }
            Some(n) => usize::try_from(n).map_err(|_| format!("`{}{field}` is too large", self.section)),
        }
    }

    fn positive(&self, field: &str, value: f64, max: f64) -> Result<f64, String> {
        if value > 0.0 && value <= max {
            Ok(value)
        } else {
            Err(format!("`{}{field}` is {value}; it must be above 0 and at most {max}", self.section))
        }
    }

    fn bound(&self, field: &str, value: Option<f64>) -> Result<Option<f32>, String> {
        value.map(|value| self.positive(field, value, 1e6).map(|value| value as f32)).transpose()
    }

    /// A setting with two spellings, which must not contradict each other.
    fn spelt(
        &self,
        (field, value): (&str, Option<u64>),
        (other, other_value): (&str, Option<u64>),
    ) -> Result<Option<u64>, String> {
        match (value, other_value) {
            (Some(a), Some(b)) if a != b => {
                Err(format!("`{0}{field}` is {a}, but `{0}{other}` is {b}", self.section))
            }
            (a, b) => Ok(a.or(b)),
        }
    }

    /// Settings that would change the computation in a way that no supported family has.
    fn refuse_variants(&self) -> Result<(), String> {
        let t = self.text;
        let refuse = |field: &str, value: &str| {
            Err(format!("`{}{field}`: {value} is not supported for {}", self.section, self.arch.model_type))
        };
        // Gemma's files say `gelu` where its authors mean the approximation by tanh.
        match (self.arch.swiglu_variant, t.hidden_act.as_deref()) {
            (_, None) | (SwigluVariant::PlainGeglu, Some("gelu" | "gelu_pytorch_tanh")) => {}
            (SwigluVariant::PlainGeglu, Some(other)) => return refuse("hidden_act", other),
            (_, Some("silu" | "swish")) => {}
            (_, Some(other)) => return refuse("hidden_act", other),
        }
        if t.mlp_bias == Some(true) {
            return refuse("mlp_bias", "true");
        }
        if let Some(said) = t.attention_bias.filter(|&said| said != self.arch.attention_bias) {
            return refuse("attention_bias", if said { "true" } else { "false" });
        }
        for (field, set) in
            [("swiglu_limit", t.swiglu_limit.is_some()), ("swiglu_alpha", t.swiglu_alpha.is_some())]
        {
            if set && !self.arch.swiglu_limit {
                return refuse(field, "a limit of activations");
            }
        }
        if t.use_sliding_window == Some(true) {
            return refuse("use_sliding_window", "true");
        }
        if t.attn_output_gate == Some(false) {
            return refuse("attn_output_gate", "false");
        }
        for (field, rope) in [("rope_parameters", &t.rope_parameters), ("rope_scaling", &t.rope_scaling)] {
            match rope.as_ref().and_then(|r| r.rope_type.as_deref().or(r.kind.as_deref())) {
                None | Some("default") => {}
                Some("yarn") if self.arch.yarn != Yarn::Never => {}
                Some("llama3") if self.arch.family == Family::Llama => {}
                Some(other) => return refuse(&format!("{field}.rope_type"), other),
            }
        }
        Ok(())
    }

    fn rope(&self, head_dim: usize) -> Result<RopeConfig, String> {
        let t = self.text;
        let nested = t.rope_parameters.as_ref().or(t.rope_scaling.as_ref());
        let theta = nested.and_then(|r| r.rope_theta).or(t.rope_theta).unwrap_or(10_000.0);
        let theta = self.positive("rope_theta", theta, 1e15)?;
        let factor = nested
            .and_then(|r| r.partial_rotary_factor)
            .or(t.partial_rotary_factor)
            .unwrap_or(self.arch.partial_rotary_factor);
        let factor = self.positive("partial_rotary_factor", factor, 1.0)?;
        let rotary_dim = (head_dim as f64 * factor) as usize;
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
            return Err(format!(
                "`{}partial_rotary_factor` {factor} of `head_dim` {head_dim} leaves {rotary_dim} rotated elements; an even number is needed",
                self.section
            ));
        }
        Ok(RopeConfig { theta, rotary_dim, yarn: self.yarn()?, llama3: self.llama3()? })
    }

    fn llama3(&self) -> Result<Option<Llama3Config>, String> {
        let (place, rope) = match (&self.text.rope_parameters, &self.text.rope_scaling) {
            (Some(rope), _) => ("rope_parameters", rope),
            (None, Some(rope)) => ("rope_scaling", rope),
            (None, None) => return Ok(None),
        };
        if rope.rope_type.as_deref().or(rope.kind.as_deref()) != Some("llama3") {
            return Ok(None);
        }
        let name = |field: &str| format!("{place}.{field}");
        let positive = |field: &str, value: Option<f64>| match value {
            Some(value) => self.positive(&name(field), value, 1e6),
            None => Err(format!("`{}{}` is missing", self.section, name(field))),
        };
        let original = name("original_max_position_embeddings");
        let llama3 = Llama3Config {
            factor: positive("factor", rope.factor)?,
            low: positive("low_freq_factor", rope.low_freq_factor)?,
            high: positive("high_freq_factor", rope.high_freq_factor)?,
            original: self.size(&original, rope.original_max_position_embeddings, MAX_POSITIONS)?,
        };
        if llama3.low >= llama3.high {
            let (section, low) = (self.section, name("low_freq_factor"));
            return Err(format!("`{section}{low}` is {}; it must be below `high_freq_factor`", llama3.low));
        }
        Ok(Some(llama3))
    }

    fn yarn(&self) -> Result<Option<YarnConfig>, String> {
        let (place, rope) = match (&self.text.rope_parameters, &self.text.rope_scaling) {
            (Some(rope), _) => ("rope_parameters", rope),
            (None, Some(rope)) => ("rope_scaling", rope),
            (None, None) => return Ok(None),
        };
        if rope.rope_type.as_deref().or(rope.kind.as_deref()) != Some("yarn") {
            return Ok(None);
        }
        let name = |field: &str| format!("{place}.{field}");
        let positive = |field: &str, value: Option<f64>, max: f64| match value {
            Some(value) => self.positive(&name(field), value, max),
            None => Err(format!("`{}{}` is missing", self.section, name(field))),
        };
        let factor = positive("factor", rope.factor, 1e6)?;
        let magnitude = |scale: f64| if factor > 1.0 { 0.1 * scale * factor.ln() + 1.0 } else { 1.0 };
        let magnitude = match (self.arch.yarn, rope.attention_factor, rope.mscale, rope.mscale_all_dim) {
            (Yarn::Plain | Yarn::Never, ..) => 1.0,
            (Yarn::Magnified, Some(given), ..) => positive("attention_factor", Some(given), 1e3)?,
            (Yarn::Magnified, None, Some(one), Some(all)) => magnitude(one) / magnitude(all),
            (Yarn::Magnified, None, ..) => magnitude(1.0),
        };
        Ok(Some(YarnConfig {
            factor,
            original: self.size(
                &name("original_max_position_embeddings"),
                rope.original_max_position_embeddings,
                MAX_POSITIONS,
            )?,
            beta_fast: positive("beta_fast", rope.beta_fast.or(Some(32.0)), 1e6)?,
            beta_slow: positive("beta_slow", rope.beta_slow.or(Some(1.0)), 1e6)?,
            truncate: rope.truncate.unwrap_or(true),
            magnitude,
        }))
    }

    fn layers(&self, count: usize) -> Result<Vec<LayerKind>, String> {
        let t = self.text;
        if self.arch.family == Family::Mistral && t.layer_types.is_none() {
            // One window for all layers, or none.
            let sliding = t.sliding_window.is_some();
            return Ok(vec![
                if sliding { LayerKind::SlidingAttention } else { LayerKind::FullAttention };
                count
            ]);
        }
        let (other, default_interval) = match (self.arch.full_attention_interval, self.arch.sliding_interval)
        {
            (Some(interval), _) => (LayerKind::LinearAttention, interval),
            (None, Some(interval)) => (LayerKind::SlidingAttention, interval),
            (None, None) => (LayerKind::FullAttention, 1),
        };
        if let Some(types) = &t.layer_types {
            if types.len() != count {
                return Err(format!(
                    "`{0}layer_types` has {1} entries for {count} layers (`{0}num_hidden_layers`)",
                    self.section,
                    types.len()
                ));
            }
            return types
                .iter()
                .enumerate()
                .map(|(i, kind)| {
                    let known = match kind.as_str() {
                        "full_attention" => Some(LayerKind::FullAttention),
                        "linear_attention" => Some(LayerKind::LinearAttention),
                        "sliding_attention" => Some(LayerKind::SlidingAttention),
                        _ => None,
                    };
                    let place = || format!("`{}layer_types[{i}]`", self.section);
                    match known {
                        Some(kind) if kind == LayerKind::FullAttention || kind == other => Ok(kind),
                        Some(_) => Err(format!(
                            "{}: `{kind}` is not supported for {}",
                            place(),
                            self.arch.model_type
                        )),
                        None => Err(format!("{}: unknown kind `{kind}`", place())),
                    }
                })
                .collect();
        }
        // Only of the hybrid family is the interval a setting.
        let given = t.full_attention_interval.filter(|_| other == LayerKind::LinearAttention);
        let pattern = t.sliding_window_pattern.filter(|_| self.arch.family == Family::Gemma3Text);
        let interval = given.or(pattern).or(Some(default_interval as u64));
        let field = if pattern.is_some() { "sliding_window_pattern" } else { "full_attention_interval" };
        let interval = self.size(field, interval, MAX_LAYERS)?;
        Ok((1..=count).map(|n| if n % interval == 0 { LayerKind::FullAttention } else { other }).collect())
    }

    fn gdn(&self) -> Result<GdnConfig, String> {
        let t = self.text;
        let gdn = GdnConfig {
            key_heads: self.size("linear_num_key_heads", t.linear_num_key_heads, MAX_HEADS)?,
            value_heads: self.size("linear_num_value_heads", t.linear_num_value_heads, MAX_HEADS)?,
            key_dim: self.size("linear_key_head_dim", t.linear_key_head_dim, MAX_HEAD_DIM)?,
            value_dim: self.size("linear_value_head_dim", t.linear_value_head_dim, MAX_HEAD_DIM)?,
            conv_kernel: self.size("linear_conv_kernel_dim", t.linear_conv_kernel_dim, MAX_CONV)?,
        };
        if !gdn.value_heads.is_multiple_of(gdn.key_heads) {
            return Err(format!(
                "`{0}linear_num_value_heads` ({1}) is not a multiple of `{0}linear_num_key_heads` ({2})",
                self.section, gdn.value_heads, gdn.key_heads
            ));
        }
        Ok(gdn)
    }

    fn moe(&self, layer_count: usize) -> Result<(MoeConfig, Vec<bool>), String> {
        let t = self.text;
        let experts = self
            .spelt(("num_experts", t.num_experts), ("num_local_experts", t.num_local_experts))?
            .or(self.arch.dense.then_some(0))
            .ok_or_else(|| format!("`{}num_experts` is missing", self.section))?;
        if self.arch.dense && experts > 0 {
            return Err(format!(
                "`{}num_experts`: {experts} is not supported for {}",
                self.section, self.arch.model_type
            ));
        }
        let per_token = self.spelt(
            ("num_experts_per_tok", t.num_experts_per_tok),
            ("experts_per_token", t.experts_per_token),
        )?;
        let per_token = per_token.or(t.top_k_experts);
        let step = self.size("decoder_sparse_step", t.decoder_sparse_step.or(Some(1)), MAX_LAYERS)?;
        let mut moe_layers: Vec<bool> =
            (1..=layer_count).map(|n| experts > 0 && n.is_multiple_of(step)).collect();
        for &dense in t.mlp_only_layers.iter().flatten() {
            let slot = usize::try_from(dense).ok().and_then(|n| moe_layers.get_mut(n)).ok_or_else(|| {
                format!("`{}mlp_only_layers`: {dense} is not one of {layer_count} layers", self.section)
            })?;
            *slot = false;
        }
        let norm_topk_prob = self.arch.always_norm_topk || t.norm_topk_prob.unwrap_or(false);
        if !moe_layers.contains(&true) {
            let none = MoeConfig {
                num_experts: 0,
                top_k: 0,
                intermediate_size: 0,
                shared_intermediate_size: None,
                norm_topk_prob,
                expert_bias: false,
                swiglu_limit: None,
                swiglu_alpha: None,
            };
            return Ok((none, moe_layers));
        }
        let num_experts = self.size("num_experts", Some(experts), MAX_EXPERTS)?;
        let top_k = self.size("num_experts_per_tok", per_token, MAX_EXPERTS)?;
        if top_k > num_experts {
            return Err(format!(
                "`{0}num_experts_per_tok` ({top_k}) is more than `{0}num_experts` ({num_experts})",
                self.section
            ));
        }
        let shared_intermediate_size = if self.arch.shared_expert {
            let width = t.shared_expert_intermediate_size;
            Some(self.size("shared_expert_intermediate_size", width, MAX_HIDDEN)?)
        } else {
            None
        };
        let moe = MoeConfig {
            num_experts,
            top_k,
            intermediate_size: match self.arch.expert_width {
                field @ "intermediate_size" => self.size(field, t.intermediate_size, MAX_HIDDEN)?,
                field => self.size(field, t.moe_intermediate_size, MAX_HIDDEN)?,
            },
            shared_intermediate_size,
            norm_topk_prob,
            expert_bias: self.arch.expert_bias,
            swiglu_limit: self.bound("swiglu_limit", t.swiglu_limit)?,
            swiglu_alpha: self.bound("swiglu_alpha", t.swiglu_alpha)?,
        };
        Ok((moe, moe_layers))
    }
}
