//! Shapes of named models, and their `config.json`.

use serde_json::{Map, Value, json};

use crate::Family;

/// Sizes of a model.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Name for the command line.
    pub name: &'static str,
    /// Family.
    pub family: Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Layers of the real model.
    pub layers: usize,
    /// Vocabulary rows.
    pub vocab: usize,
    /// Query heads, key/value heads, width of a head.
    pub attention: (usize, usize, usize),
    /// Experts, experts per token, width of an expert.
    pub experts: (usize, usize, usize),
    /// Width of the shared expert, 0 if there is none.
    pub shared: usize,
    /// Gated DeltaNet key heads, value heads and width of both; zeros if there is none.
    pub gdn: (usize, usize, usize),
    /// Every so many layers one is full attention.
    pub interval: usize,
    /// Base of the rotary frequencies.
    pub theta: f64,
    /// Longest context.
    pub positions: usize,
}

/// Taps of the causal convolution.
pub(super) const TAPS: usize = 4;

/// The known shapes.
pub const SHAPES: &[Shape] = &[
    Shape {
        name: "qwen3.6-35b-a3b",
        family: Family::Qwen3_5Moe,
        hidden: 2048,
        layers: 40,
        vocab: 248_320,
        attention: (16, 2, 256),
        experts: (256, 8, 512),
        shared: 512,
        gdn: (16, 32, 128),
        interval: 4,
        theta: 1e7,
        positions: 262_144,
    },
    Shape {
        name: "qwen3-30b-a3b",
        family: Family::Qwen3Moe,
        hidden: 2048,
        layers: 48,
        vocab: 151_936,
        attention: (32, 4, 128),
        experts: (128, 8, 768),
        shared: 0,
        gdn: (0, 0, 0),
        interval: 1,
        theta: 1e6,
        positions: 40_960,
    },
    Shape {
        name: "tiny-qwen3_5_moe",
        family: Family::Qwen3_5Moe,
        hidden: 256,
        layers: 4,
        vocab: 16_512,
        attention: (4, 2, 64),
        experts: (32, 4, 64),
        shared: 64,
        gdn: (2, 4, 64),
        interval: 4,
        theta: 1e7,
        positions: 4096,
    },
    Shape {
        name: "tiny-qwen3_moe",
        family: Family::Qwen3Moe,
        hidden: 256,
        layers: 3,
        vocab: 16_512,
        attention: (8, 2, 64),
        experts: (32, 4, 128),
        shared: 0,
        gdn: (0, 0, 0),
        interval: 1,
        theta: 1e6,
        positions: 4096,
    },
];

impl Shape {
    /// The shape of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SHAPES.iter().find(|s| s.name == name)
    }

    /// Whether layer `layer` is full attention.
    pub(super) fn is_full(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.interval)
    }

    /// Prefix of the text model's tensors, in MLX's naming.
    pub(super) fn prefix(&self) -> &'static str {
        match self.family {
            Family::Qwen3_5Moe => "language_model.model.",
            Family::Qwen3Moe => "model.",
        }
    }

    /// Module of the head.
    pub(super) fn head(&self) -> &'static str {
        match self.family {
            Family::Qwen3_5Moe => "language_model.lm_head",
            Family::Qwen3Moe => "lm_head",
        }
    }

    /// `config.json` for the first `layers` layers.
    pub(super) fn config(&self, layers: usize) -> Value {
        let mut quantization = Map::new();
        quantization.insert("group_size".into(), json!(64));
        quantization.insert("bits".into(), json!(4));
        quantization.insert("mode".into(), json!("affine"));
        for layer in 0..layers {
            let eight = json!({"group_size": 64, "bits": 8});
            let mlp = format!("{}layers.{layer}.mlp", self.prefix());
            quantization.insert(format!("{mlp}.gate"), eight.clone());
            if self.shared > 0 {
                quantization.insert(format!("{mlp}.shared_expert_gate"), eight);
            }
        }
        let (heads, kv_heads, head_dim) = self.attention;
        let (experts, top_k, width) = self.experts;
        let mut text = json!({
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
        let mut root = json!({
            "synthetic": true,
            "eos_token_id": [16370, 16368],
            "quantization": quantization,
            "quantization_config": quantization,
            "tie_word_embeddings": false,
        });
        match self.family {
            Family::Qwen3_5Moe => {
                let (key_heads, value_heads, dim) = self.gdn;
                let kinds: Vec<&str> = (0..layers)
                    .map(|n| if self.is_full(n) { "full_attention" } else { "linear_attention" })
                    .collect();
                extend(
                    &mut text,
                    json!({
                        "attn_output_gate": true,
                        "full_attention_interval": self.interval,
                        "layer_types": kinds,
                        "linear_conv_kernel_dim": TAPS,
                        "linear_key_head_dim": dim,
                        "linear_num_key_heads": key_heads,
                        "linear_num_value_heads": value_heads,
                        "linear_value_head_dim": dim,
                        "model_type": "qwen3_5_moe_text",
                        "rope_parameters": {
                            "rope_type": "default", "rope_theta": self.theta, "partial_rotary_factor": 0.25,
                        },
                        "shared_expert_intermediate_size": self.shared,
                    }),
                );
                extend(
                    &mut root,
                    json!({
                        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
                        "model_type": "qwen3_5_moe",
                        "text_config": text,
                    }),
                );
            }
            Family::Qwen3Moe => {
                extend(&mut root, text);
                extend(
                    &mut root,
                    json!({
                        "architectures": ["Qwen3MoeForCausalLM"],
                        "decoder_sparse_step": 1,
                        "intermediate_size": 3 * self.hidden,
                        "model_type": "qwen3_moe",
                        "rope_scaling": null,
                        "rope_theta": self.theta,
                    }),
                );
            }
        }
        root
    }
}

fn extend(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
