//! Every good form opens, and hands out what its files hold.

mod common;

use common::{demo, fixture};
use mach_checkpoint::{Checkpoint, Dtype, Family, LayerKind, Packing, WeightSource};
use mach_quant::Bits;

#[test]
fn every_fixture_opens_with_all_its_experts() {
    let forms = [
        ("qwen3_5_moe/bf16", Family::Qwen3_5Moe, "model.language_model.", Packing::Dense(Dtype::BF16), 1.0),
        ("qwen3_5_moe/mlx-4bit", Family::Qwen3_5Moe, "language_model.model.", affine(Bits::B4, 64), 0.0),
        ("qwen3_moe/bf16", Family::Qwen3Moe, "model.", Packing::Dense(Dtype::BF16), 0.0),
        ("qwen3_moe/mlx-4bit", Family::Qwen3Moe, "model.", affine(Bits::B4, 64), 0.0),
        ("qwen3_moe/mlx-8bit-g32", Family::Qwen3Moe, "model.", affine(Bits::B8, 32), 0.0),
        ("qwen3_moe/mlx-mxfp4", Family::Qwen3Moe, "model.", Packing::Mxfp4, 0.0),
    ];
    for (name, family, prefix, packing, norm_offset) in forms {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let config = checkpoint.config();
        assert_eq!((config.family, config.tensor_prefix.as_str()), (family, prefix), "{name}");
        assert_eq!(checkpoint.norm_offset(), norm_offset, "{name}");
        for layer in 0..config.layers.len() {
            let experts = checkpoint.experts(layer).unwrap();
            assert_eq!(experts.len(), 8, "{name}");
            for expert in experts {
                for part in [expert.gate, expert.up, expert.down] {
                    assert_eq!((part.packing, part.rows, part.cols), (packing, 64, 64), "{name}");
                    part.check_finite().unwrap();
                }
            }
        }
        let embedding = checkpoint
            .linear(&format!("{prefix}embed_tokens"), config.vocab_size, config.hidden_size)
            .unwrap();
        assert_eq!(embedding.packing, packing, "{name}");
        let head = checkpoint.linear(&config.head_module, config.vocab_size, config.hidden_size).unwrap();
        head.check_finite().unwrap();
        assert_eq!(checkpoint.floats(&format!("{prefix}norm.weight"), &[64]).unwrap().len(), 64);
    }
}

fn affine(bits: Bits, group: usize) -> Packing {
    Packing::Affine { bits, group, scales: Dtype::BF16 }
}

#[test]
fn settings_of_the_demo() {
    let checkpoint = Checkpoint::open(&demo()).unwrap();
    let config = checkpoint.config();
    assert_eq!(config.layers.iter().filter(|k| **k == LayerKind::FullAttention).count(), 2);
    assert_eq!(config.layers[3], LayerKind::FullAttention);
    assert_eq!((config.rope.theta, config.rope.rotary_dim), (1e6, 16));
    assert_eq!((config.moe.num_experts, config.moe.top_k, config.moe.norm_topk_prob), (32, 4, true));
    assert_eq!(config.moe.shared_intermediate_size, Some(256));
    assert!(config.tie_word_embeddings);
    assert_eq!(config.eos_token_ids, [16370, 16368]);
    let generation = checkpoint.generation();
    assert_eq!(generation.eos_token_ids, [16370, 16368]);
    assert_eq!((generation.temperature, generation.top_k), (Some(0.7), Some(20)));
    assert_eq!(checkpoint.conv1d(0).unwrap().len(), 1024 * 4);
    assert!(checkpoint.conv1d(3).is_err());
    // It is in the engine format: matrices are laid out, only their layout tells what they hold.
    let gate = checkpoint.weights("language_model.model.layers.0.mlp.gate", 32, 512).unwrap();
    let WeightSource::Packed(gate) = gate else { panic!("not laid out") };
    assert!(matches!(gate.layout.codec, mach_quant::Codec::Affine { bits: Bits::B8, group: 64, .. }));
    assert!(checkpoint.linear("language_model.model.layers.0.mlp.gate", 32, 512).is_err());
}

#[test]
fn tokenizer_and_template_of_the_demo() {
    let checkpoint = Checkpoint::open(&demo()).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let ids = tokenizer.encode_fast("Write a binary search in Python", false).unwrap();
    assert!(!ids.get_ids().is_empty());
    let template = checkpoint.chat_template().unwrap().unwrap();
    assert!(template.file.ends_with("chat_template.jinja"));
    assert!(template.source.contains("<|im_start|>"));
    assert_eq!((template.bos_token, template.eos_token.as_deref()), (None, Some("<|im_end|>")));
}

#[test]
fn published_and_mlx_convolutions_lie_alike() {
    let published = Checkpoint::open(&fixture("qwen3_5_moe/bf16")).unwrap();
    let mlx = Checkpoint::open(&fixture("qwen3_5_moe/mlx-4bit")).unwrap();
    assert_eq!(published.conv1d(0).unwrap(), mlx.conv1d(0).unwrap());
}

