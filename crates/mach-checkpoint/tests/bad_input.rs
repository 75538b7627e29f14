//! Every way a checkpoint can be wrong is an error that names the file and the tensor or field.

mod common;

use std::path::Path;

use common::{copy_of, demo, edit_json, fixture, read_shard, write_shard};
use mach_checkpoint::{Checkpoint, CheckpointError, LayerKind};
use serde_json::json;

/// The error's text, after checking that it contains every one of `parts`.
fn expect<T: std::fmt::Debug>(result: Result<T, CheckpointError>, parts: &[&str]) {
    let text = result.unwrap_err().to_string();
    for part in parts {
        assert!(text.contains(part), "`{text}` does not mention `{part}`");
    }
}

#[test]
fn settings_that_cannot_be() {
    let cases: &[(&str, serde_json::Value, &str)] = &[
        ("hidden_size", json!(0), "hidden_size"),
        ("hidden_size", json!(-64), "hidden_size"),
        ("hidden_size", json!(1e30), "hidden_size"),
        ("hidden_size", json!(u64::MAX), "hidden_size"),
        ("hidden_size", json!("64"), "hidden_size"),
        ("hidden_size", json!(null), "hidden_size"),
        ("vocab_size", json!(1u64 << 40), "vocab_size"),
        ("num_hidden_layers", json!(1u64 << 33), "num_hidden_layers"),
        ("num_attention_heads", json!(0), "num_attention_heads"),
        ("num_key_value_heads", json!(3), "num_key_value_heads"),
        ("num_experts_per_tok", json!(9), "num_experts_per_tok"),
        ("num_experts_per_tok", json!(0), "num_experts_per_tok"),
        ("linear_num_value_heads", json!(3), "linear_num_value_heads"),
        ("linear_conv_kernel_dim", json!(1000), "linear_conv_kernel_dim"),
        ("layer_types", json!(["full_attention"]), "layer_types"),
        ("layer_types", json!(["full_attention", "x", "", "", ""]), "layer_types[1]"),
        ("layer_types", json!(["sliding_attention", "full_attention", "", "", ""]), "layer_types[0]"),
        ("rms_norm_eps", json!(-1.0), "rms_norm_eps"),
        ("hidden_act", json!("gelu"), "hidden_act"),
        ("attn_output_gate", json!(false), "attn_output_gate"),
        ("attention_bias", json!(true), "attention_bias"),
        ("rope_parameters", json!({"rope_type": "yarn", "factor": 4}), "rope_type"),
        ("swiglu_limit", json!(7.0), "swiglu_limit"),
        ("num_local_experts", json!(9), "num_local_experts"),
        ("experts_per_token", json!(3), "experts_per_token"),
        ("rope_parameters", json!({"partial_rotary_factor": 0.1}), "partial_rotary_factor"),
        ("rope_parameters", json!({"rope_theta": 0}), "rope_theta"),
        ("mlp_only_layers", json!([77]), "mlp_only_layers"),
        ("decoder_sparse_step", json!(0), "decoder_sparse_step"),
        ("shared_expert_intermediate_size", json!(null), "shared_expert_intermediate_size"),
    ];
    for (field, value, named) in cases {
        let copy = copy_of("qwen3_5_moe/bf16");
        edit_json(&copy.path().join("config.json"), |c| c["text_config"][field] = value.clone());
        expect(Checkpoint::open(copy.path()), &["config.json", "text_config.", named]);
    }
}

