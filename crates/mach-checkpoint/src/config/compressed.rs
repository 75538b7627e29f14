//! The settings that only deepseek_v4 has, and the others in the words of all families.

use serde::Deserialize;
use serde_json::{Value, json};

/// Attention over a window and over compressed entries, residual streams, and routing by token.
#[derive(Debug, Clone, PartialEq)]
pub struct CompressedConfig {
    /// Width that queries are projected down to first.
    pub q_rank: usize,
    /// Groups of heads whose outputs are projected by themselves.
    pub out_groups: usize,
    /// Width of a group's projection.
    pub out_rank: usize,
    /// Positions that a query sees one by one, its own included.
    pub window: usize,
    /// Tokens of an entry, layer by layer; 0 where a layer has none.
    pub ratios: Vec<usize>,
    /// Base of the rotary frequencies where a layer has entries; there alone they may be stretched.
    pub theta: f64,
    /// Query heads of the index.
    pub index_heads: usize,
    /// Width of such a head.
    pub index_head_dim: usize,
    /// Entries that a query keeps.
    pub index_top_k: usize,
    /// Residual streams.
    pub streams: usize,
    /// Normalisations of their mixing matrix.
    pub iterations: usize,
    /// Epsilon of their weights.
    pub stream_eps: f32,
    /// Layers, from the first on, whose experts follow from the token.
    pub hash_layers: usize,
    /// Multiplies the weights of routed experts.
    pub routed_scale: f32,
    /// Bounds what experts multiply.
    pub swiglu_limit: Option<f32>,
    /// Blocks that predict further tokens.
    pub mtp_layers: usize,
}

#[derive(Deserialize)]
struct Settings {
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    qk_rope_head_dim: Option<u64>,
    q_lora_rank: Option<u64>,
    o_groups: Option<u64>,
    o_lora_rank: Option<u64>,
    sliding_window: Option<u64>,
    compress_ratios: Option<Vec<u64>>,
    compress_rope_theta: Option<f64>,
    index_n_heads: Option<u64>,
    index_head_dim: Option<u64>,
    index_topk: Option<u64>,
    hc_mult: Option<u64>,
    hc_sinkhorn_iters: Option<u64>,
    hc_eps: Option<f64>,
    num_hash_layers: Option<u64>,
    n_routed_experts: Option<u64>,
    n_shared_experts: Option<u64>,
    moe_intermediate_size: Option<u64>,
    routed_scaling_factor: Option<f64>,
    scoring_func: Option<String>,
    swiglu_limit: Option<f64>,
    num_nextn_predict_layers: Option<u64>,
}

/// Bounds above any model, small enough that no product of two sizes overflows.
const MOST: u64 = 1 << 20;

fn size(field: &str, value: Option<u64>) -> Result<usize, String> {
    match value {
        None => Err(format!("`{field}` is missing")),
        Some(n) if n == 0 || n > MOST => Err(format!("`{field}` is {n}; it must be between 1 and {MOST}")),
        Some(n) => Ok(n as usize),
    }
}

fn positive(field: &str, value: Option<f64>) -> Result<f64, String> {
    match value {
        None => Err(format!("`{field}` is missing")),
        Some(v) if v > 0.0 && v <= 1e15 => Ok(v),
        Some(v) => Err(format!("`{field}` is {v}; it must be above 0 and at most 1e15")),
    }
}

