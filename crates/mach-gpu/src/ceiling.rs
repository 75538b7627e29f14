//! What the memory of a device can do: a shader that reads a buffer from end to end.

use std::time::Instant;

use crate::context::DEADLINE;
use crate::{Context, Forms, GpuError, Pipelines, Recorder, Shader, Storage};

/// Reads of a buffer by all of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadRate {
    /// Bytes of the buffer.
    pub buffer_bytes: u64,
    /// Bytes read a second, repeat by repeat.
    pub samples: Vec<f64>,
}

impl ReadRate {
    /// The best repeat.
    pub fn best(&self) -> f64 {
        self.samples.iter().copied().fold(0.0, f64::max)
    }
}

/// Bytes of the buffer on devices with memory of their own, far beyond their caches.
const BYTES: u64 = 1 << 30;
/// Passes over it that are submitted together, so that their start does not count.
const PASSES: u32 = 16;
const REPEATS: usize = 5;
/// Workgroups of 256 threads, more than any device runs at once.
const WORKGROUPS: u32 = 4096;

/// The shader.
pub fn shader() -> Shader {
    Shader::new("read", include_str!("wgsl/read.wgsl"))
}

/// Measures reads. Devices that share the CPU's memory, and software ones, read less.
pub fn read_rate(context: &Context) -> Result<ReadRate, GpuError> {
    let unified = context.facts().unified();
    let wanted = if unified { BYTES / 8 } else { BYTES };
    let buffer_bytes = wanted.min(context.largest_binding()) / 4096 * 4096;
    let words = Storage::new(context, buffer_bytes)?;
    let threads = WORKGROUPS * 256;
    let out = Storage::new(context, 16 * u64::from(threads))?;
    let pipeline = Pipelines::new(context, Forms::NATIVE).get(&shader())?;
    let passes = if unified { 2 } else { PASSES };
    let mut samples = Vec::new();
    // The first repeat only warms up.
    for repeat in 0..=REPEATS {
        let mut recorder = Recorder::new(context);
        for _ in 0..passes {
            let immediates = [(buffer_bytes / 16) as u32, threads];
            recorder.dispatch(
                &pipeline,
                &[(&words).into(), (&out).into()],
                &immediates,
                [WORKGROUPS, 1, 1],
            )?;
        }
        let started = Instant::now();
        recorder.submit().wait(DEADLINE)?;
        if repeat > 0 {
            samples.push(f64::from(passes) * buffer_bytes as f64 / started.elapsed().as_secs_f64());
        }
    }
    Ok(ReadRate { buffer_bytes, samples })
}
