//! A draft's `config.json`.

use std::path::Path;

use mach_checkpoint::ModelConfig;
use serde::Deserialize;
use serde_json::Value;

use crate::DraftError;
use crate::device::Mask;

/// Bound above any size, small enough that no product of two overflows.
const MAX_SIZE: usize = 1 << 24;
const MAX_LAYERS: usize = 1 << 10;
const MAX_BLOCK: usize = 256;

#[derive(Deserialize)]
struct Raw {
    architectures: Vec<String>,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    intermediate_size: usize,
    rms_norm_eps: f32,
    vocab_size: usize,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    block_size: Option<usize>,
    num_target_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
    sliding_window: Option<usize>,
    is_causal: Option<bool>,
    attention_bias: Option<bool>,
    hidden_act: Option<String>,
    dflash_config: RawDflash,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    rope_theta: Option<f64>,
}

#[derive(Deserialize)]
struct RawDflash {
    mask_token_id: u32,
    target_layer_ids: Option<Vec<usize>>,
    block_size: Option<usize>,
    input_embedding_scale: Option<f32>,
    output_multiplier: Option<f32>,
    final_logit_softcapping: Option<f32>,
    conv_kernel_size: Option<usize>,
    conv_group_size: Option<usize>,
    selector_rank: Option<usize>,
    selector_top_k: Option<usize>,
}

/// What the second generation adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondConfig {
    /// Rows that a convolution reaches over, its own included.
    pub conv_kernel: usize,
    /// Channels that share a dynamic coefficient.
    pub conv_group: usize,
    /// Width of the codebooks.
    pub selector_rank: usize,
    /// Candidates of a row.
    pub selector_top_k: usize,
}

/// A draft's settings, defaults resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct DraftConfig {
    /// Width; the target's.
    pub hidden_size: usize,
    /// One mask a layer.
    pub layers: Vec<Mask>,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Vocabulary; the target's.
    pub vocab_size: usize,
    /// Base of the rotary frequencies.
    pub theta: f64,
    /// Rows of a block: the anchor and the tokens to fill in.
    pub block_size: usize,
    /// Stands for an unknown token.
    pub mask_token_id: u32,
    /// Target layers that feed it, in this order.
    pub target_layer_ids: Vec<usize>,
    /// Layers of the target, if said.
    pub num_target_layers: Option<usize>,
    /// Multiplies the embeddings.
    pub input_embedding_scale: f32,
    /// Multiplies the logits.
    pub output_multiplier: f32,
    /// Caps the logits: `cap * tanh(logit / cap)`.
    pub softcap: Option<f32>,
    /// Second generation.
    pub second: Option<SecondConfig>,
}

impl DraftConfig {
    /// Reads and checks it. `file` is named in errors.
    pub fn parse(file: &Path, json: &Value) -> Result<Self, DraftError> {
        let fail = |reason: String| DraftError::Config { file: file.to_owned(), reason };
        let raw: Raw = serde_path_to_error::deserialize(json).map_err(|e| {
            let path = e.path().to_string();
            fail(format!("`{path}`: {}", e.into_inner()))
        })?;
        raw.resolve().map_err(fail)
    }

    /// Whether it was made for a target of this shape.
    pub fn fits(&self, target: &ModelConfig) -> Result<(), DraftError> {
        let differs = |what: &str, draft: usize, target: usize| {
            Err(DraftError::Mismatch(format!("{what} is {draft} in the draft, {target} in the model")))
        };
        let layers = target.layers.len();
        if self.hidden_size != target.hidden_size {
            return differs("hidden_size", self.hidden_size, target.hidden_size);
        }
        if self.vocab_size != target.vocab_size {
            return differs("vocab_size", self.vocab_size, target.vocab_size);
        }
        if let Some(said) = self.num_target_layers.filter(|&said| said != layers) {
            return differs("the number of target layers", said, layers);
        }
        if let Some(&id) = self.target_layer_ids.iter().find(|&&id| id >= layers) {
            return Err(DraftError::Mismatch(format!("it taps layer {id}, but the model has {layers}")));
        }
        Ok(())
    }
}

