//! What the memory of a device can do: copies from one buffer to another.

use std::time::Instant;

use crate::context::DEADLINE;
use crate::{Context, GpuError, Recorder, Storage};

/// Copies between two buffers of a device.
#[derive(Debug, Clone, PartialEq)]
pub struct CopyRate {
    /// Bytes of each buffer.
    pub buffer_bytes: u64,
    /// Bytes read and written a second, repeat by repeat.
    pub samples: Vec<f64>,
}

impl CopyRate {
    /// The best repeat.
    pub fn best(&self) -> f64 {
        self.samples.iter().copied().fold(0.0, f64::max)
    }
}

/// Bytes of the buffers on devices with memory of their own, far beyond their caches.
const BYTES: u64 = 1 << 30;
/// Copies that are submitted together, so that their start does not count.
const COPIES: u32 = 8;
const REPEATS: usize = 5;

/// Measures copies. Devices that share the CPU's memory take smaller buffers.
pub fn copy_rate(context: &Context) -> Result<CopyRate, GpuError> {
    let wanted = if context.facts().unified() { BYTES / 4 } else { BYTES };
    let buffer_bytes = wanted.min(context.limits().max_buffer_size) / 4096 * 4096;
    let [from, to] = [Storage::new(context, buffer_bytes)?, Storage::new(context, buffer_bytes)?];
    let mut samples = Vec::new();
    // The first repeat only warms up.
    for repeat in 0..=REPEATS {
        let mut recorder = Recorder::new(context);
        for _ in 0..COPIES {
            recorder.copy_storage(&from, 0, &to, 0, buffer_bytes);
        }
        let started = Instant::now();
        recorder.submit().wait(DEADLINE)?;
        let moved = 2.0 * f64::from(COPIES) * buffer_bytes as f64;
        if repeat > 0 {
            samples.push(moved / started.elapsed().as_secs_f64());
        }
    }
    Ok(CopyRate { buffer_bytes, samples })
}