#[test]
fn fused_experts_split_gate_rows_first() {
    let checkpoint = Checkpoint::open(&fixture("qwen3_5_moe/bf16")).unwrap();
    let whole = checkpoint.tensor("model.language_model.layers.1.mlp.experts.gate_up_proj").unwrap();
    let experts = checkpoint.experts(1).unwrap();
    let matrix = 64 * 64 * 2;
    assert_eq!(experts[3].gate.weight, &whole.data[6 * matrix..7 * matrix]);
    assert_eq!(experts[3].up.weight, &whole.data[7 * matrix..8 * matrix]);
}

#[test]
fn every_form_of_gpt_oss_holds_the_same_biases() {
    let of = |form: &str| {
        let checkpoint = Checkpoint::open(&fixture(&format!("gpt_oss/{form}"))).unwrap();
        let config = checkpoint.config();
        assert_eq!((config.family, config.sliding_window), (Family::GptOss, Some(16)));
        assert_eq!(config.layers[..2], [LayerKind::SlidingAttention, LayerKind::FullAttention]);
        assert_eq!((config.moe.num_experts, config.moe.top_k, config.moe.intermediate_size), (8, 2, 64));
        assert_eq!((config.moe.swiglu_limit, config.moe.expert_bias), (Some(7.0), true));
        let yarn = config.rope.yarn.unwrap();
        assert!(!yarn.truncate && (yarn.magnitude - 1.346_573_59).abs() < 1e-6 && yarn.original == 4096);
        let mut values = Vec::new();
        for layer in 0..config.layers.len() {
            for expert in checkpoint.experts(layer).unwrap() {
                let biases = expert.biases.unwrap();
                for (matrix, bias) in
                    [(expert.gate, biases.gate), (expert.up, biases.up), (expert.down, biases.down)]
                {
                    assert_eq!((matrix.rows, matrix.cols, bias.len), (64, 64, 64), "{form}");
                    matrix.check_finite().unwrap();
                    let source = matrix.source().unwrap();
                    let mut row = vec![0.0; 64];
                    for r in [0, 1, 63] {
                        source.decode_row(r, &mut row);
                        values.extend_from_slice(&row);
                    }
                    values.extend(bias.values().unwrap());
                }
            }
        }
        values
    };
    let published = of("mxfp4");
    assert!(published.iter().any(|&v| v != 0.0));
    assert!(of("bf16") == published && of("mlx-mxfp4-q4") == published);
}

#[test]
fn fingerprint_sees_the_data_and_not_the_place() {
    let copy = common::copy_of("qwen3_moe/bf16");
    let original = Checkpoint::open(&fixture("qwen3_moe/bf16")).unwrap().fingerprint();
    assert_eq!(Checkpoint::open(copy.path()).unwrap().fingerprint(), original);
    let shard = copy.path().join("model.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    assert_ne!(Checkpoint::open(copy.path()).unwrap().fingerprint(), original);
}

/// DeepSeek's own form, its fp8 and fp4 mix, and MLX's: other prefixes and words, the same modules.
#[test]
fn every_form_of_deepseek_v4_opens_with_all_its_experts() {
    let forms = [
        ("bf16", "", "head", Packing::Dense(Dtype::BF16), Packing::Dense(Dtype::BF16), 8, false),
        ("fp8", "", "head", Packing::Mxfp4, Packing::Fp8 { scales: Dtype::F8E8M0 }, 5, false),
        ("mlx-4bit", "model.", "lm_head", affine(Bits::B4, 32), affine(Bits::B4, 32), 8, true),
        ("mlx-mixed", "model.", "lm_head", Packing::Mxfp4, Packing::Mxfp8, 8, true),
    ];
    for (form, prefix, head, experts, attention, count, stacked) in forms {
        let checkpoint = Checkpoint::open(&fixture(&format!("deepseek_v4/{form}"))).unwrap();
        let config = checkpoint.config();
        assert_eq!(config.family, Family::DeepseekV4);
        assert_eq!((config.tensor_prefix.as_str(), config.head_module.as_str()), (prefix, head), "{form}");
        assert_eq!((checkpoint.stacks_experts(), checkpoint.family().stacked), (stacked, false), "{form}");
        let own = config.compressed.as_ref().unwrap();
        assert_eq!((own.ratios.len(), own.streams, own.window), (config.layers.len(), 4, 16), "{form}");
        for layer in 0..config.layers.len() {
            let found = checkpoint.experts(layer).unwrap();
            assert_eq!(found.len(), count, "{form}");
            for part in found.iter().flat_map(|e| [e.gate, e.up, e.down]) {
                assert_eq!(part.packing, experts, "{form}");
                part.check_finite().unwrap();
            }
            // Its rows lie in groups in MLX's form.
            let module = checkpoint.full_name(&format!("layers.{layer}.attn.wo_a"));
            let width = config.num_heads * config.head_dim / own.out_groups;
            let out = checkpoint.linear(&module, own.out_groups * own.out_rank, width).unwrap();
            assert_eq!(out.packing, attention, "{form}");
            out.check_finite().unwrap();
        }
        let table = checkpoint.full_name("layers.0.ffn.gate.tid2eid");
        let shape = [config.vocab_size, config.moe.top_k];
        assert_eq!(checkpoint.integers(&table, &shape, count as u32).unwrap().len(), shape[0] * shape[1]);
        assert!(checkpoint.integers(&table, &shape, 1).is_err(), "experts that there are not");
        assert!(checkpoint.floats(&checkpoint.full_name("hc_head_fn"), &[4, 4 * config.hidden_size]).is_ok());
    }
}
