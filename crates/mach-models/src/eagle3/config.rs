//! `config.json` of an EAGLE-3 head.

use std::path::Path;

use mach_checkpoint::ModelConfig;
use serde::Deserialize;
use serde_json::Value;

use crate::DraftError;
use crate::device::{AttentionSpec, Mask, RopeKind, RopeSpec};

/// The architecture that published heads name, with or without a size.
const ARCHITECTURE: &str = "LlamaForCausalLMEagle3";

/// What a head's `config.json` says, defaults resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct EagleConfig {
    /// Width of the head's residual stream.
    pub hidden_size: usize,
    /// Width of a feature: that of the target's residual stream.
    pub target_hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the dense network.
    pub intermediate_size: usize,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Rotary embedding.
    pub rope: RopeSpec,
    /// Tokens of the target.
    pub vocab_size: usize,
    /// Tokens that the head can say.
    pub draft_vocab_size: usize,
    /// Layers of the target whose outputs it takes, in this order; `None` for the usual three.
    pub target_layer_ids: Option<Vec<usize>>,
    /// Whether the layer adds to its features behind their norm.
    pub norm_before_residual: bool,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    architectures: Vec<String>,
    hidden_size: usize,
    target_hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    vocab_size: usize,
    draft_vocab_size: Option<usize>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    fc_norm: Option<bool>,
    norm_output: Option<bool>,
    norm_before_residual: Option<bool>,
    eagle_aux_hidden_state_layer_ids: Option<Vec<usize>>,
    eagle_config: Option<RawEagle>,
}

#[derive(Deserialize)]
struct RawEagle {
    eagle_aux_hidden_state_layer_ids: Option<Vec<usize>>,
    norm_before_residual: Option<bool>,
}

/// Largest size that is believed.
const MOST: usize = 1 << 22;

/// Whether a directory's `config.json` names an EAGLE-3 head.
pub fn is_head(dir: &Path) -> bool {
    let bytes = std::fs::read(dir.join("config.json")).unwrap_or_default();
    let json: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let names = json.get("architectures").and_then(Value::as_array);
    names.is_some_and(|names| names.iter().filter_map(Value::as_str).any(|name| name.contains("Eagle3")))
}

impl EagleConfig {
    /// Reads and checks it. `file` is named in errors.
    pub fn parse(file: &Path, json: &Value) -> Result<Self, DraftError> {
        let fail = |reason: String| DraftError::Config { file: file.to_owned(), reason };
        let raw: Raw = serde_path_to_error::deserialize(json).map_err(|e| {
            let path = e.path().to_string();
            fail(format!("`{path}`: {}", e.into_inner()))
        })?;
        raw.resolve().map_err(fail)
    }

    /// The layers whose outputs it takes, of a target with so many: by default one near the beginning, one in the middle, one
    /// near the end.
    pub fn taps(&self, layers: usize) -> Vec<usize> {
        let usual = || vec![1, (layers / 2).saturating_sub(1), layers.saturating_sub(4)];
        self.target_layer_ids.clone().unwrap_or_else(usual)
    }

    /// Whether it was made for a target of this shape.
    pub fn fits(&self, target: &ModelConfig) -> Result<(), DraftError> {
        let layers = target.layers.len();
        let mismatch = |what: &str, head: usize, target: usize| {
            Err(DraftError::Mismatch(format!("{what} is {head} in the head, {target} in the model")))
        };
        if self.target_hidden_size != target.hidden_size {
            return mismatch("hidden_size", self.target_hidden_size, target.hidden_size);
        }
        if self.vocab_size != target.vocab_size {
            return mismatch("vocab_size", self.vocab_size, target.vocab_size);
        }
        match self.taps(layers).into_iter().find(|&id| id >= layers) {
            Some(id) => Err(DraftError::Mismatch(format!("it taps layer {id}, but the model has {layers}"))),
            None => Ok(()),
        }
    }

    pub(super) fn attention(&self) -> AttentionSpec {
        AttentionSpec {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rope: self.rope,
            mask: Mask::CAUSAL,
            gated: false,
            qk_norm: None,
            v_norm: None,
            scale: None,
            softcap: None,
            sinks: false,
            bias: false,
            k_as_v: false,
            plain_cache: true,
        }
    }
}

