//! From the JSON of `config.json` to a checked [`ModelConfig`].

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::{GdnConfig, LayerKind, ModelConfig, MoeConfig, Quantization, RopeConfig};
use crate::families::Row;
use crate::{CheckpointError, json};

/// Bounds above any model, small enough that no product of two sizes overflows.
const MAX_HIDDEN: u64 = 1 << 20;
const MAX_VOCAB: u64 = 1 << 24;
const MAX_LAYERS: u64 = 1 << 12;
const MAX_HEADS: u64 = 1 << 12;
const MAX_HEAD_DIM: u64 = 1 << 14;
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
    mlp_only_layers: Option<Vec<u64>>,
    decoder_sparse_step: Option<u64>,
    num_experts: Option<u64>,
    num_experts_per_tok: Option<u64>,
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
    attn_output_gate: Option<bool>,
    use_sliding_window: Option<bool>,
}

#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    /// Older spelling of `rope_type`; files may have both.
    #[serde(rename = "type")]
    kind: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
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
    let quantization = Quantization::from_config(&root).map_err(fail)?;
    let (section, value) = match (arch.text_config, envelope.text_config) {
        (true, Some(text)) => ("text_config.", text),
        (true, None) => return Err(fail(format!("`text_config` is missing ({})", arch.model_type))),
        (false, _) => ("", root),
    };
    let text: Text = from_value(value, section).map_err(fail)?;
    let mut config =
        Builder { arch, section, text: &text }.build(envelope.tie_word_embeddings).map_err(fail)?;
    config.eos_token_ids = envelope.eos_token_id.or(text.eos_token_id).map_or_else(Vec::new, Ids::into_vec);
    Ok((config, arch, quantization))
}

fn from_value<T: serde::de::DeserializeOwned>(value: Value, section: &str) -> Result<T, String> {
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
}

impl Builder<'_> {
    fn build(&self, top_level_tie: Option<bool>) -> Result<ModelConfig, String> {
        let t = self.text;
        self.refuse_variants()?;
        let hidden_size = self.size("hidden_size", t.hidden_size, MAX_HIDDEN)?;
        let vocab_size = self.size("vocab_size", t.vocab_size, MAX_VOCAB)?;
        let layer_count = self.size("num_hidden_layers", t.num_hidden_layers, MAX_LAYERS)?;
        let num_heads = self.size("num_attention_heads", t.num_attention_heads, MAX_HEADS)?;
        let num_kv_heads = self.size("num_key_value_heads", t.num_key_value_heads, MAX_HEADS)?;
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
        let (moe, moe_layers) = self.moe(layer_count)?;
        let intermediate_size = if moe_layers.iter().all(|&m| m) {
            0
        } else {
            self.size("intermediate_size", t.intermediate_size, MAX_HIDDEN)?
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
            rope: self.rope(head_dim)?,
            layers,
            moe_layers,
            moe,
            gdn,
            tie_word_embeddings: top_level_tie.or(t.tie_word_embeddings).unwrap_or(false),
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

    /// Settings that would change the computation in a way that no supported family has.
    fn refuse_variants(&self) -> Result<(), String> {
        let t = self.text;
        let refuse = |field: &str, value: &str| {
            Err(format!("`{}{field}`: {value} is not supported for {}", self.section, self.arch.model_type))
        };
        match t.hidden_act.as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => return refuse("hidden_act", other),
        }
        if t.attention_bias == Some(true) {
            return refuse("attention_bias", "true");
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
        Ok(RopeConfig { theta, rotary_dim })
    }

    fn layers(&self, count: usize) -> Result<Vec<LayerKind>, String> {
        let t = self.text;
        let Some(default_interval) = self.arch.full_attention_interval else {
            return Ok(vec![LayerKind::FullAttention; count]);
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
                .map(|(i, kind)| match kind.as_str() {
                    "full_attention" => Ok(LayerKind::FullAttention),
                    "linear_attention" => Ok(LayerKind::LinearAttention),
                    other => Err(format!("`{}layer_types[{i}]`: unknown kind `{other}`", self.section)),
                })
                .collect();
        }
        let interval = t.full_attention_interval.or(Some(default_interval as u64));
        let interval = self.size("full_attention_interval", interval, MAX_LAYERS)?;
        Ok((1..=count)
            .map(|n| if n % interval == 0 { LayerKind::FullAttention } else { LayerKind::LinearAttention })
            .collect())
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
        let experts = t.num_experts.ok_or_else(|| format!("`{}num_experts` is missing", self.section))?;
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
            };
            return Ok((none, moe_layers));
        }
        let num_experts = self.size("num_experts", Some(experts), MAX_EXPERTS)?;
        let top_k = self.size("num_experts_per_tok", t.num_experts_per_tok, MAX_EXPERTS)?;
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
            intermediate_size: self.size("moe_intermediate_size", t.moe_intermediate_size, MAX_HIDDEN)?,
            shared_intermediate_size,
            norm_topk_prob,
        };
        Ok((moe, moe_layers))
    }
}
