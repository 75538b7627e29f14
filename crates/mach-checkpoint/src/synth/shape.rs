//! Shapes of named models, and their `config.json`.

use serde_json::{Map, Value, json};

use crate::Family;
use crate::families::{FAMILIES, Synthetic};

/// Sizes of a model.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Name for the command line.
    pub name: &'static str,
    /// The family whose form is written.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Layers of the real model.
    pub layers: usize,
    /// Vocabulary rows.
    pub vocab: usize,
    /// Query heads, key/value heads, width of a head.
    pub attention: (usize, usize, usize),
    /// Key/value heads and width of a head of full attention layers, where they differ; such layers have no values of
    /// their own.
    pub full: Option<(usize, usize)>,
    /// Experts, experts per token, width of an expert.
    pub experts: (usize, usize, usize),
    /// Width of the shared expert, or of the dense network beside the experts; 0 if there is none.
    pub shared: usize,
    /// Gated DeltaNet key heads, value heads and width of both; zeros if there is none.
    pub gdn: (usize, usize, usize),
    /// Every so many layers one is full attention.
    pub interval: usize,
    /// Base of the rotary frequencies.
    pub theta: f64,
    /// Longest context.
    pub positions: usize,
    /// Whether a block for the token after the next is written as well.
    pub mtp: bool,
}

/// Taps of the causal convolution.
pub(crate) const TAPS: usize = 4;

impl Shape {
    /// The shapes of all families, each with how its family's checkpoints are written.
    pub fn all() -> impl Iterator<Item = (&'static Synthetic, &'static Self)> {
        FAMILIES.iter().flat_map(|row| row.synthetic.shapes.iter().map(|shape| (&row.synthetic, shape)))
    }

    /// The shape of this name.
    pub fn named(name: &str) -> Option<(&'static Synthetic, &'static Self)> {
        Self::all().find(|(_, shape)| shape.name == name)
    }

    /// Whether layer `layer` is full attention.
    pub(crate) fn is_full(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.interval)
    }

    /// `config.json` for the first `layers` layers.
    pub(super) fn config(&self, form: &Synthetic, layers: usize) -> Value {
        let mut quantization = Map::new();
        quantization.insert("group_size".into(), json!(64));
        quantization.insert("bits".into(), json!(4));
        quantization.insert("mode".into(), json!("affine"));
        let bases = (0..layers).map(|layer| format!("{}layers.{layer}", form.naming.prefix));
        for base in bases.chain(self.mtp.then(|| "mtp.layers.0".to_owned())) {
            let eight = json!({"group_size": 64, "bits": 8});
            quantization.insert(format!("{base}.{}", form.router), eight.clone());
            for matrix in ["gate_proj", "up_proj", "down_proj"].into_iter().filter(|_| form.mxfp4_experts) {
                let mxfp4 = json!({"group_size": 32, "bits": 4, "mode": "mxfp4"});
                quantization.insert(format!("{base}.{}.{matrix}", form.stack), mxfp4);
            }
            if self.shared > 0 && !form.between_norms {
                quantization.insert(format!("{base}.mlp.shared_expert_gate"), eight);
            }
        }
        let (heads, kv_heads, head_dim) = self.attention;
        let (experts, top_k, width) = self.experts;
        let text = json!({
            "attention_bias": false,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "max_position_embeddings": self.positions,
            "mlp_only_layers": [],
            "moe_intermediate_size": width,
            "norm_topk_prob": true,
            "num_attention_heads": heads,
            "num_experts": experts,
            "num_experts_per_tok": top_k,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": false,
            "vocab_size": self.vocab,
        });
        let root = json!({
            "synthetic": true,
            "eos_token_id": [16370, 16368],
            "quantization": quantization,
            "quantization_config": quantization,
            "tie_word_embeddings": false,
        });
        (form.config)(self, layers, text, root)
    }
}

/// Puts the fields of `from` into `into`.
pub(crate) fn extend(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