#[test]
fn settings_of_gpt_oss_that_cannot_be() {
    let yarn = |change: serde_json::Value| {
        let mut rope = json!({
            "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": false,
        });
        for (key, value) in change.as_object().unwrap() {
            rope[key] = value.clone();
        }
        rope
    };
    let cases: &[(&str, serde_json::Value, &str)] = &[
        ("rope_scaling", yarn(json!({"rope_type": "longrope"})), "`rope_scaling.rope_type`: longrope"),
        ("rope_scaling", yarn(json!({"factor": null})), "`rope_scaling.factor` is missing"),
        ("rope_scaling", yarn(json!({"factor": -1})), "`rope_scaling.factor` is -1"),
        (
            "rope_scaling",
            yarn(json!({"original_max_position_embeddings": null})),
            "`rope_scaling.original_max_position_embeddings` is missing",
        ),
        ("rope_scaling", yarn(json!({"beta_fast": 0})), "`rope_scaling.beta_fast`"),
        ("rope_scaling", yarn(json!({"attention_factor": 0})), "`rope_scaling.attention_factor`"),
        ("layer_types", json!(vec!["linear_attention"; 4]), "`layer_types[0]`: `linear_attention` is not"),
        ("layer_types", json!(["full_attention"]), "`layer_types` has 1 entries"),
        (
            "layer_types",
            json!(["full_attention", "full_attention", "chunked", ""]),
            "`layer_types[2]`: unknown",
        ),
        ("sliding_window", json!(null), "`sliding_window` is missing"),
        ("sliding_window", json!(0), "`sliding_window` is 0"),
        ("swiglu_limit", json!(0.0), "`swiglu_limit` is 0"),
        ("swiglu_limit", json!("7"), "`swiglu_limit`"),
        ("experts_per_token", json!(3), "`num_experts_per_tok` is 2, but `experts_per_token` is 3"),
        ("num_local_experts", json!(null), "`num_experts` is missing"),
        ("num_local_experts", json!(1), "more than"),
        ("intermediate_size", json!(null), "`intermediate_size` is missing"),
        ("attention_bias", json!(false), "`attention_bias`: false"),
        ("quantization_config", json!({"quant_method": "gptq"}), "`quantization_config.quant_method`"),
    ];
    for (field, value, named) in cases {
        let copy = copy_of("gpt_oss/mxfp4");
        edit_json(&copy.path().join("config.json"), |c| c[field] = value.clone());
        expect(Checkpoint::open(copy.path()), &["config.json", named]);
    }
    // One spelling is enough; without a list every other layer is full.
    let copy = copy_of("gpt_oss/mxfp4");
    edit_json(&copy.path().join("config.json"), |c| {
        for field in ["num_experts_per_tok", "layer_types", "attention_bias"] {
            c.as_object_mut().unwrap().remove(field);
        }
    });
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    let kinds = [LayerKind::SlidingAttention, LayerKind::FullAttention].repeat(2);
    assert_eq!((checkpoint.config().moe.top_k, &checkpoint.config().layers), (2, &kinds));
}

