use mach_checkpoint::{Family, GdnConfig, MoeConfig, RopeConfig};

use super::*;

fn config() -> ModelConfig {
    ModelConfig {
        family: Family::Qwen3_5Moe,
        model_type: "qwen3_5_moe".into(),
        hidden_size: 64,
        vocab_size: 100,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 32,
        intermediate_size: 0,
        rms_norm_eps: 1e-6,
        rope: RopeConfig { theta: 1e6, rotary_dim: 8, yarn: None, llama3: None },
        layers: vec![LayerKind::LinearAttention, LayerKind::FullAttention],
        moe_layers: vec![true, true],
        moe: MoeConfig {
            num_experts: 8,
            top_k: 2,
            intermediate_size: 96,
            shared_intermediate_size: Some(48),
            norm_topk_prob: true,
            expert_bias: false,
            swiglu_limit: None,
            swiglu_alpha: None,
        },
        attention_bias: false,
        sliding_window: None,
        gemma3: None,
        gemma4: None,
        gdn: Some(GdnConfig { key_heads: 2, value_heads: 4, key_dim: 16, value_dim: 8, conv_kernel: 4 }),
        compressed: None,
        tie_word_embeddings: false,
        max_position_embeddings: 1024,
        eos_token_ids: vec![],
        tensor_prefix: "language_model.model.".into(),
        head_module: "language_model.lm_head".into(),
    }
}

/// A tensor of bytes as `shape` and `dtype` imply.
fn tensor<'a>(name: &'a str, dtype: Dtype, shape: &'a [usize]) -> TensorFacts<'a> {
    let size = match dtype {
        Dtype::U32 | Dtype::F32 => 4,
        Dtype::BF16 | Dtype::F16 => 2,
        _ => 1,
    };
    TensorFacts { name, dtype, shape, bytes: elements(shape) * size }
}

#[test]
fn an_expert_counts_by_its_share_stacked_or_sliced() {
    let stacked = [
        tensor("language_model.model.layers.0.mlp.switch_mlp.up_proj.weight", Dtype::U32, &[8, 96, 8]),
        tensor("language_model.model.layers.0.mlp.switch_mlp.up_proj.scales", Dtype::BF16, &[8, 96, 1]),
        tensor("language_model.model.layers.0.mlp.switch_mlp.up_proj.biases", Dtype::BF16, &[8, 96, 1]),
        tensor("language_model.model.layers.0.mlp.switch_mlp.down_proj.weight", Dtype::U32, &[8, 64, 12]),
    ];
    let work = TokenWork::count(&config(), &stacked, 0).unwrap();
    let one = 96 * 8 * 4 + 2 * 96 * 2 + 64 * 12 * 4;
    assert_eq!(work.expert_bytes, 2 * one);
    assert_eq!(work.int8_macs, 2 * (96 * 64 + 64 * 96));
    let names: Vec<String> =
        (0..8).map(|e| format!("language_model.model.layers.0.mlp.experts.{e}.up_proj.weight")).collect();
    let sliced: Vec<_> = names.iter().map(|n| tensor(n, Dtype::BF16, &[96, 64])).collect();
    let work = TokenWork::count(&config(), &sliced, 0).unwrap();
    assert_eq!(work.expert_bytes, 2 * 96 * 64 * 2);
    assert_eq!((work.int8_macs, work.float_macs), (0, 2 * 96 * 64));
}

#[test]
fn head_table_and_residents_are_told_apart() {
    let tensors = [
        tensor("language_model.model.embed_tokens.weight", Dtype::U32, &[100, 8]),
        tensor("language_model.lm_head.weight", Dtype::U32, &[100, 8]),
        tensor("language_model.model.norm.weight", Dtype::BF16, &[64]),
        tensor("language_model.model.layers.1.self_attn.o_proj.weight", Dtype::U32, &[64, 16]),
        tensor("language_model.model.layers.0.linear_attn.conv1d.weight", Dtype::BF16, &[96, 4, 1]),
        tensor("language_model.model.layers.0.linear_attn.out_proj.weight", Dtype::U32, &[64, 4]),
        tensor("language_model.model.layers.0.mlp.shared_expert.down_proj.weight", Dtype::U32, &[64, 6]),
        tensor("vision_tower.blocks.0.weight", Dtype::BF16, &[1000, 1000]),
    ];
    let work = TokenWork::count(&config(), &tensors, 0).unwrap();
    assert_eq!((work.embedding_bytes, work.head_bytes), (8 * 4, 100 * 8 * 4));
    assert_eq!(work.resident_bytes, 2 * 64 + 4 * 64 * 16 + 2 * 96 * 4 + 4 * 64 * 4 + 4 * 64 * 6);
    assert_eq!(work.int8_macs, 64 * 128 + 64 * 32 + 64 * 48);
    assert_eq!((work.float_macs, work.head_macs), (96 * 4, 100 * 64));
}

