//! Families without experts.

mod common;

use common::{copy_of, edit_json, fixture};
use mach_checkpoint::{Checkpoint, Family, KvCacheKind, LayerKind};
use serde_json::{Value, json};

fn with(family: &str, change: impl FnOnce(&mut Value)) -> Result<Checkpoint, String> {
    let copy = copy_of(&format!("{family}/bf16"));
    edit_json(&copy.path().join("config.json"), change);
    Checkpoint::open(copy.path()).map_err(|e| e.to_string())
}

#[test]
fn every_form_opens_without_experts() {
    let families = [
        ("qwen3", Family::Qwen3, 0.0, true),
        ("qwen3_5", Family::Qwen3_5, 1.0, false),
        ("llama", Family::Llama, 0.0, false),
        ("mistral", Family::Mistral, 0.0, false),
        ("gemma", Family::Gemma, 1.0, true),
        ("gemma3_text", Family::Gemma3Text, 1.0, true),
    ];
    for (name, family, offset, tied) in families {
        for form in ["bf16", "mlx-4bit"] {
            let checkpoint = Checkpoint::open(&fixture(&format!("{name}/{form}"))).unwrap();
            let config = checkpoint.config();
            assert_eq!((config.family, config.model_type.as_str()), (family, name));
            assert_eq!((config.moe.num_experts, config.intermediate_size), (0, 64), "{name}");
            assert!(config.moe_layers.iter().all(|moe| !moe) && config.moe_layers.len() == 2);
            assert_eq!(config.tie_word_embeddings, tied, "{name}");
            // MLX stores one plus the weight in the family that has a convolution to tell the forms by.
            let expected = if (name, form) == ("qwen3_5", "mlx-4bit") { 0.0 } else { offset };
            assert_eq!(checkpoint.norm_offset(), expected, "{name} {form}");
            let card = checkpoint.family().card();
            assert!(!card.stacked_supported);
            assert_eq!(card.kv_cache_kind == KvCacheKind::HybridGdn, name == "qwen3_5");
        }
    }
}

#[test]
fn windows_of_mistral() {
    let window = |change: fn(&mut Value)| {
        let checkpoint = with("mistral", change).unwrap();
        (checkpoint.config().layers.clone(), checkpoint.config().sliding_window)
    };
    let (full, sliding) = (LayerKind::FullAttention, LayerKind::SlidingAttention);
    assert_eq!(window(|_| ()), (vec![sliding; 2], Some(16)));
    assert_eq!(window(|c| c["sliding_window"] = json!(null)), (vec![full; 2], None));
    assert_eq!(
        window(|c| c["layer_types"] = json!(["full_attention", "sliding_attention"])),
        (vec![full, sliding], Some(16))
    );
}

#[test]
fn what_they_leave_out() {
    let heads = with("llama", |c| {
        c.as_object_mut().unwrap().remove("num_key_value_heads");
    });
    assert_eq!(heads.unwrap().config().num_kv_heads, 2);
    let tied = with("gemma", |c| {
        c.as_object_mut().unwrap().remove("tie_word_embeddings");
        c["hidden_act"] = json!("gelu");
    });
    assert!(tied.unwrap().config().tie_word_embeddings);
    let llama3 = Checkpoint::open(&fixture("llama/bf16")).unwrap().config().rope.llama3.unwrap();
    assert_eq!((llama3.factor, llama3.low, llama3.high, llama3.original), (8.0, 1.0, 4.0, 64));
}

#[test]
fn what_they_cannot_say() {
    let rope = |fields: Value| {
        let mut rope = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64});
        rope.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        rope
    };
    let cases = [
        ("llama", "num_experts", json!(4), "num_experts"),
        ("llama", "attention_bias", json!(true), "attention_bias"),
        ("llama", "mlp_bias", json!(true), "mlp_bias"),
        ("llama", "hidden_act", json!("gelu"), "hidden_act"),
        ("llama", "rope_scaling", json!({"type": "linear", "factor": 2}), "rope_scaling.rope_type"),
        ("llama", "rope_scaling", rope(json!({"factor": null})), "rope_scaling.factor"),
        ("llama", "rope_scaling", rope(json!({"low_freq_factor": 4.0})), "low_freq_factor"),
        ("llama", "rope_scaling", rope(json!({"original_max_position_embeddings": 0})), "original_max"),
        ("qwen3", "rope_scaling", rope(json!({})), "rope_scaling.rope_type"),
        ("qwen3", "use_sliding_window", json!(true), "use_sliding_window"),
        ("gemma", "hidden_act", json!("silu"), "hidden_act"),
        ("mistral", "sliding_window", json!(0), "sliding_window"),
        ("gemma3_text", "attn_logit_softcapping", json!(50.0), "attn_logit_softcapping"),
        (
            "gemma3_text",
            "rope_scaling",
            json!({"rope_type": "linear", "factor": 8.0}),
            "rope_scaling.rope_type",
        ),
        ("gemma3_text", "query_pre_attn_scalar", json!(0), "query_pre_attn_scalar"),
        ("gemma3_text", "sliding_window_pattern", json!(0), "sliding_window_pattern"),
        ("gemma3_text", "hidden_activation", json!("silu"), "hidden_activation"),
        (
            "gemma3_text",
            "rope_parameters",
            json!({"full_attention": {"rope_type": "linear"}}),
            "rope_parameters.full_attention.rope_type",
        ),
    ];
    for (family, field, value, named) in cases {
        let error = with(family, |c| c[field] = value.clone()).unwrap_err();
        assert!(error.contains(named) && error.contains("config.json"), "{family} {field}: {error}");
    }
}
