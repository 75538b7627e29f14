//! Logits pinned by their digests, so that a change to all instruction sets at once is seen. A change that is meant changes
//! `NUMERICS_VERSION` as well.

#[path = "../examples/digest/logits.rs"]
mod logits;

use mach_kernels::Isa;
use mach_models::Activations;

#[test]
fn logits_have_not_changed() {
    let pinned = [
        ("demo", Activations::Int8, None, 0xdbdc_4771_3e10_ed68),
        ("demo", Activations::F32, None, 0x80b1_5231_696a_f379),
        ("demo", Activations::Int8, Some("k4v3"), 0x72c3_4864_59f8_743c),
        ("fixtures/qwen3_5_moe/bf16", Activations::Int8, None, 0x79b0_b9d8_e5dc_51f2),
        ("fixtures/qwen3_5_moe/mlx-4bit", Activations::Int8, None, 0x635f_8862_9766_b40a),
        ("fixtures/qwen3_5_moe/mlx-4bit", Activations::F32, None, 0xcce9_d755_7252_ac70),
        ("fixtures/qwen3_moe/mlx-4bit", Activations::Int8, None, 0x0edd_7d33_4de8_5d12),
        ("fixtures/qwen3_moe/mlx-8bit-g32", Activations::Int8, None, 0xe6bb_4b3a_b811_b90e),
        ("fixtures/qwen3_moe/mlx-8bit-g32", Activations::F32, None, 0xd88f_a596_c693_2c72),
        ("fixtures/qwen3_moe/mlx-mxfp4", Activations::Int8, None, 0xd588_a433_63e3_4240),
        ("fixtures/qwen3_moe/mlx-mxfp4", Activations::F32, None, 0x48a7_9b68_0452_6352),
        ("fixtures/gpt_oss/mxfp4", Activations::Int8, None, 0x0e3d_92fb_c369_06dd),
        ("fixtures/gpt_oss/mxfp4", Activations::F32, None, 0x08e2_cf08_a418_83f6),
        ("fixtures/gpt_oss/mlx-mxfp4-q4", Activations::Int8, None, 0x16de_7bb4_c272_bcaa),
        ("fixtures/gpt_oss/bf16", Activations::Int8, None, 0x3096_b39d_a4aa_c5bd),
        ("fixtures/deepseek_v4/bf16", Activations::Int8, None, 0x5d00_1ad8_7341_7156),
        ("fixtures/deepseek_v4/fp8", Activations::Int8, None, 0x3f56_48e0_666b_4d7f),
        ("fixtures/deepseek_v4/fp8", Activations::F32, None, 0xcf33_74d4_94c0_8144),
        ("fixtures/deepseek_v4/mlx-4bit", Activations::Int8, None, 0x7fb0_2d19_c828_e04b),
        ("fixtures/deepseek_v4/mlx-mixed", Activations::Int8, None, 0x5a6c_b5a2_dd63_7719),
        ("fixtures/deepseek_v4/mlx-mixed", Activations::F32, None, 0x1b39_1372_349c_0d80),
        ("fixtures/gemma4/bf16", Activations::Int8, None, 0xc5ec_ca32_8638_56bb),
        ("fixtures/gemma4/bf16", Activations::F32, None, 0xca7e_c466_c56a_e929),
        ("fixtures/gemma4/mlx-4bit", Activations::Int8, None, 0xf925_1f9c_9632_6ef3),
        ("fixtures/gemma4/mlx-4bit", Activations::F32, None, 0xd047_2690_ac1e_0c58),
        ("fixtures/qwen3/mlx-4bit", Activations::Int8, None, 0x1dc7_682d_b0c2_db67),
        ("fixtures/qwen3_5/mlx-4bit", Activations::Int8, None, 0xd8dc_8d28_d1a5_92af),
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
