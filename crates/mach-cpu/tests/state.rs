//! Copies, cuts and bytes of a state: whatever way it was brought back, the logits that follow are the same.

mod common;

use common::{all_logits, model};
use mach_models::{Activations, LogitRows, Model, NoObserver, Segment, SequenceState};

const CHECKPOINTS: [&str; 4] = [
    "fixtures/qwen3_5_moe/mlx-4bit",
    "fixtures/qwen3_moe/mlx-4bit",
    "fixtures/gpt_oss/mlx-mxfp4-q4",
    "fixtures/gemma4/mlx-4bit",
];

fn prompt(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 7919 + 13) % 320).collect()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

fn run(model: &mut dyn Model, state: &mut SequenceState, tokens: &[u32]) {
    let segment = Segment::prompt(state, tokens, LogitRows::None);
    model.forward(&mut [segment], &mut NoObserver).expect("forward");
}

/// Logits of the next 20 tokens.
fn after(model: &mut dyn Model, mut state: SequenceState, tokens: &[u32]) -> Vec<u32> {
    let from = state.position();
    bits(&all_logits(model, &mut state, &tokens[from..from + 20], 7))
}

#[test]
fn copies_inside_a_pass_are_the_states_of_shorter_passes() {
    let tokens = prompt(600);
    for path in CHECKPOINTS {
        for activations in [Activations::Int8, Activations::F32] {
            let mut m = model(path, activations, 2, None);
            let mut state = m.new_state();
            run(&mut *m, &mut state, &tokens[..3]);
            // 3 and 700 lie outside the pass.
            state.copy_at(&[3, 4, 255, 256, 300, 580, 700]);
            run(&mut *m, &mut state, &tokens[3..580]);
            let copies = state.take_copies();
            let positions: Vec<_> = copies.iter().map(SequenceState::position).collect();
            assert_eq!(positions, [4, 255, 256, 300, 580]);
            assert!(state.take_copies().is_empty());
            // The sequence goes on and must not write into its copies.
            run(&mut *m, &mut state, &tokens[580..]);
            for copy in copies {
                let mut fresh = m.new_state();
                run(&mut *m, &mut fresh, &tokens[..copy.position()]);
                assert_eq!(fresh.export().unwrap(), copy.export().unwrap(), "{path} at {}", copy.position());
                assert_eq!(after(&mut *m, copy, &tokens), after(&mut *m, fresh, &tokens));
            }
        }
    }
}

#[test]
fn a_state_comes_back_from_its_bytes() {
    let tokens = prompt(330);
    for path in CHECKPOINTS {
        let mut m = model(path, Activations::Int8, 1, None);
        for position in [1, 256, 300] {
            let mut state = m.new_state();
            run(&mut *m, &mut state, &tokens[..position]);
            let mut restored = m.new_state().blank(position);
            let bytes: Vec<Vec<u8>> =
                state.export().unwrap().into_iter().map(|piece| piece.into_owned()).collect();
            let mut targets = restored.import();
            assert_eq!(targets.len(), bytes.len());
            for (target, bytes) in targets.iter_mut().zip(&bytes) {
                target.copy_from_slice(bytes);
            }
            restored.imported().unwrap();
            assert_eq!(
                after(&mut *m, restored, &tokens),
                after(&mut *m, state, &tokens),
                "{path} {position}"
            );
        }
    }
}

#[test]
fn only_attention_can_be_cut() {
    let tokens = prompt(400);
    let mut m = model("fixtures/qwen3_moe/mlx-4bit", Activations::Int8, 1, None);
    let mut state = m.new_state();
    run(&mut *m, &mut state, &tokens);
    assert!(state.can_be_cut() && state.cut(401).is_none());
    for position in [1, 256, 380] {
        let mut fresh = m.new_state();
        run(&mut *m, &mut fresh, &tokens[..position]);
        let cut = state.cut(position).expect("a cut");
        assert_eq!(after(&mut *m, cut, &tokens), after(&mut *m, fresh, &tokens));
    }
    let mut m = model("fixtures/qwen3_5_moe/mlx-4bit", Activations::Int8, 1, None);
    let mut state = m.new_state();
    run(&mut *m, &mut state, &tokens);
    assert!(!state.can_be_cut() && state.cut(399).is_none() && state.cut(400).is_some());
}

/// Layers with a window keep what it sees and what a block may be taken back to, however the prompt was cut, and no more than
/// is said beforehand; the others keep all.
#[test]
fn a_window_bounds_what_is_kept() {
    let (tokens, window) = (prompt(3000), 16);
    for activations in [Activations::Int8, Activations::F32] {
        let mut m = model("fixtures/gpt_oss/mlx-mxfp4-q4", activations, 2, None);
        let mut reference = m.new_state();
        run(&mut *m, &mut reference, &tokens[..2900]);
        let page = m.state_bytes(1) / 4;
        // Two layers of each kind: all twelve pages, or one.
        assert_eq!(reference.bytes(), 2 * 12 * page + 2 * page);
        assert_eq!(m.state_bytes(2900), 2 * 12 * page + 2 * 2 * page);
        assert!(m.state_bytes(256) == 4 * page && m.state_bytes(512) == 8 * page);
        assert!(!reference.can_be_cut() && reference.forgets() && reference.cut(2899).is_none());
        for chunk in [1500, 257, 64] {
            let mut state = m.new_state();
            for part in tokens[..2900].chunks(chunk) {
                run(&mut *m, &mut state, part);
                assert!(state.bytes() <= m.state_bytes(state.position()));
            }
            assert_eq!(state.export().unwrap(), reference.export().unwrap(), "{activations:?} {chunk}");
        }
        // A block across the edge of a page: taken back, the keys that the window sees from there are still kept.
        for keep in [0, 1, 7] {
            let (mut state, mut plain) = (m.new_state(), m.new_state());
            let start = 256 + window - 4;
            run(&mut *m, &mut state, &tokens[..start]);
            state.begin_block();
            let segment = Segment::verify(&mut state, &tokens[start..start + 8]);
            m.forward(&mut [segment], &mut NoObserver).expect("forward");
            m.keep_rows(&mut state, keep).expect("rows to keep");
            assert!(state.bytes() <= m.state_bytes(state.position() + 8));
            run(&mut *m, &mut plain, &tokens[..start + keep]);
            assert_eq!(state.export().unwrap(), plain.export().unwrap(), "{activations:?} {keep}");
            assert_eq!(after(&mut *m, state, &tokens), after(&mut *m, plain, &tokens));
        }
    }
    // Short of the window everything is there.
    let mut m = model("fixtures/gpt_oss/mlx-mxfp4-q4", Activations::Int8, 1, None);
    let mut state = m.new_state();
    run(&mut *m, &mut state, &tokens[..window - 1]);
    let mut fresh = m.new_state();
    run(&mut *m, &mut fresh, &tokens[..5]);
    let cut = state.cut(5).expect("a cut");
    assert_eq!(after(&mut *m, cut, &tokens), after(&mut *m, fresh, &tokens));
}
