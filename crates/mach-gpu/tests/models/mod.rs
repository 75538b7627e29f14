//! Loading the project's checkpoints onto both devices.
#![allow(dead_code)]

use std::path::PathBuf;

use mach_checkpoint::Checkpoint;
use mach_gpu::{Choice, GpuError, Ready};
use mach_models::{LoadOptions, LogitRows, Model, NoObserver, Segment, SequenceState};

/// The best adapter, a software one too. `None`, and a line that says so, where there is none.
pub(crate) fn gpu() -> Option<Ready> {
    match Ready::find(Choice::Auto).or_else(|_| Ready::find(Choice::Index(0))) {
        Ok(ready) => Some(ready),
        Err(error @ (GpuError::NoLoader(_) | GpuError::NoDriver(_) | GpuError::NoAdapter)) => {
            eprintln!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn checkpoint(path: &str) -> Checkpoint {
    Checkpoint::open(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).expect("checkpoint")
}

/// The same checkpoint on the CPU and on the GPU.
pub(crate) fn both(gpu: &Ready, path: &str) -> (Box<dyn Model>, Box<dyn Model>) {
    let (checkpoint, options) = (checkpoint(path), LoadOptions { threads: 2, ..LoadOptions::default() });
    let cpu = mach_cpu::load(&checkpoint, &options, &mut |_| {}).expect("on the CPU");
    (cpu, gpu.load(&checkpoint, &options, &mut |_| {}).expect("on the GPU"))
}

/// Token ids without a pattern.
pub(crate) fn tokens(seed: u64, n: usize) -> Vec<u32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    (0..n).map(|_| (next() % 320) as u32).collect()
}

/// Logits of every row of `tokens`, run in chunks of `chunk` tokens.
pub(crate) fn logits(
    model: &mut dyn Model,
    state: &mut SequenceState,
    tokens: &[u32],
    chunk: usize,
) -> Vec<f32> {
    let mut out = Vec::new();
    for part in tokens.chunks(chunk.max(1)) {
        let mut segments = [Segment::prompt(state, part, LogitRows::All)];
        out.extend(model.forward(&mut segments, &mut NoObserver).expect("forward").data);
    }
    out
}

/// As [`logits`], from an empty state.
pub(crate) fn all_logits(model: &mut dyn Model, tokens: &[u32], chunk: usize) -> Vec<f32> {
    let mut state = model.new_state();
    logits(model, &mut state, tokens, chunk)
}