impl Raw {
    fn resolve(self) -> Result<DraftConfig, String> {
        let second = match self.architectures.first().map(String::as_str) {
            Some("DFlashDraftModel") => None,
            Some("DFlash2DraftModel") => Some(self.dflash_config.second(self.hidden_size)?),
            _ => return Err(format!("`architectures`: {:?} is no DFlash draft", self.architectures)),
        };
        let heads = self.num_attention_heads;
        let head_dim = self.head_dim.or(self.hidden_size.checked_div(heads)).unwrap_or(0);
        for (name, value, most) in [
            ("hidden_size", self.hidden_size, MAX_SIZE),
            ("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS),
            ("num_attention_heads", heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
            ("head_dim", head_dim, 1 << 12),
            ("intermediate_size", self.intermediate_size, MAX_SIZE),
            ("vocab_size", self.vocab_size, MAX_SIZE),
        ] {
            if value == 0 || value > most {
                return Err(format!("`{name}`: {value} is not in 1..={most}"));
            }
        }
        if !head_dim.is_multiple_of(16) || !heads.is_multiple_of(self.num_key_value_heads) {
            let kv = self.num_key_value_heads;
            return Err(format!("{heads} heads, {kv} key/value heads of width {head_dim} are not supported"));
        }
        if self.attention_bias == Some(true) {
            return Err("`attention_bias`: biases are not supported".into());
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|&act| act != "silu") {
            return Err(format!("`hidden_act`: `{act}` is not supported"));
        }
        let theta = self.theta()?;
        let d = &self.dflash_config;
        let block_size = d.block_size.or(self.block_size).unwrap_or(16);
        if !(2..=MAX_BLOCK).contains(&block_size) {
            return Err(format!("`block_size`: {block_size} is not in 2..={MAX_BLOCK}"));
        }
        if d.mask_token_id as usize >= self.vocab_size {
            return Err(format!("`mask_token_id`: {} is outside the vocabulary", d.mask_token_id));
        }
        let scales = [d.input_embedding_scale, d.output_multiplier, d.final_logit_softcapping];
        if scales.iter().flatten().any(|s| !s.is_finite()) || d.final_logit_softcapping == Some(0.0) {
            return Err("`dflash_config`: a scale is not finite, or the softcap is 0".into());
        }
        Ok(DraftConfig {
            hidden_size: self.hidden_size,
            layers: self.masks()?,
            heads,
            kv_heads: self.num_key_value_heads,
            head_dim,
            intermediate_size: self.intermediate_size,
            eps: self.rms_norm_eps,
            vocab_size: self.vocab_size,
            theta,
            block_size,
            mask_token_id: d.mask_token_id,
            target_layer_ids: self.target_layers()?,
            num_target_layers: self.num_target_layers,
            input_embedding_scale: d.input_embedding_scale.unwrap_or(1.0),
            output_multiplier: d.output_multiplier.unwrap_or(1.0),
            softcap: d.final_logit_softcapping,
            second,
        })
    }

    /// A nested base wins over the one at the top.
    fn theta(&self) -> Result<f64, String> {
        for rope in [&self.rope_parameters, &self.rope_scaling].into_iter().flatten() {
            if let Some(kind) = rope.rope_type.as_deref().or(rope.kind.as_deref()).filter(|&k| k != "default")
            {
                return Err(format!("rotary embedding of type `{kind}` is not supported"));
            }
        }
        let nested = |rope: &Option<RawRope>| rope.as_ref().and_then(|r| r.rope_theta);
        let theta = nested(&self.rope_parameters).or(nested(&self.rope_scaling)).or(self.rope_theta);
        theta.filter(|t| t.is_finite() && *t > 1.0).ok_or_else(|| "`rope_theta` is missing or no base".into())
    }

    fn masks(&self) -> Result<Vec<Mask>, String> {
        let n = self.num_hidden_layers;
        let kinds = self.layer_types.clone().unwrap_or_else(|| vec!["full_attention".into(); n]);
        if kinds.len() != n {
            return Err(format!("`layer_types`: {} entries for {n} layers", kinds.len()));
        }
        let mask = |kind: &String| match kind.as_str() {
            "full_attention" => Ok(Mask { window: None, causal: self.is_causal == Some(true) }),
            // Sliding layers of the first generation are causal inside the block.
            "sliding_attention" => match self.sliding_window.filter(|&w| w > 0) {
                Some(w) => Ok(Mask { window: Some(w), causal: self.is_causal != Some(false) }),
                None => Err("`sliding_window` is missing".to_owned()),
            },
            other => Err(format!("`layer_types`: `{other}` is not known")),
        };
        kinds.iter().map(mask).collect()
    }

    fn target_layers(&self) -> Result<Vec<usize>, String> {
        let ids = match (&self.dflash_config.target_layer_ids, self.num_target_layers) {
            (Some(ids), _) => ids.clone(),
            (None, Some(layers)) if self.num_hidden_layers == 1 => vec![layers / 2],
            (None, Some(layers)) if layers >= 4 => {
                let step = (layers - 4) as f64 / (self.num_hidden_layers - 1) as f64;
                (0..self.num_hidden_layers)
                    .map(|i| (1.0 + i as f64 * step).round_ties_even() as usize)
                    .collect()
            }
            _ => return Err("`dflash_config.target_layer_ids` is missing".into()),
        };
        if ids.is_empty() || ids.len() > MAX_LAYERS {
            return Err(format!("`dflash_config.target_layer_ids`: {} layers", ids.len()));
        }
        Ok(ids)
    }
}

impl RawDflash {
    fn second(&self, hidden: usize) -> Result<SecondConfig, String> {
        let need = |name: &str, value: Option<usize>, most: usize| match value {
            Some(v) if v > 0 && v <= most => Ok(v),
            Some(v) => Err(format!("`dflash_config.{name}`: {v} is not in 1..={most}")),
            None => Err(format!("`dflash_config.{name}` is missing")),
        };
        let second = SecondConfig {
            conv_kernel: need("conv_kernel_size", self.conv_kernel_size, MAX_BLOCK)?,
            conv_group: need("conv_group_size", self.conv_group_size, MAX_SIZE)?,
            selector_rank: need("selector_rank", self.selector_rank, 1 << 16)?,
            selector_top_k: need("selector_top_k", self.selector_top_k, 1 << 12)?,
        };
        if !hidden.is_multiple_of(second.conv_group) {
            return Err(format!("`dflash_config.conv_group_size`: {hidden} channels are no multiple of it"));
        }
        Ok(second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn base() -> Value {
        json!({
            "architectures": ["DFlashDraftModel"], "hidden_size": 64, "num_hidden_layers": 5,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96,
            "rms_norm_eps": 1e-6, "vocab_size": 320, "rope_theta": 1e4, "num_target_layers": 36,
            "dflash_config": {"mask_token_id": 7},
        })
    }

    fn parse(json: &Value) -> Result<DraftConfig, String> {
        DraftConfig::parse(Path::new("config.json"), json).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults() {
        let c = parse(&base()).unwrap();
        assert_eq!((c.block_size, c.theta, c.target_layer_ids), (16, 1e4, vec![1, 9, 17, 25, 33]));
        assert_eq!(c.layers, vec![Mask { window: None, causal: false }; 5]);
        let mut one = base();
        one["num_hidden_layers"] = json!(1);
        assert_eq!(parse(&one).unwrap().target_layer_ids, [18]);
    }

    #[test]
    fn nested_settings_win() {
        let mut json = base();
        json["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 1e7});
        json["block_size"] = json!(12);
        json["dflash_config"]["block_size"] = json!(8);
        let c = parse(&json).unwrap();
        assert_eq!((c.theta, c.block_size), (1e7, 8));
    }

    #[test]
    fn masks() {
        let mut json = base();
        json["layer_types"] = json!([
            "sliding_attention",
            "full_attention",
            "full_attention",
            "full_attention",
            "full_attention"
        ]);
        json["sliding_window"] = json!(4);
        let first = |json: &Value| parse(json).unwrap().layers[..2].to_vec();
        assert_eq!(first(&json).iter().map(|m| m.range(10, 13)).collect::<Vec<_>>(), [(7, 11), (0, 13)]);
        json["is_causal"] = json!(false);
        assert_eq!(first(&json).iter().map(|m| m.range(10, 13)).collect::<Vec<_>>(), [(7, 13), (0, 13)]);
        assert_eq!(first(&json)[0].range(10, 20), (7, 14));
        json["is_causal"] = json!(true);
        assert_eq!(first(&json).iter().map(|m| m.range(10, 13)).collect::<Vec<_>>(), [(7, 11), (0, 11)]);
        json["sliding_window"] = json!(null);
        assert!(parse(&json).unwrap_err().contains("sliding_window"));
    }

    #[test]
    fn bad_files_are_named() {
        for (path, value, word) in [
            ("architectures", json!(["Qwen3ForCausalLM"]), "architectures"),
            ("architectures", json!(["DFlash2DraftModel"]), "conv_kernel_size"),
            ("hidden_size", json!(-1), "hidden_size"),
            ("head_dim", json!(24), "24"),
            ("num_key_value_heads", json!(0), "num_key_value_heads"),
            ("rope_theta", json!(null), "rope_theta"),
            ("rope_scaling", json!({"type": "yarn"}), "yarn"),
            ("block_size", json!(1), "block_size"),
            ("layer_types", json!(["full_attention"]), "layer_types"),
            ("dflash_config", json!({"mask_token_id": 320}), "mask_token_id"),
            ("dflash_config", json!({"mask_token_id": 1, "target_layer_ids": []}), "target_layer_ids"),
            ("dflash_config", json!({"mask_token_id": 1, "final_logit_softcapping": 0}), "softcap"),
        ] {
            let mut json = base();
            json[path] = value;
            let error = parse(&json).unwrap_err();
            assert!(error.contains(word) && error.starts_with("config.json"), "{path}: {error}");
        }
    }
}
