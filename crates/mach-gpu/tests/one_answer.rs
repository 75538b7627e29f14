//! A GPU gives the CPU's bytes: logits of every row, whatever the chunks and the batch.

mod models;

use mach_models::{LoadOptions, LogitRows, NoObserver, Segment};
use models::{all_logits, both, checkpoint, gpu, tokens};

const CHECKPOINTS: [&str; 9] = [
    "fixtures/qwen3_5_moe/mlx-4bit",
    "fixtures/qwen3_5_moe/bf16",
    "fixtures/qwen3/mlx-4bit",
    "fixtures/qwen3_moe/mlx-4bit",
    "fixtures/qwen3_moe/mlx-8bit-g32",
    "fixtures/qwen3_moe/mlx-mxfp4",
    "fixtures/qwen3_moe/bf16",
    "fixtures/gpt_oss/mxfp4",
    "fixtures/gemma4/mlx-4bit",
];

fn differing(a: &[f32], b: &[f32]) -> usize {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count()
}

#[test]
fn logits_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    assert!(gpu.failing().is_empty(), "{:?}", gpu.failing());
    for path in CHECKPOINTS {
        let (mut cpu, mut other) = both(&gpu, path);
        assert_eq!(cpu.numerics(), other.numerics());
        let prompt = tokens(1, 275);
        let expected = all_logits(&mut *cpu, &prompt, 275);
        for chunk in [275, 64] {
            let got = all_logits(&mut *other, &prompt, chunk);
            let wrong = differing(&got, &expected);
            assert_eq!(wrong, 0, "{path}, chunks of {chunk}: {wrong} of {} logits differ", got.len());
        }
    }
}

#[test]
fn a_batch_of_mixed_sequences_changes_nothing() {
    let Some(gpu) = gpu() else { return };
    for path in ["fixtures/qwen3_5_moe/mlx-4bit", "fixtures/gpt_oss/mxfp4"] {
        let (mut cpu, mut other) = both(&gpu, path);
        let prompts: Vec<Vec<u32>> =
            [(2, 261), (3, 1), (4, 40)].iter().map(|&(seed, n)| tokens(seed, n)).collect();
        let mut states: Vec<_> = prompts.iter().map(|_| other.new_state()).collect();
        let mut together = vec![Vec::new(); prompts.len()];
        // All but the last token in one pass of three sequences, then one row each.
        for step in 0..2 {
            let mut segments = Vec::new();
            let mut owners = Vec::new();
            for (i, (state, prompt)) in states.iter_mut().zip(&prompts).enumerate() {
                let cut = prompt.len() - 1;
                let part = if step == 0 { &prompt[..cut] } else { &prompt[cut..] };
                if !part.is_empty() {
                    segments.push(Segment::prompt(state, part, LogitRows::All));
                    owners.extend(std::iter::repeat_n(i, part.len()));
                }
            }
            let found = other.forward(&mut segments, &mut NoObserver).unwrap();
            for (row, &i) in owners.iter().enumerate() {
                together[i].extend_from_slice(found.row(row));
            }
        }
        for (prompt, together) in prompts.iter().zip(&together) {
            let alone = all_logits(&mut *cpu, prompt, 64);
            assert_eq!(differing(together, &alone), 0, "{path}, {} tokens", prompt.len());
        }
    }
}

/// What no shader does is refused before anything is read, and named.
#[test]
fn what_is_not_here_is_named() {
    let Some(gpu) = gpu() else { return };
    let refusal = |path: &str, options: &LoadOptions| {
        gpu.load(&checkpoint(path), options, &mut |_| {}).err().map(|error| error.to_string())
    };
    let v4 = refusal("fixtures/deepseek_v4/bf16", &LoadOptions::default()).unwrap();
    assert!(v4.contains("residual streams") && v4.contains("--device cpu"), "{v4}");
    let exact = LoadOptions { activations: mach_models::Activations::F32, ..LoadOptions::default() };
    let exact = refusal("fixtures/qwen3_moe/bf16", &exact).unwrap();
    assert!(exact.contains("f32 activations"), "{exact}");
}