#[test]
fn experts_of_gpt_oss_that_cannot_be() {
    let damaged = |form: &str, change: &dyn Fn(&mut serde_json::Value, &mut Vec<u8>), parts: &[&str]| {
        let copy = copy_of(form);
        let shard = copy.path().join("model.safetensors");
        let (mut header, mut data) = read_shard(&shard);
        change(&mut header, &mut data);
        write_shard(&shard, &header, &data);
        let checkpoint = Checkpoint::open(copy.path()).unwrap();
        let experts = checkpoint.experts(1).and_then(|experts| {
            let biases = experts[0].biases.unwrap();
            for vector in [biases.gate, biases.up, biases.down] {
                vector.values()?;
            }
            experts[0].gate.check_finite()
        });
        expect(experts, parts);
    };
    let mlp = |name: &str| format!("model.layers.1.mlp.experts.{name}");
    let start = |header: &serde_json::Value, name: &str| {
        header[mlp(name)]["data_offsets"][0].as_u64().unwrap() as usize
    };
    damaged(
        "gpt_oss/mxfp4",
        &|h, _| h[mlp("gate_up_proj_blocks")]["shape"] = json!([8, 64, 4, 16]),
        &["gate_up_proj_blocks", "config.json implies [8, 128, 2, 16]"],
    );
    damaged(
        "gpt_oss/mxfp4",
        &|h, _| {
            let scales = h.as_object_mut().unwrap().remove(&mlp("gate_up_proj_scales")).unwrap();
            h["elsewhere"] = scales;
        },
        &["gate_up_proj_scales", "missing"],
    );
    damaged(
        "gpt_oss/mxfp4",
        &|h, data| {
            let at = start(h, "gate_up_proj_scales");
            data[at] = 0xff;
        },
        &["gate_up_proj_blocks", "not finite"],
    );
    damaged(
        "gpt_oss/bf16",
        &|h, _| h[mlp("gate_up_proj")]["shape"] = json!([8, 128, 64]),
        &["gate_up_proj", "config.json implies [8, 64, 128]"],
    );
    damaged(
        "gpt_oss/bf16",
        &|h, data| {
            let at = start(h, "gate_up_proj_bias");
            data[at + 2..at + 4].copy_from_slice(&[0x80, 0x7f]);
        },
        &["gate_up_proj_bias", "inf"],
    );
    damaged(
        "gpt_oss/mlx-mxfp4-q4",
        &|h, _| h[mlp("down_proj.bias")]["shape"] = json!([64, 8]),
        &["down_proj.bias", "config.json implies [8, 64]"],
    );
}

