//! States on the GPU are the CPU's: blocks that are cut short, copies inside a pass, and bytes that one device wrote and
//! another goes on from.

mod models;

use mach_models::{LogitRows, Model, NoObserver, Segment, SequenceState};
use models::{all_logits, both, gpu, logits, tokens};

const CHECKPOINTS: [&str; 3] =
    ["fixtures/qwen3_5_moe/mlx-4bit", "fixtures/gpt_oss/mlx-mxfp4-q4", "fixtures/qwen3_moe/mlx-4bit"];

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|v| v.to_bits()).collect()
}

fn run(model: &mut dyn Model, state: &mut SequenceState, tokens: &[u32]) {
    let segment = Segment::prompt(state, tokens, LogitRows::None);
    model.forward(&mut [segment], &mut NoObserver).expect("forward");
}

fn exported(state: &SequenceState) -> Vec<Vec<u8>> {
    state.export().expect("bytes").into_iter().map(|piece| piece.into_owned()).collect()
}

/// The state of `from` on the device of `model`.
fn moved(model: &dyn Model, from: &SequenceState) -> SequenceState {
    let bytes = exported(from);
    let mut state = model.new_state().blank(from.position());
    assert_eq!(state.exported_bytes(), from.exported_bytes());
    let mut targets = state.import();
    assert_eq!(targets.len(), bytes.len());
    for (target, bytes) in targets.iter_mut().zip(&bytes) {
        target.copy_from_slice(bytes);
    }
    state.imported().expect("imported");
    state
}

#[test]
fn rejected_rows_leave_no_trace() {
    let Some(gpu) = gpu() else { return };
    for path in CHECKPOINTS {
        let (mut cpu, mut other) = both(&gpu, path);
        let (truth, wrong) = (tokens(3, 290), tokens(99, 16));
        let expected = all_logits(&mut *cpu, &truth, 64);
        let mut state = other.new_state();
        let mut got = logits(&mut *other, &mut state, &truth[..250], 64);
        for (rows, keep) in [(4, 1), (8, 0), (6, 6), (16, 5), (3, 2)].into_iter().cycle() {
            let at = state.position();
            if at + rows > truth.len() {
                break;
            }
            let mut ids = truth[at..at + rows].to_vec();
            ids[keep..].copy_from_slice(&wrong[keep..rows]);
            // Sharing the pages must not let the rejected rows through either.
            let shared = state.clone();
            state.begin_block();
            let segment = Segment::verify(&mut state, &ids);
            let found = other.forward(&mut [segment], &mut NoObserver).expect("forward");
            other.keep_rows(&mut state, keep).expect("rows to keep");
            got.extend_from_slice(&found.data[..keep * found.vocab]);
            assert_eq!((state.position(), shared.position()), (at + keep, at));
        }
        assert!(got.len() > 255 * other.config().vocab_size, "blocks were run");
        assert!(bits(&got) == bits(&expected[..got.len()]), "{path}");
        let mut plain = other.new_state();
        run(&mut *other, &mut plain, &truth[..state.position()]);
        assert!(exported(&state) == exported(&plain), "{path}");
    }
}

#[test]
fn copies_inside_a_pass_are_the_states_of_shorter_passes() {
    let Some(gpu) = gpu() else { return };
    let ids = tokens(5, 330);
    for path in CHECKPOINTS {
        let (mut cpu, mut other) = both(&gpu, path);
        let mut state = other.new_state();
        run(&mut *other, &mut state, &ids[..3]);
        state.copy_at(&[4, 256, 300]);
        run(&mut *other, &mut state, &ids[3..310]);
        let copies = state.take_copies();
        // The sequence goes on and must not write into its copies.
        run(&mut *other, &mut state, &ids[310..]);
        for copy in copies {
            let mut fresh = cpu.new_state();
            run(&mut *cpu, &mut fresh, &ids[..copy.position()]);
            assert!(exported(&copy) == exported(&fresh), "{path} at {}", copy.position());
        }
    }
}

/// An answer that one device has begun is continued by the other, to the same bytes.
#[test]
fn one_device_goes_on_where_the_other_stopped() {
    let Some(gpu) = gpu() else { return };
    let ids = tokens(7, 320);
    for path in CHECKPOINTS {
        let (mut cpu, mut other) = both(&gpu, path);
        let expected = all_logits(&mut *cpu, &ids, 320);
        let vocab = cpu.config().vocab_size;
        for at in [1, 256, 300] {
            let mut begun = cpu.new_state();
            run(&mut *cpu, &mut begun, &ids[..at]);
            let mut state = moved(&*other, &begun);
            let got = logits(&mut *other, &mut state, &ids[at..], 7);
            assert!(bits(&got) == bits(&expected[at * vocab..]), "{path}: the GPU from {at}");
            let mut begun = other.new_state();
            run(&mut *other, &mut begun, &ids[..at]);
            let mut state = moved(&*cpu, &begun);
            let got = logits(&mut *cpu, &mut state, &ids[at..], 7);
            assert!(bits(&got) == bits(&expected[at * vocab..]), "{path}: the CPU from {at}");
        }
    }
}
