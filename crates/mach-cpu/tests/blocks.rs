//! A block of which only the first rows are kept leaves the state that those rows alone would have left, bit by bit.

mod common;

use common::{all_logits, model, tokens, vocab};
use mach_models::{Activations, Model, NoObserver, Segment, SequenceState};

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

fn block(model: &mut dyn Model, state: &mut SequenceState, tokens: &[u32], keep: usize) -> Vec<f32> {
    state.begin_block();
    let segment = Segment::verify(&mut *state, tokens);
    let logits = model.forward(&mut [segment], &mut NoObserver).expect("forward");
    model.keep_rows(state, keep).expect("rows to keep");
    logits.data[..keep * logits.vocab].to_vec()
}

#[test]
fn rejected_rows_leave_no_trace() {
    for path in [
        "fixtures/qwen3_5_moe/mlx-4bit",
        "fixtures/qwen3_moe/mlx-4bit",
        "fixtures/gpt_oss/mlx-mxfp4-q4",
        "fixtures/deepseek_v4/mlx-4bit",
    ] {
        for activations in [Activations::Int8, Activations::F32] {
            let mut m = model(path, activations, 2, None);
            for (seed, start) in [(1, 0), (2, 3), (3, 250), (4, 256)] {
                let truth = tokens(seed, start + 96, vocab(path));
                let wrong = tokens(seed ^ 77, 16, vocab(path));
                let expected = {
                    let mut state = m.new_state();
                    all_logits(&mut *m, &mut state, &truth, usize::MAX)
                };
                let mut state = m.new_state();
                let mut got = all_logits(&mut *m, &mut state, &truth[..start], 64);
                let mut choice = seed;
                while state.position() < truth.len() {
                    choice = choice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let left = truth.len() - state.position();
                    let rows = (1 + (choice >> 33) as usize % 16).min(left);
                    let keep = (choice >> 40) as usize % (rows + 1);
                    let at = state.position();
                    let mut ids = truth[at..at + rows].to_vec();
                    ids[keep..].copy_from_slice(&wrong[keep..rows]);
                    // Sharing the pages must not let the rejected rows through either.
                    let shared = state.clone();
                    got.extend(block(&mut *m, &mut state, &ids, keep));
                    assert_eq!(state.position(), at + keep);
                    assert_eq!(shared.position(), at);
                }
                assert!(bits(&got) == bits(&expected), "{path} {activations:?} from {start}");
                let mut plain = m.new_state();
                all_logits(&mut *m, &mut plain, &truth, 32);
                for layer in 0..m.config().layers.len() {
                    assert_eq!(state.recurrent(layer), plain.recurrent(layer));
                }
            }
        }
    }
}

#[test]
fn only_the_last_pass_can_be_cut() {
    let mut m = model("fixtures/qwen3_5_moe/mlx-4bit", Activations::Int8, 1, None);
    let mut state = m.new_state();
    assert!(m.keep_rows(&mut state, 0).is_err());
    let ids = tokens(5, 4, 320);
    state.begin_block();
    all_logits(&mut *m, &mut state, &ids, 2);
    assert!(m.keep_rows(&mut state, 1).is_err(), "two passes");
    state.begin_block();
    all_logits(&mut *m, &mut state, &ids, 4);
    assert!(m.keep_rows(&mut state, 5).is_err(), "more rows than there were");
}