#[test]
fn a_tied_table_is_the_head() {
    let config = ModelConfig { tie_word_embeddings: true, ..config() };
    let tensors = [tensor("language_model.model.embed_tokens.weight", Dtype::BF16, &[100, 64])];
    let work = TokenWork::count(&config, &tensors, 0).unwrap();
    assert_eq!((work.embedding_bytes, work.head_bytes), (0, 100 * 64 * 2));
}

#[test]
fn state_grows_with_the_context_in_attention_layers_only() {
    let work = TokenWork::count(&config(), &[], 10).unwrap();
    assert_eq!(work.kv_bytes, 10 * 2 * (2 * 32) * 2);
    assert_eq!(work.recurrent_bytes, 4 * 16 * 8 * 4);
    assert_eq!(work.decode_bytes(), work.kv_bytes + work.recurrent_bytes);
}

#[test]
fn a_matrix_of_unknown_place_is_named() {
    let tensors = [tensor("language_model.model.layers.0.mystery.weight", Dtype::BF16, &[4, 4])];
    let error = TokenWork::count(&config(), &tensors, 0).unwrap_err();
    assert!(error.to_string().contains("mystery"));
}

fn fixture(path: &str) -> (Checkpoint, TokenWork) {
    let dir = format!("{}/../../fixtures/{path}", env!("CARGO_MANIFEST_DIR"));
    let checkpoint = Checkpoint::open(dir.as_ref()).unwrap();
    let work = TokenWork::of(&checkpoint, 100).unwrap();
    (checkpoint, work)
}

#[test]
fn every_familys_tensors_are_known_and_forms_agree() {
    for (family, forms) in [
        ("qwen3_5_moe", &["bf16", "mlx-4bit"][..]),
        ("qwen3_moe", &["bf16", "mlx-4bit", "mlx-8bit-g32", "mlx-mxfp4"]),
        ("gpt_oss", &["bf16", "mxfp4", "mlx-mxfp4-q4"]),
        ("gemma4", &["bf16", "mlx-4bit"]),
        ("deepseek_v4", &["bf16", "mlx-4bit", "mlx-mixed"]),
        ("qwen3_5", &["bf16", "mlx-4bit"]),
        ("gemma3_text", &["bf16", "mlx-4bit"]),
        ("llama", &["bf16", "mlx-4bit"]),
    ] {
        let products: Vec<u64> = forms
            .iter()
            .map(|form| fixture(&format!("{family}/{form}")).1)
            .map(|work| work.int8_macs + work.float_macs)
            .collect();
        assert!(products[0] > 0 && products.iter().all(|&n| n == products[0]), "{family}: {products:?}");
    }
}

#[test]
fn what_one_token_of_deepseek_reads_is_one_row_of_the_table_and_no_draft() {
    let (checkpoint, work) = fixture("deepseek_v4/fp8");
    let (mut resident, mut rows) = (0, 0);
    for name in checkpoint.names() {
        let bytes = checkpoint.tensor(name).unwrap().data.len() as u64;
        match name {
            _ if name.starts_with("mtp.") || name.contains(".ffn.experts.") => {}
            "embed.weight" | "head.weight" => {}
            _ if name.ends_with(".tid2eid") => rows += bytes / checkpoint.config().vocab_size as u64,
            _ => resident += bytes,
        }
    }
    assert!(rows > 0);
    assert_eq!(work.resident_bytes, resident + rows);
    // Two codes a byte, and a scale for 32 of them.
    let moe = &checkpoint.config().moe;
    let expert = 3 * moe.intermediate_size * checkpoint.config().hidden_size;
    let layers = checkpoint.config().layers.len();
    assert_eq!(work.expert_bytes, (layers * moe.top_k * (expert / 2 + expert / 32)) as u64);
}
