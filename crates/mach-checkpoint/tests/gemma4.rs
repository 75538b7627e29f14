//! What Gemma 4 says of itself, and the siblings that are refused by name.

mod common;

use std::path::Path;

use common::{copy_of, edit_json, fixture};
use mach_checkpoint::{Checkpoint, Family, LayerKind};
use serde_json::{Value, json};

fn with(change: impl FnOnce(&mut Value)) -> Result<Checkpoint, String> {
    let copy = copy_of("gemma4/bf16");
    edit_json(&copy.path().join("config.json"), |c| change(&mut c["text_config"]));
    Checkpoint::open(copy.path()).map_err(|e| e.to_string())
}

#[test]
fn both_forms_open() {
    for (form, prefix) in [("bf16", "model.language_model."), ("mlx-4bit", "language_model.model.")] {
        let checkpoint = Checkpoint::open(&fixture(&format!("gemma4/{form}"))).unwrap();
        let config = checkpoint.config();
        assert_eq!((config.family, config.tensor_prefix.as_str()), (Family::Gemma4, prefix));
        assert_eq!(config.layers[2], LayerKind::FullAttention);
        assert_eq!((config.layers[3], config.sliding_window), (LayerKind::SlidingAttention, Some(16)));
        assert_eq!((config.kv_heads(2), config.kv_heads(3), config.widest_head()), ((1, 64), (2, 32), 64));
        assert_eq!((config.intermediate_size, config.moe.top_k, config.moe.norm_topk_prob), (128, 2, true));
        assert!(config.tie_word_embeddings);
        let own = config.gemma4.as_ref().unwrap();
        assert_eq!(
            (own.k_as_v, own.full_theta, own.full_turning, own.softcap),
            (true, 1e6, 0.25, Some(30.0))
        );
        assert_eq!(config.rope.theta, 1e4);
        assert_eq!(checkpoint.norm_offset(), 0.0);
        for layer in 0..config.layers.len() {
            assert_eq!(checkpoint.experts(layer).unwrap().len(), 8);
        }
    }
}

/// Newer files say the sizes of full layers layer by layer.
#[test]
fn sizes_of_single_layers() {
    let checkpoint = with(|t| {
        t.as_object_mut().unwrap().remove("global_head_dim");
        t.as_object_mut().unwrap().remove("num_global_key_value_heads");
        t["per_layer_config"] = json!({
            "2": {"head_dim": 64, "num_key_value_heads": 1}, "5": {"head_dim": 64, "num_key_value_heads": 1},
        });
    });
    let published = Checkpoint::open(&fixture("gemma4/bf16")).unwrap();
    assert_eq!(checkpoint.unwrap().config(), published.config());
    for (layers, named) in [
        (json!({"6": {}}), "per_layer_config.6"),
        (json!({"2": {"rope_theta": 5}}), "`rope_theta`"),
        (json!({"x": {}}), "per_layer_config.x"),
        (json!({"1": {"num_key_value_heads": 3}}), "layer 1"),
        (json!({"1": {"head_dim": 0}}), "layer 1"),
        (json!({"1": {"head_dim": u64::MAX}}), "layer 1"),
    ] {
        let error = with(|t| t["per_layer_config"] = layers).unwrap_err();
        assert!(error.contains(named) && error.contains("config.json"), "{error}");
    }
}

/// What a file leaves out.
#[test]
fn defaults_are_those_of_the_published_code() {
    let bare = with(|t| {
        let t = t.as_object_mut().unwrap();
        for field in ["global_head_dim", "rope_parameters", "layer_types", "use_double_wide_mlp"] {
            t.remove(field);
        }
    });
    let bare = bare.unwrap();
    let config = bare.config();
    assert_eq!((config.layers[4], config.kv_heads(4)), (LayerKind::SlidingAttention, (2, 32)));
    assert_eq!((config.layers[5], config.kv_heads(5)), (LayerKind::FullAttention, (1, 512)));
    let own = config.gemma4.as_ref().unwrap();
    assert_eq!((config.rope.theta, own.full_theta, own.full_turning), (1e4, 1e6, 0.25));
    // Key/value heads of their own have full layers only without values of their own.
    let values = with(|t| t["attention_k_eq_v"] = json!(false)).unwrap();
    assert_eq!(values.config().kv_heads(2), (2, 64));
}

#[test]
fn siblings_are_refused_by_name() {
    let cases = [
        ("enable_moe_block", json!(false)),
        ("enable_moe_block", json!(null)),
        ("hidden_size_per_layer_input", json!(256)),
        ("num_kv_shared_layers", json!(4)),
        ("use_double_wide_mlp", json!(true)),
        ("hidden_activation", json!("relu")),
        ("use_bidirectional_attention", json!("all")),
        ("final_logit_softcapping", json!(0.0)),
        (
            "rope_parameters",
            json!({"sliding_attention": {"rope_type": "linear"}, "full_attention": {"rope_theta": 1e6}}),
        ),
        (
            "rope_parameters",
            json!({"sliding_attention": {}, "full_attention": {"partial_rotary_factor": 1.5}}),
        ),
        ("sliding_window", json!(null)),
        ("top_k_experts", json!(9)),
        ("attention_bias", json!(true)),
    ];
    for (field, value) in cases {
        let error = with(|t| t[field] = value.clone()).unwrap_err();
        let said = if field == "top_k_experts" { "num_experts_per_tok" } else { field };
        assert!(error.contains(&format!("text_config.{said}")), "{field} {value}: {error}");
        assert!(error.contains("config.json"), "{error}");
    }
    with(|t| t["use_bidirectional_attention"] = json!("vision")).unwrap();
    assert_eq!(
        with(|t| t["final_logit_softcapping"] = json!(null))
            .unwrap()
            .config()
            .gemma4
            .as_ref()
            .unwrap()
            .softcap,
        None
    );
}

#[test]
fn a_file_without_its_tensors_names_them() {
    let path: &Path = &fixture("gemma4/bf16");
    let checkpoint = Checkpoint::open(path).unwrap();
    let error = checkpoint.experts(99).unwrap_err().to_string();
    assert!(error.contains("layers.99.experts"), "{error}");
}
