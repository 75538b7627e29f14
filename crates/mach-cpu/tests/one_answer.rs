//! One prompt, one answer: logits are equal bit by bit whatever the threads, the chunking, the batch and the
//! instruction set.

mod common;

use common::{all_logits, model, tokens, vocab};
use mach_kernels::Isa;
use mach_models::{Activations, LogitRows, Model, NoObserver, Segment};

/// Checkpoints that together reach every kernel: affine 4 and 8 bit of groups 32 and 64, MXFP4, bfloat16, every family
/// with experts.
const CHECKPOINTS: [&str; 11] = [
    "fixtures/gpt_oss/mxfp4",
    "fixtures/qwen3_5_moe/bf16",
    "fixtures/qwen3_5_moe/mlx-4bit",
    "fixtures/qwen3_moe/bf16",
    "fixtures/qwen3_moe/mlx-4bit",
    "fixtures/qwen3_moe/mlx-8bit-g32",
    "fixtures/qwen3_moe/mlx-mxfp4",
    "fixtures/gemma4/mlx-4bit",
    "fixtures/mistral/bf16",
    "fixtures/deepseek_v4/fp8",
    "fixtures/deepseek_v4/mlx-mixed",
];

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

/// Logits of a prompt long enough to cross pages of 256 positions, in chunks.
fn run(model: &mut dyn Model, prompt: &[u32], chunk: usize) -> Vec<u32> {
    let mut state = model.new_state();
    bits(&all_logits(model, &mut state, prompt, chunk))
}

fn names() -> Vec<&'static str> {
    Isa::available().into_iter().map(Isa::name).collect()
}

fn reference(path: &str, activations: Activations, prompt: &[u32]) -> Vec<u32> {
    run(&mut *model(path, activations, 1, Some("scalar")), prompt, prompt.len())
}

#[test]
fn threads_chunks_and_instruction_sets_change_nothing() {
    for path in CHECKPOINTS {
        for activations in [Activations::Int8, Activations::F32] {
            let prompt = tokens(1, 275, vocab(path));
            let expected = reference(path, activations, &prompt);
            for isa in names() {
                // The scalar twin is slow: it is the reference, and runs once more, split differently.
                let most = if isa == "scalar" { 1 } else { 4 };
                for threads in 1..=most {
                    // All chunkings on two threads, one chunking on the others.
                    let chunks: &[usize] = if threads == 2 { &[1, 7, 64, 275] } else { &[64] };
                    let mut m = model(path, activations, threads, Some(isa));
                    for &chunk in chunks {
                        let got = run(&mut *m, &prompt, chunk);
                        assert!(
                            got == expected,
                            "{path} {activations:?} {isa} {threads} threads, chunk {chunk}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_batch_of_mixed_sequences_changes_nothing() {
    for path in CHECKPOINTS {
        for activations in [Activations::Int8, Activations::F32] {
            let mut m = model(path, activations, 2, None);
            let prompts: Vec<Vec<u32>> = [(2, 261), (3, 1), (4, 40), (5, 97)]
                .iter()
                .map(|&(seed, n)| tokens(seed, n, vocab(path)))
                .collect();
            let alone: Vec<Vec<u32>> = prompts.iter().map(|p| run(&mut *m, p, 64)).collect();

            // First everything but the last two tokens in one call of four sequences, then two steps of one row each.
            let mut states: Vec<_> = prompts.iter().map(|_| m.new_state()).collect();
            let mut together = vec![Vec::new(); prompts.len()];
            let cuts: Vec<[usize; 4]> =
                prompts.iter().map(|p| [0, p.len().saturating_sub(2), p.len() - 1, p.len()]).collect();
            for step in 0..3 {
                let mut segments = Vec::new();
                let mut owners = Vec::new();
                for (i, state) in states.iter_mut().enumerate() {
                    let part = &prompts[i][cuts[i][step]..cuts[i][step + 1]];
                    if !part.is_empty() {
                        segments.push(Segment::prompt(state, part, LogitRows::All));
                        owners.extend(std::iter::repeat_n(i, part.len()));
                    }
                }
                let logits = m.forward(&mut segments, &mut NoObserver).unwrap();
                for (row, &i) in owners.iter().enumerate() {
                    together[i].extend(bits(logits.row(row)));
                }
            }
            assert!(together == alone, "{path} {activations:?}");
        }
    }
}

#[test]
fn only_the_wanted_rows_come_back() {
    let mut m = model("fixtures/qwen3_moe/mlx-4bit", Activations::Int8, 2, None);
    let prompt = tokens(9, 20, 320);
    let (mut a, mut b, mut c) = (m.new_state(), m.new_state(), m.new_state());
    let all = all_logits(&mut *m, &mut a, &prompt, 20);
    let mut segments = [
        Segment::prompt(&mut b, &prompt, LogitRows::Last),
        Segment::prompt(&mut c, &prompt, LogitRows::None),
    ];
    let last = m.forward(&mut segments, &mut NoObserver).unwrap();
    assert_eq!(last.rows(), 1);
    assert_eq!(bits(last.row(0)), bits(&all[19 * 320..]));
    assert_eq!((b.position(), c.position()), (20, 20));
    let mut segments = [Segment::decode(&mut b, &[320])];
    assert!(m.forward(&mut segments, &mut NoObserver).is_err(), "a token outside the vocabulary");
}

/// The trained demo checkpoint: greedy text on every instruction set and thread count.
#[test]
fn the_demo_checkpoint_says_the_same_everywhere() {
    let prompt = [16369, 359, 198, 852, 258, 2426, 1746, 302, 622, 16370, 198, 16369, 393, 198];
    let mut expected: Option<Vec<u32>> = None;
    for isa in names() {
        for threads in [1, 2, 3] {
            if isa == "scalar" && threads != 2 {
                continue;
            }
            let mut m = model("demo", Activations::Int8, threads, Some(isa));
            let mut state = m.new_state();
            let (mut next, mut seen) = (prompt.to_vec(), Vec::new());
            for _ in 0..24 {
                let mut segments = [Segment::prompt(&mut state, &next, LogitRows::Last)];
                let logits = m.forward(&mut segments, &mut NoObserver).unwrap();
                let row = logits.row(0);
                let best = (0..row.len()).fold(0, |b, i| if row[i] > row[b] { i } else { b });
                seen.extend(bits(row));
                next = vec![best as u32];
            }
            match &expected {
                None => expected = Some(seen),
                Some(e) => assert!(*e == seen, "{isa}, {threads} threads"),
            }
        }
    }
}
