//! Loading the project's checkpoints in tests.

// Each test is a crate of its own and uses some of it.
#![allow(dead_code)]

use std::path::PathBuf;

use mach_checkpoint::Checkpoint;
use mach_cpu::load;
use mach_models::{Activations, LoadOptions, LogitRows, Model, NoObserver, Segment, SequenceState};

/// A path below the project's root.
pub(crate) fn project(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// A model from a checkpoint of the project.
pub(crate) fn model(
    path: &str,
    activations: Activations,
    threads: usize,
    isa: Option<&str>,
) -> Box<dyn Model> {
    let checkpoint = Checkpoint::open(&project(path)).expect("checkpoint");
    let options = LoadOptions { activations, threads, isa: isa.map(str::to_owned), ..Default::default() };
    load(&checkpoint, &options, &mut |_| {}).expect("model")
}

/// Logits of every row of `tokens`, run in chunks of `chunk` tokens.
pub(crate) fn all_logits(
    model: &mut dyn Model,
    state: &mut SequenceState,
    tokens: &[u32],
    chunk: usize,
) -> Vec<f32> {
    let mut out = Vec::new();
    for part in tokens.chunks(chunk) {
        let mut segments = [Segment::prompt(state, part, LogitRows::All)];
        out.extend(model.forward(&mut segments, &mut NoObserver).expect("forward").data);
    }
    out
}

/// Token ids that a fixture certainly has.
pub(crate) fn vocab(path: &str) -> usize {
    if path.contains("deepseek_v4") { 224 } else { 320 }
}

/// Pseudo-random token ids below `vocab`.
pub(crate) fn tokens(seed: u64, n: usize, vocab: usize) -> Vec<u32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    (0..n).map(|_| (next() % vocab as u64) as u32).collect()
}