/// Takes the family's own settings out of `config.json`, and says the rest as other families do.
pub(super) fn split(mut root: Value) -> Result<(Value, CompressedConfig), String> {
    if !root.is_object() {
        return Err("the file is not a JSON object".to_owned());
    }
    let settings: Settings = serde_path_to_error::deserialize(&root).map_err(|error| {
        let field = error.path().to_string();
        format!("`{field}`: {}", error.into_inner())
    })?;
    let config = settings.config()?;
    let head_dim = size("head_dim", settings.head_dim)?;
    let rotary = size("qk_rope_head_dim", settings.qk_rope_head_dim)?;
    if rotary > head_dim || !rotary.is_multiple_of(2) {
        return Err(format!(
            "`qk_rope_head_dim` is {rotary}; it must be even and at most `head_dim` ({head_dim})"
        ));
    }
    let experts = size("n_routed_experts", settings.n_routed_experts)?;
    let width = size("moe_intermediate_size", settings.moe_intermediate_size)?;
    let shared = size("n_shared_experts", settings.n_shared_experts.or(Some(1)))?;
    if let Value::Object(fields) = &mut root {
        fields.insert("num_experts".into(), json!(experts));
        fields.insert("shared_expert_intermediate_size".into(), json!(shared * width));
        // Half a pair more, so that rounding down gives just as many.
        let share = ((rotary as f64 + 0.5) / head_dim as f64).min(1.0);
        fields.insert("partial_rotary_factor".into(), json!(share));
        fields.insert("num_key_value_heads".into(), json!(1));
        for ours in ["layer_types", "sliding_window"] {
            fields.remove(ours);
        }
    }
    Ok((root, config))
}

impl Settings {
    fn config(&self) -> Result<CompressedConfig, String> {
        if let Some(other) = self.scoring_func.as_deref().filter(|&f| f != "sqrtsoftplus") {
            return Err(format!("`scoring_func`: {other} is not supported for deepseek_v4"));
        }
        if let Some(other) = self.num_key_value_heads.filter(|&n| n != 1) {
            return Err(format!(
                "`num_key_value_heads`: {other} is not supported for deepseek_v4, which has 1"
            ));
        }
        let heads = size("num_attention_heads", self.num_attention_heads)?;
        let out_groups = size("o_groups", self.o_groups)?;
        if !heads.is_multiple_of(out_groups) {
            return Err(format!(
                "`num_attention_heads` ({heads}) is not a multiple of `o_groups` ({out_groups})"
            ));
        }
        let layers = size("num_hidden_layers", self.num_hidden_layers)?;
        let hash_layers = self.num_hash_layers.unwrap_or(0).min(layers as u64) as usize;
        let limit = self.swiglu_limit.filter(|&limit| limit != 0.0);
        Ok(CompressedConfig {
            q_rank: size("q_lora_rank", self.q_lora_rank)?,
            out_groups,
            out_rank: size("o_lora_rank", self.o_lora_rank)?,
            window: size("sliding_window", self.sliding_window)?,
            ratios: self.ratios(layers)?,
            theta: positive("compress_rope_theta", self.compress_rope_theta)?,
            index_heads: size("index_n_heads", self.index_n_heads)?,
            index_head_dim: size("index_head_dim", self.index_head_dim)?,
            index_top_k: size("index_topk", self.index_topk)?,
            streams: size("hc_mult", self.hc_mult)?,
            iterations: size("hc_sinkhorn_iters", self.hc_sinkhorn_iters)?,
            stream_eps: positive("hc_eps", self.hc_eps.or(Some(1e-6)))? as f32,
            hash_layers,
            routed_scale: positive("routed_scaling_factor", self.routed_scaling_factor.or(Some(1.0)))? as f32,
            swiglu_limit: match limit {
                Some(limit) => Some(positive("swiglu_limit", Some(limit))? as f32),
                None => None,
            },
            mtp_layers: self.num_nextn_predict_layers.unwrap_or(0).min(MOST) as usize,
        })
    }

    /// One entry a layer; those of blocks behind the last layer are left out.
    fn ratios(&self, layers: usize) -> Result<Vec<usize>, String> {
        let Some(all) = &self.compress_ratios else { return Err("`compress_ratios` is missing".to_owned()) };
        let Some(ratios) = all.get(..layers) else {
            return Err(format!(
                "`compress_ratios` has {} entries for {layers} layers (`num_hidden_layers`)",
                all.len()
            ));
        };
        let known = |(i, &ratio): (usize, &u64)| match ratio {
            0 | 4 | 128 => Ok(ratio as usize),
            other => Err(format!("`compress_ratios[{i}]` is {other}; known: 0, 4, 128")),
        };
        ratios.iter().enumerate().map(known).collect()
    }
}