#[test]
fn config_files_that_are_not() {
    for (text, part) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[]", "not a JSON object"),
        ("{}", "model_type"),
        (r#"{"model_type": "gpt9"}"#, "`gpt9` is not supported; known: qwen3_5_moe, qwen3_moe, gpt_oss"),
        (r#"{"model_type": "qwen3_5_moe"}"#, "text_config"),
        (r#"{"model_type": "qwen3_5_moe", "text_config": [64]}"#, "`text_config` is not a JSON object"),
        (r#"{"model_type": "qwen3_moe"}"#, "hidden_size"),
        (r#"{"model_type": "qwen3_moe"} {}"#, "trailing"),
    ] {
        let copy = copy_of("qwen3_moe/bf16");
        std::fs::write(copy.path().join("config.json"), text).unwrap();
        expect(Checkpoint::open(copy.path()), &["config.json", part]);
    }
    expect(Checkpoint::open(Path::new("no/such/directory")), &["no/such/directory"]);
}

#[test]
fn foreign_quantization_is_named() {
    let copy = copy_of("qwen3_moe/bf16");
    edit_json(&copy.path().join("config.json"), |c| {
        c["quantization_config"] = json!({"quant_method": "gptq"});
    });
    expect(Checkpoint::open(copy.path()), &["config.json", "quant_method", "gptq"]);
}

#[test]
fn shards_cut_short_or_too_long() {
    let copy = copy_of("qwen3_moe/bf16");
    let shard = copy.path().join("model.safetensors");
    let whole = std::fs::read(&shard).unwrap();
    for length in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&shard, &whole[..length]).unwrap();
        expect(Checkpoint::open(copy.path()), &["model.safetensors"]);
    }
    std::fs::write(&shard, [whole.as_slice(), b"more"].concat()).unwrap();
    expect(Checkpoint::open(copy.path()), &["model.safetensors", "bytes of data"]);
    std::fs::write(&shard, [&u64::MAX.to_le_bytes(), &whole[8..]].concat()).unwrap();
    expect(Checkpoint::open(copy.path()), &["model.safetensors", "header length"]);
    std::fs::remove_file(&shard).unwrap();
    expect(Checkpoint::open(copy.path()), &["no *.safetensors"]);
}

#[test]
fn lying_headers_name_the_tensor() {
    let copy = copy_of("qwen3_moe/bf16");
    let path = copy.path().join("model.safetensors");
    let (header, data) = read_shard(&path);
    let name = "model.norm.weight";
    let offsets = header[name]["data_offsets"].clone();
    let (start, end) = (offsets[0].as_u64().unwrap(), offsets[1].as_u64().unwrap());
    for entry in [
        json!({"dtype": "BF16", "shape": [63], "data_offsets": [start, end]}),
        json!({"dtype": "F32", "shape": [64], "data_offsets": [start, end]}),
        json!({"dtype": "BF16", "shape": [u64::MAX, u64::MAX], "data_offsets": [start, end]}),
        json!({"dtype": "BF16", "shape": [64], "data_offsets": [end, start]}),
    ] {
        let mut lying = header.clone();
        lying[name] = entry;
        write_shard(&path, &lying, &data);
        expect(Checkpoint::open(copy.path()), &["model.safetensors", name]);
    }
    let mut lying = header.clone();
    lying["zzz"] = json!({"dtype": "U8", "shape": [1u64 << 60], "data_offsets": [data.len(), data.len() as u64 + (1u64 << 60)]});
    write_shard(&path, &lying, &data);
    expect(Checkpoint::open(copy.path()), &["model.safetensors", "zzz", "truncated"]);
}

#[test]
fn indexes_that_lie() {
    let copy = copy_of("qwen3_moe/bf16");
    let index = copy.path().join("model.safetensors.index.json");
    std::fs::write(&index, r#"{"weight_map": {"a": "model-00002.safetensors"}}"#).unwrap();
    expect(Checkpoint::open(copy.path()), &["model-00002.safetensors", "missing"]);
    std::fs::write(&index, r#"{"weight_map": {"a": "model.safetensors"}}"#).unwrap();
    expect(Checkpoint::open(copy.path()), &["model.safetensors", "`a`"]);
    std::fs::write(&index, r#"{"weight_map": {"a": "../model.safetensors"}}"#).unwrap();
    expect(Checkpoint::open(copy.path()), &["index.json", "../model.safetensors"]);
    std::fs::write(&index, r#"{"weight_map": {"a": 7}}"#).unwrap();
    expect(Checkpoint::open(copy.path()), &["index.json", "weight_map"]);
}

#[test]
fn shards_without_an_index_may_not_overlap() {
    let copy = copy_of("qwen3_moe/bf16");
    let shard = copy.path().join("model.safetensors");
    let (a, b) = (copy.path().join("a.safetensors"), copy.path().join("b.safetensors"));
    std::fs::rename(&shard, &a).unwrap();
    assert!(Checkpoint::open(copy.path()).is_ok());
    std::fs::copy(&a, &b).unwrap();
    expect(Checkpoint::open(copy.path()), &["b.safetensors", "also in", "a.safetensors"]);
}

#[test]
fn shapes_that_contradict_the_config() {
    let open = |name, field: &str, value: u64| {
        let copy = copy_of(name);
        edit_json(&copy.path().join("config.json"), |c| c[field] = json!(value));
        (Checkpoint::open(copy.path()).unwrap(), copy)
    };
    let (checkpoint, _dir) = open("qwen3_moe/bf16", "moe_intermediate_size", 128);
    expect(
        checkpoint.experts(0),
        &["model.safetensors", "experts.0.gate_proj.weight", "[64, 64]", "[128, 64]"],
    );
    let (checkpoint, _dir) = open("qwen3_moe/bf16", "num_experts", 9);
    expect(checkpoint.experts(2), &["layers.2.mlp.experts.8.gate_proj.weight", "missing"]);
    let (checkpoint, _dir) = open("qwen3_moe/mlx-4bit", "num_experts", 9);
    expect(checkpoint.experts(2), &["layers.2.mlp.switch_mlp.gate_proj.weight", "[8, 64"]);
    let (checkpoint, _dir) = open("qwen3_moe/mlx-4bit", "hidden_size", 96);
    expect(checkpoint.linear("model.embed_tokens", 320, 96), &["model.embed_tokens.weight", "96 columns"]);
    expect(checkpoint.floats("model.norm.weight", &[96]), &["model.norm.weight", "[64]", "[96]"]);
}

#[test]
fn quantization_that_contradicts_the_config() {
    let open = |change: fn(&mut serde_json::Value)| {
        let copy = copy_of("qwen3_moe/mlx-4bit");
        edit_json(&copy.path().join("config.json"), change);
        (Checkpoint::open(copy.path()).unwrap(), copy)
    };
    let embedding = "model.embed_tokens";
    let (checkpoint, _dir) = open(|c| c["quantization"]["bits"] = json!(8));
    expect(checkpoint.linear(embedding, 320, 64), &["model.embed_tokens.weight", "4 bits", "8 bits"]);
    let (checkpoint, _dir) = open(|c| c["quantization"]["model.embed_tokens"] = json!(false));
    expect(checkpoint.linear(embedding, 320, 64), &["model.embed_tokens.weight", "says it is not"]);
    let (checkpoint, _dir) = open(|c| c["quantization"]["model.norm"] = json!({"bits": 4, "group_size": 64}));
    assert!(checkpoint.floats("model.norm.weight", &[64]).is_ok());
    let (checkpoint, _dir) = open(|c| {
        c["quantization"] = json!(null);
        c["quantization_config"] = json!(null);
    });
    assert!(checkpoint.linear(embedding, 320, 64).is_ok(), "the shapes alone settle it");
}

/// Replaces the codes of a module by such of `bits` bits, in the file and in what the configuration says of it.
fn with_width(module: &str, shape: [usize; 2], bits: usize) -> (Checkpoint, tempfile::TempDir) {
    let copy = copy_of("qwen3_moe/mlx-4bit");
    let path = copy.path().join("model.safetensors");
    let (mut header, mut data) = read_shard(&path);
    let [rows, cols] = shape;
    let lead: Vec<_> = header[format!("{module}.scales")]["shape"].as_array().unwrap().clone();
    let name = format!("{module}.weight");
    // The old codes stay in the file under another name: data without a tensor would be an error of its own.
    header["unused"] = header[&name].clone();
    let start = data.len();
    data.resize(start + rows * cols * bits / 8, 0x5A);
    let words = [&lead[..lead.len() - 1], &[json!(cols * bits / 32)]].concat();
    header[&name] = json!({"dtype": "U32", "shape": words, "data_offsets": [start, data.len()]});
    write_shard(&path, &header, &data);
    edit_json(&copy.path().join("config.json"), |c| {
        c["quantization"][module] = json!({"bits": bits, "group_size": 64});
    });
    (Checkpoint::open(copy.path()).unwrap(), copy)
}

#[test]
fn widths_that_nobody_knows() {
    for bits in [1, 7, 9, 12, 16, 32] {
        let words = format!("{bits} bits");
        let (checkpoint, _dir) = with_width("lm_head", [320, 64], bits);
        expect(
            checkpoint.linear("lm_head", 320, 64),
            &["model.safetensors", "lm_head.weight", &words, "2, 3, 4, 5, 6 and 8"],
        );
        let stack = "model.layers.1.mlp.switch_mlp.up_proj";
        let (checkpoint, _dir) = with_width(stack, [8 * 64, 64], bits);
        assert!(checkpoint.experts(0).is_ok());
        expect(checkpoint.experts(1), &["model.layers.1.mlp.switch_mlp.up_proj.weight", &words]);
    }
    // The others are known, in any module beside 4 bits in the rest.
    for bits in [2, 3, 5, 6, 8] {
        let (checkpoint, _dir) = with_width("lm_head", [320, 64], bits);
        let head = checkpoint.linear("lm_head", 320, 64).unwrap();
        assert_eq!(head.weight.len(), 320 * 64 * bits / 8);
        assert!(head.source().is_ok() && head.slice_rows(319, 1).is_some_and(|r| r.weight.len() == 8 * bits));
        assert!(head.slice_rows(320, 1).is_none());
        let stack = "model.layers.1.mlp.switch_mlp.up_proj";
        let (checkpoint, dir) = with_width(stack, [8 * 64, 64], bits);
        let experts = checkpoint.experts(1).unwrap();
        assert!(experts.iter().all(|e| e.up.weight.len() == 64 * 64 * bits / 8));
        assert!(experts.iter().all(|e| e.gate.weight.len() == 64 * 64 / 2));
        // Said to be another one.
        edit_json(&dir.path().join("config.json"), |c| c["quantization"][stack]["bits"] = json!(4));
        let words = [format!("{bits} bits"), "says affine 4 bits".to_owned()];
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        expect(checkpoint.experts(1), &["switch_mlp.up_proj.weight", &words[0], &words[1]]);
    }
}

#[test]
fn values_that_are_not_finite() {
    let copy = copy_of("qwen3_moe/mlx-4bit");
    let path = copy.path().join("model.safetensors");
    let (header, data) = read_shard(&path);
    let poison = |name: &str| {
        let mut data = data.clone();
        let start = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start + 2..start + 4].copy_from_slice(&[0xc0, 0x7f]);
        write_shard(&path, &header, &data);
        Checkpoint::open(copy.path()).unwrap()
    };
    let checkpoint = poison("model.norm.weight");
    expect(checkpoint.floats("model.norm.weight", &[64]), &["model.safetensors", "model.norm.weight", "NaN"]);
    let checkpoint = poison("lm_head.scales");
    let head = checkpoint.linear("lm_head", 320, 64).unwrap();
    expect(head.check_finite(), &["model.safetensors", "lm_head.scales", "element 1"]);
    let checkpoint = poison("lm_head.biases");
    expect(checkpoint.linear("lm_head", 320, 64).unwrap().check_finite(), &["lm_head.biases"]);
}

#[test]
fn tensors_of_the_wrong_type() {
    let copy = copy_of("qwen3_moe/mlx-4bit");
    let path = copy.path().join("model.safetensors");
    let (header, data) = read_shard(&path);
    let mut other = header.clone();
    other["lm_head.weight"]["dtype"] = json!("I32");
    other["model.norm.weight"]["dtype"] = json!("I16");
    other.as_object_mut().unwrap().remove("model.embed_tokens.biases");
    // Removing a tensor leaves a hole, so its bytes get another name.
    other["unused"] = header["model.embed_tokens.biases"].clone();
    write_shard(&path, &other, &data);
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    expect(checkpoint.linear("lm_head", 320, 64), &["lm_head.weight", "I32"]);
    expect(checkpoint.floats("model.norm.weight", &[64]), &["model.norm.weight", "I16"]);
    expect(checkpoint.linear("model.embed_tokens", 320, 64), &["model.embed_tokens.biases", "missing"]);
}

#[test]
fn a_checkpoint_without_the_text_model() {
    let copy = copy_of("qwen3_moe/bf16");
    std::fs::copy(
        fixture("qwen3_5_moe/bf16").join("model.safetensors"),
        copy.path().join("model.safetensors"),
    )
    .unwrap();
    expect(Checkpoint::open(copy.path()), &["model.embed_tokens.weight", "missing"]);
}

#[test]
fn tokenizers_that_do_not_fit() {
    let copy = copy_of("qwen3_moe/bf16");
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    expect(checkpoint.tokenizer(), &["tokenizer.json"]);
    std::fs::write(copy.path().join("tokenizer.json"), "{}").unwrap();
    expect(checkpoint.tokenizer(), &["tokenizer.json", "bad tokenizer"]);
    std::fs::copy(demo().join("tokenizer.json"), copy.path().join("tokenizer.json")).unwrap();
    expect(checkpoint.tokenizer(), &["tokenizer.json", "16383", "320"]);
}

#[test]
fn templates_in_each_place() {
    let copy = copy_of("qwen3_moe/bf16");
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    assert!(checkpoint.chat_template().unwrap().is_none());
    let config = copy.path().join("tokenizer_config.json");
    let list = json!([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]);
    std::fs::write(&config, json!({"chat_template": list, "eos_token": {"content": "E"}}).to_string())
        .unwrap();
    let template = checkpoint.chat_template().unwrap().unwrap();
    assert_eq!((template.source.as_str(), template.eos_token.as_deref()), ("D", Some("E")));
    assert_eq!(template.named, [("tool_use".to_owned(), "T".to_owned())]);
    std::fs::write(copy.path().join("chat_template.jinja"), "J").unwrap();
    assert_eq!(checkpoint.chat_template().unwrap().unwrap().source, "J");
    std::fs::remove_file(copy.path().join("chat_template.jinja")).unwrap();
    std::fs::write(&config, r#"{"chat_template": [{"name": "rag", "template": ""}]}"#).unwrap();
    expect(checkpoint.chat_template(), &["tokenizer_config.json", "default"]);
    std::fs::write(&config, r#"{"chat_template": 5}"#).unwrap();
    expect(checkpoint.chat_template(), &["tokenizer_config.json", "chat_template"]);
}

#[test]
fn generation_settings_out_of_range() {
    let copy = copy_of("qwen3_moe/bf16");
    let file = copy.path().join("generation_config.json");
    for (text, field) in [
        (r#"{"top_p": 1.5}"#, "top_p"),
        (r#"{"temperature": -1}"#, "temperature"),
        (r#"{"top_k": -1}"#, "top_k"),
        (r#"{"eos_token_id": "x"}"#, "eos_token_id"),
    ] {
        std::fs::write(&file, text).unwrap();
        expect(Checkpoint::open(copy.path()), &["generation_config.json", field]);
    }
    std::fs::write(&file, r#"{"top_k": null}"#).unwrap();
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    assert_eq!(checkpoint.generation().eos_token_ids, [1], "falls back to config.json");
}

#[test]
fn deepseek_v4_settings_and_scales_are_named() {
    let cases: [(&str, serde_json::Value, &str); 8] = [
        ("compress_ratios", json!(null), "`compress_ratios` is missing"),
        ("compress_ratios", json!([4]), "1 entries for 2 layers"),
        ("compress_ratios", json!([8, 128, 0]), "`compress_ratios[0]` is 8"),
        ("o_groups", json!(3), "o_groups"),
        ("scoring_func", json!("softmax"), "scoring_func"),
        ("hc_mult", json!(0), "hc_mult"),
        ("qk_rope_head_dim", json!(33), "qk_rope_head_dim"),
        (
            "quantization_config",
            json!({"quant_method": "fp8", "weight_block_size": [64, 64]}),
            "weight_block_size",
        ),
    ];
    for (field, value, part) in cases {
        let copy = copy_of("deepseek_v4/fp8");
        edit_json(&copy.path().join("config.json"), |c| c[field] = value);
        expect(Checkpoint::open(copy.path()), &["config.json", part]);
    }
    // A scale of another shape, or none at all.
    let name = "layers.0.attn.wq_b";
    for (renamed, shape, part) in [
        ("layers.0.attn.wq_b.other", json!([4, 1]), "without"),
        ("layers.0.attn.wq_b.scale", json!([2, 2]), "shape"),
    ] {
        let copy = copy_of("deepseek_v4/fp8");
        let shard = copy.path().join("model.safetensors");
        let (mut header, data) = read_shard(&shard);
        let mut entry = header.as_object_mut().unwrap().remove(&format!("{name}.scale")).unwrap();
        entry["shape"] = shape;
        header[renamed] = entry;
        write_shard(&shard, &header, &data);
        let checkpoint = Checkpoint::open(copy.path()).unwrap();
        expect(checkpoint.linear(name, 512, 128), &["model.safetensors", name, part]);
    }
}
