//! Logits pinned by their digests, so that a change to all instruction sets at once is seen. A change that is meant changes
//! `NUMERICS_VERSION` as well.

#[path = "../examples/digest/logits.rs"]
mod logits;

use mach_kernels::Isa;
use mach_models::Activations;

#[test]
fn logits_have_not_changed() {
    let pinned = [
        ("demo", Activations::Int8, None, 0xeed9_d886_8b75_cc56),
        ("demo", Activations::F32, None, 0x9096_d97a_ad0a_fff2),
        ("demo", Activations::Int8, Some("k4v3"), 0x90ab_90c6_5f50_237f),
        ("fixtures/qwen3_5_moe/bf16", Activations::Int8, None, 0x2d93_7acb_32b5_e56e),
        ("fixtures/qwen3_5_moe/mlx-4bit", Activations::Int8, None, 0xca1b_3dce_8184_42e7),
        ("fixtures/qwen3_5_moe/mlx-4bit", Activations::F32, None, 0x12b1_6ffc_9f38_722e),
        ("fixtures/qwen3_moe/mlx-4bit", Activations::Int8, None, 0x0edd_7d33_4de8_5d12),
        ("fixtures/qwen3_moe/mlx-8bit-g32", Activations::Int8, None, 0xe6bb_4b3a_b811_b90e),
        ("fixtures/qwen3_moe/mlx-8bit-g32", Activations::F32, None, 0xd88f_a596_c693_2c72),
        ("fixtures/qwen3_moe/mlx-mxfp4", Activations::Int8, None, 0xd588_a433_63e3_4240),
        ("fixtures/qwen3_moe/mlx-mxfp4", Activations::F32, None, 0x48a7_9b68_0452_6352),
        ("fixtures/gpt_oss/mxfp4", Activations::Int8, None, 0x0e3d_92fb_c369_06dd),
        ("fixtures/gpt_oss/mxfp4", Activations::F32, None, 0x08e2_cf08_a418_83f6),
        ("fixtures/gpt_oss/mlx-mxfp4-q4", Activations::Int8, None, 0x16de_7bb4_c272_bcaa),
        ("fixtures/gpt_oss/bf16", Activations::Int8, None, 0x3096_b39d_a4aa_c5bd),
        ("fixtures/deepseek_v4/bf16", Activations::Int8, None, 0x0324_f4e8_3c95_71c5),
        ("fixtures/deepseek_v4/fp8", Activations::Int8, None, 0xda89_7c09_b276_17ea),
        ("fixtures/deepseek_v4/fp8", Activations::F32, None, 0x53c0_e71e_7c6b_4303),
        ("fixtures/deepseek_v4/mlx-4bit", Activations::Int8, None, 0x1590_c155_64a6_2e95),
        ("fixtures/deepseek_v4/mlx-mixed", Activations::Int8, None, 0x4c8f_3a87_7dc5_0af0),
        ("fixtures/deepseek_v4/mlx-mixed", Activations::F32, None, 0xa70a_1977_7d6c_1953),
        ("fixtures/gemma4/bf16", Activations::Int8, None, 0x4bfa_253b_caed_cc5c),
        ("fixtures/gemma4/bf16", Activations::F32, None, 0x7e1f_a94c_1497_d0e0),
        ("fixtures/gemma4/mlx-4bit", Activations::Int8, None, 0x93da_23e8_2a08_dd55),
        ("fixtures/gemma4/mlx-4bit", Activations::F32, None, 0x20e1_7a41_65f0_b16c),
        ("fixtures/qwen3/mlx-4bit", Activations::Int8, None, 0x1dc7_682d_b0c2_db67),
        ("fixtures/qwen3_5/mlx-4bit", Activations::Int8, None, 0x5f85_47fb_324c_161a),
        ("fixtures/llama/bf16", Activations::F32, None, 0xe265_3ace_e1ff_85e6),
        ("fixtures/llama/mlx-4bit", Activations::Int8, None, 0x54cf_4dda_d10b_2906),
        ("fixtures/mistral/mlx-4bit", Activations::Int8, None, 0x771c_b826_99ca_0f04),
        ("fixtures/gemma/bf16", Activations::F32, None, 0x8e46_a481_e0e8_234e),
        ("fixtures/gemma/mlx-4bit", Activations::Int8, None, 0x7dc5_74ce_ace0_9ee5),
        ("fixtures/gemma3_text/bf16", Activations::Int8, None, 0xdd03_375b_54fe_62d8),
    ];
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut changed = Vec::new();
    for (path, activations, kv, expected) in pinned {
        let found = logits::digest(&root.join(path), activations, kv, Isa::best()).unwrap();
        if found != Some(expected) {
            changed.push(format!("{path} {activations} {kv:?}: {:016x}", found.unwrap_or(0)));
        }
    }
    assert!(changed.is_empty(), "{changed:#?}");
}