impl Raw {
    fn resolve(self) -> Result<EagleConfig, String> {
        if !self.architectures.iter().any(|name| name.starts_with(ARCHITECTURE)) {
            return Err(format!("`architectures`: {:?}; known: {ARCHITECTURE}", self.architectures));
        }
        for (name, said) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
            ("fc_norm", self.fc_norm),
            ("norm_output", self.norm_output),
        ] {
            if said == Some(true) {
                return Err(format!("`{name}`: not supported"));
            }
        }
        if let Some(act) = self.hidden_act.as_deref().filter(|&act| act != "silu") {
            return Err(format!("`hidden_act`: `{act}` is not supported"));
        }
        if let Some(layers) = self.num_hidden_layers.filter(|&layers| layers != 1) {
            return Err(format!("`num_hidden_layers`: {layers}; a head has one"));
        }
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        let head_dim = self.head_dim.or(self.hidden_size.checked_div(heads)).unwrap_or(0);
        let draft_vocab_size = self.draft_vocab_size.unwrap_or(self.vocab_size);
        for (name, value, most) in [
            ("hidden_size", self.hidden_size, MOST),
            ("num_attention_heads", heads, 1 << 12),
            ("num_key_value_heads", kv_heads, 1 << 12),
            ("head_dim", head_dim, 1 << 12),
            ("intermediate_size", self.intermediate_size, MOST),
            ("vocab_size", self.vocab_size, MOST),
            ("draft_vocab_size", draft_vocab_size, self.vocab_size),
        ] {
            if value == 0 || value > most {
                return Err(format!("`{name}`: {value} is not in 1..={most}"));
            }
        }
        if !head_dim.is_multiple_of(16) || !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "{heads} heads, {kv_heads} key/value heads of width {head_dim} are not supported"
            ));
        }
        let theta = self.rope_theta.unwrap_or(10_000.0);
        if !(theta.is_finite() && theta > 0.0) {
            return Err(format!("`rope_theta`: {theta}"));
        }
        let nested = self.eagle_config.as_ref();
        let ids = nested.and_then(|e| e.eagle_aux_hidden_state_layer_ids.clone());
        let ids = ids.or(self.eagle_aux_hidden_state_layer_ids).filter(|ids| !ids.is_empty());
        if let Some(ids) = ids.as_ref().filter(|ids| ids.len() != 3) {
            return Err(format!("`eagle_aux_hidden_state_layer_ids`: {} layers; a head takes 3", ids.len()));
        }
        let before = nested.and_then(|e| e.norm_before_residual).or(self.norm_before_residual);
        Ok(EagleConfig {
            hidden_size: self.hidden_size,
            target_hidden_size: self.target_hidden_size.unwrap_or(self.hidden_size),
            heads,
            kv_heads,
            head_dim,
            intermediate_size: self.intermediate_size,
            eps: self.rms_norm_eps.unwrap_or(1e-6),
            rope: RopeSpec { theta, rotary_dim: head_dim, kind: rope_kind(self.rope_scaling.as_ref())? },
            vocab_size: self.vocab_size,
            draft_vocab_size,
            target_layer_ids: ids,
            norm_before_residual: before.unwrap_or(false),
        })
    }
}

/// Plain rotation, or that of Llama 3.1.
fn rope_kind(scaling: Option<&Value>) -> Result<RopeKind, String> {
    let Some(scaling) = scaling.filter(|scaling| !scaling.is_null()) else { return Ok(RopeKind::Half) };
    let word = |key: &str| scaling.get(key).and_then(Value::as_str);
    let number = |key: &str| {
        let value = scaling.get(key).and_then(Value::as_f64).filter(|v| v.is_finite() && *v > 0.0);
        value.ok_or_else(|| format!("`rope_scaling.{key}`: not a positive number"))
    };
    match word("rope_type").or(word("type")).unwrap_or("default") {
        "default" => Ok(RopeKind::Half),
        "llama3" => Ok(RopeKind::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original: number("original_max_position_embeddings")? as usize,
        }),
        other => Err(format!("`rope_scaling`: `{other}` is not supported; known: default, llama3")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base() -> Value {
        json!({
            "architectures": ["LlamaForCausalLMEagle3"], "hidden_size": 64, "num_attention_heads": 4,
            "intermediate_size": 96, "vocab_size": 256, "draft_vocab_size": 96, "rope_theta": 10000.0,
        })
    }

    fn parse(json: &Value) -> Result<EagleConfig, String> {
        EagleConfig::parse(Path::new("config.json"), json).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults() {
        let c = parse(&base()).unwrap();
        assert_eq!((c.kv_heads, c.head_dim, c.target_hidden_size), (4, 16, 64));
        assert_eq!((c.taps(43), c.norm_before_residual), (vec![1, 20, 39], false));
        let mut json = base();
        json["eagle_config"] =
            json!({"eagle_aux_hidden_state_layer_ids": [0, 2, 5], "norm_before_residual": true});
        let c = parse(&json).unwrap();
        assert_eq!((c.taps(6), c.norm_before_residual), (vec![0, 2, 5], true));
    }

    #[test]
    fn bad_files_are_named() {
        for (path, value, word) in [
            ("architectures", json!(["LlamaForCausalLM"]), "architectures"),
            ("hidden_size", json!("x"), "hidden_size"),
            ("num_hidden_layers", json!(2), "num_hidden_layers"),
            ("draft_vocab_size", json!(257), "draft_vocab_size"),
            ("head_dim", json!(24), "24"),
            ("fc_norm", json!(true), "fc_norm"),
            ("hidden_act", json!("gelu"), "gelu"),
            ("rope_scaling", json!({"rope_type": "yarn", "factor": 4}), "yarn"),
            ("rope_scaling", json!({"rope_type": "llama3"}), "factor"),
            ("eagle_config", json!({"eagle_aux_hidden_state_layer_ids": [1]}), "1 layers"),
        ] {
            let mut json = base();
            json[path] = value;
            let error = parse(&json).unwrap_err();
            assert!(error.contains(word) && error.starts_with("config.json"), "{path}: {error}");
        }
    }
}
