//! What Gemma 4 says of itself beside the settings that all families have.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::LayerKind;
use super::parse::{MAX_HEAD_DIM, MAX_HEADS, from_value};

/// Settings of Gemma 4.
#[derive(Debug, Clone, PartialEq)]
pub struct Gemma4Config {
    /// Key/value heads and width of a head, one entry a layer.
    pub heads: Vec<(usize, usize)>,
    /// Whether the values of full attention layers are their keys, before norm and rotation.
    pub k_as_v: bool,
    /// Base of the rotary frequencies of full attention layers.
    pub full_theta: f64,
    /// Share of the frequencies of full attention layers that turn; the others are zero.
    pub full_turning: f64,
    /// Caps logits: `cap * tanh(logit / cap)`.
    pub softcap: Option<f32>,
}

/// Width of a head of full layers where the file says nothing.
const GLOBAL_HEAD_DIM: u64 = 512;
/// Share of the frequencies of full layers that turn where the file says nothing of rotation.
const TURNING: f64 = 0.25;

/// As written. Absent and null are the same.
#[derive(Deserialize)]
struct Text {
    global_head_dim: Option<u64>,
    num_global_key_value_heads: Option<u64>,
    per_layer_config: Option<BTreeMap<String, PerLayer>>,
    attention_k_eq_v: Option<bool>,
    enable_moe_block: Option<bool>,
    final_logit_softcapping: Option<f64>,
    hidden_activation: Option<String>,
    hidden_size_per_layer_input: Option<u64>,
    num_kv_shared_layers: Option<u64>,
    use_double_wide_mlp: Option<bool>,
    use_bidirectional_attention: Option<Value>,
    rope_parameters: Option<Ropes>,
}

/// Anything else that a layer may say of itself would be another computation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PerLayer {
    head_dim: Option<u64>,
    num_key_value_heads: Option<u64>,
}

#[derive(Default, Deserialize)]
struct Ropes {
    sliding_attention: Option<Rope>,
    full_attention: Option<Rope>,
}

#[derive(Deserialize)]
struct Rope {
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

/// What a layer has if nothing is said of it.
pub(super) struct Common<'a> {
    pub(super) layers: &'a [LayerKind],
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

/// Reads the settings of `text_config`, and the base of the rotary frequencies of sliding layers.
pub(super) fn parse(text: Value, section: &str, common: &Common<'_>) -> Result<(Gemma4Config, f64), String> {
    let t: Text = from_value(text, section)?;
    t.refuse_siblings(section)?;
    let k_as_v = t.attention_k_eq_v.unwrap_or(false);
    let (kv_heads, head_dim) = (common.kv_heads as u64, common.head_dim as u64);
    // Where sizes are said layer by layer, nothing else is said of full layers.
    let full = match t.per_layer_config {
        Some(_) => (kv_heads, head_dim),
        None => {
            let own = t.num_global_key_value_heads.filter(|_| k_as_v);
            (own.unwrap_or(kv_heads), t.global_head_dim.unwrap_or(GLOBAL_HEAD_DIM))
        }
    };
    let of = |&kind| if kind == LayerKind::FullAttention { full } else { (kv_heads, head_dim) };
    let mut heads: Vec<(u64, u64)> = common.layers.iter().map(of).collect();
    for (layer, own) in t.per_layer_config.iter().flatten() {
        let slot = layer.parse().ok().and_then(|n: usize| heads.get_mut(n)).ok_or_else(|| {
            format!("`{section}per_layer_config.{layer}` is not one of {} layers", common.layers.len())
        })?;
        *slot = (own.num_key_value_heads.unwrap_or(slot.0), own.head_dim.unwrap_or(slot.1));
    }
    let heads = heads.into_iter().enumerate().map(|(layer, (kv_heads, head_dim))| {
        let fits = (1..=MAX_HEADS).contains(&kv_heads)
            && (1..=MAX_HEAD_DIM).contains(&head_dim)
            && (common.heads as u64).is_multiple_of(kv_heads)
            && head_dim.is_multiple_of(2);
        if fits {
            return Ok((kv_heads as usize, head_dim as usize));
        }
        Err(format!(
            "`{section}num_global_key_value_heads`, `{section}global_head_dim` or `{section}per_layer_config`: layer {layer} has {kv_heads} key/value heads of {head_dim} values for {} query heads",
            common.heads
        ))
    });
    let heads = heads.collect::<Result<_, _>>()?;
    let (sliding, full) = t.rope_parameters.map_or((None, None), |r| (r.sliding_attention, r.full_attention));
    let (sliding_theta, _) =
        rope(sliding, &format!("{section}rope_parameters.sliding_attention"), "default", 1e4)?;
    let (full_theta, full_turning) =
        rope(full, &format!("{section}rope_parameters.full_attention"), "proportional", 1e6)?;
    let softcap = match t.final_logit_softcapping {
        None => None,
        Some(cap) if cap > 0.0 && cap <= 1e6 => Some(cap as f32),
        Some(cap) => {
            return Err(format!(
                "`{section}final_logit_softcapping` is {cap}; it must be above 0 and at most 1000000"
            ));
        }
    };
    Ok((Gemma4Config { heads, k_as_v, full_theta, full_turning, softcap }, sliding_theta))
}

/// Base of the frequencies, and the share of them that turn.
fn rope(rope: Option<Rope>, field: &str, kind: &str, theta: f64) -> Result<(f64, f64), String> {
    let share = if kind == "default" { 1.0 } else { TURNING };
    let Some(rope) = rope else { return Ok((theta, share)) };
    if let Some(other) = rope.rope_type.filter(|given| given != kind) {
        return Err(format!("`{field}.rope_type`: {other} is not supported for gemma4; {kind} is"));
    }
    let (theta, share) = (rope.rope_theta.unwrap_or(theta), rope.partial_rotary_factor.unwrap_or(1.0));
    if !(theta > 0.0 && theta <= 1e15) {
        return Err(format!("`{field}.rope_theta` is {theta}; it must be above 0 and at most 1e15"));
    }
    if !(share > 0.0 && share <= 1.0) || (kind == "default" && share != 1.0) {
        return Err(format!("`{field}.partial_rotary_factor`: {share} is not supported"));
    }
    Ok((theta, share))
}

impl Text {
    /// Refuses the siblings of 26B-A4B that compute something else.
    fn refuse_siblings(&self, section: &str) -> Result<(), String> {
        let refuse = |field: &str, value: &dyn std::fmt::Display| {
            Err(format!("`{section}{field}`: {value} is not supported for gemma4"))
        };
        if self.enable_moe_block != Some(true) {
            return refuse("enable_moe_block", &"a model without experts (this must be true)");
        }
        if let Some(width) = self.hidden_size_per_layer_input.filter(|&n| n > 0) {
            return refuse("hidden_size_per_layer_input", &width);
        }
        if let Some(layers) = self.num_kv_shared_layers.filter(|&n| n > 0) {
            return refuse("num_kv_shared_layers", &layers);
        }
        if self.use_double_wide_mlp == Some(true) {
            return refuse("use_double_wide_mlp", &true);
        }
        match self.hidden_activation.as_deref() {
            None | Some("gelu_pytorch_tanh") => {}
            Some(other) => return refuse("hidden_activation", &other),
        }
        match &self.use_bidirectional_attention {
            // `vision` concerns tokens of pictures only.
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(Value::String(which)) if which == "vision" => Ok(()),
            Some(other) => refuse("use_bidirectional_attention", other),
        }
    }
}
