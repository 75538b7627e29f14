//! The machine's limits as one record, from one thread up to all that are asked for.

use std::fmt;

use anyhow::{Context, Result};
use mach_kernels::ceiling::{int8_dot, read_bandwidth};
use serde::Serialize;

/// How to measure the ceilings.
#[derive(Debug, Clone)]
pub struct CeilingOptions {
    /// The most threads.
    pub threads: usize,
    /// Memory to read in a pass.
    pub buffer_bytes: usize,
    /// Repeats; the best counts.
    pub reps: usize,
}

/// Ceilings by number of threads, rising.
#[derive(Debug, Clone, Serialize)]
pub struct Ceilings {
    /// Memory reads.
    pub dram_read: Vec<DramRead>,
    /// 8-bit products.
    pub int8_dot: Vec<Int8Dot>,
}

/// Memory read bandwidth at a number of threads.
#[derive(Debug, Clone, Serialize)]
pub struct DramRead {
    /// Threads.
    pub threads: usize,
    /// The best repeat.
    pub bytes_per_second: f64,
    /// All repeats of the best access pattern.
    pub samples: Vec<f64>,
    /// Instruction set of the loads.
    pub isa: &'static str,
    /// Streams a thread reads side by side.
    pub streams: usize,
    /// Software prefetch distance in bytes.
    pub prefetch: usize,
    /// Size of the buffer.
    pub buffer_bytes: u64,
    /// How much of the buffer lay on huge pages.
    pub huge_bytes: u64,
}

/// 8-bit multiply-accumulates at a number of threads.
#[derive(Debug, Clone, Serialize)]
pub struct Int8Dot {
    /// Threads.
    pub threads: usize,
    /// The best repeat, all threads together.
    pub macs_per_second: f64,
    /// All repeats.
    pub samples: Vec<f64>,
    /// Instructions measured.
    pub isa: &'static str,
}

impl Ceilings {
    /// Measures now.
    pub fn measure(options: &CeilingOptions) -> Result<Self> {
        let counts = thread_counts(options.threads);
        let dram_read = read_bandwidth(&counts, options.buffer_bytes, options.reps)
            .with_context(|| format!("cannot have {} bytes to read", options.buffer_bytes))?
            .into_iter()
            .map(|c| DramRead {
                threads: c.threads,
                bytes_per_second: c.bytes_per_second,
                samples: c.samples,
                isa: c.isa,
                streams: c.pattern.streams,
                prefetch: c.pattern.prefetch,
                buffer_bytes: c.buffer_bytes,
                huge_bytes: c.huge_bytes,
            })
            .collect();
        let int8_dot = counts
            .iter()
            .map(|&threads| {
                // A repeat is short, and one that another process disturbs is lost: take more of them.
                let c = int8_dot(threads, 3 * options.reps);
                Int8Dot {
                    threads: c.threads,
                    macs_per_second: c.macs_per_second,
                    samples: c.samples,
                    isa: c.isa,
                }
            })
            .collect();
        Ok(Self { dram_read, int8_dot })
    }

    /// The most bytes a second that any number of threads read: one core may saturate memory alone.
    pub fn best_read(&self) -> f64 {
        self.dram_read.iter().map(|c| c.bytes_per_second).fold(0.0, f64::max)
    }

    /// The most 8-bit multiply-accumulates a second.
    pub fn best_dot(&self) -> f64 {
        self.int8_dot.iter().map(|c| c.macs_per_second).fold(0.0, f64::max)
    }
}

impl fmt::Display for Ceilings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in &self.dram_read {
            writeln!(
                f,
                "  memory read, {:>2} threads  {:>8.1} GB/s    ({}, {} streams, prefetch {}, {} of {} MiB on huge pages)",
                c.threads,
                c.bytes_per_second / 1e9,
                c.isa,
                c.streams,
                c.prefetch,
                c.huge_bytes >> 20,
                c.buffer_bytes >> 20
            )?;
        }
        for c in &self.int8_dot {
            writeln!(
                f,
                "  int8 dot,    {:>2} threads  {:>8.1} GMAC/s  ({})",
                c.threads,
                c.macs_per_second / 1e9,
                c.isa
            )?;
        }
        Ok(())
    }
}

/// 1, 2, 4, ... and `most` itself.
fn thread_counts(most: usize) -> Vec<usize> {
    let most = most.max(1);
    let mut counts: Vec<usize> =
        std::iter::successors(Some(1usize), |n| n.checked_mul(2)).take_while(|&n| n < most).collect();
    counts.push(most);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_double_up_to_the_most() {
        assert_eq!(thread_counts(0), [1]);
        assert_eq!(thread_counts(1), [1]);
        assert_eq!(thread_counts(2), [1, 2]);
        assert_eq!(thread_counts(6), [1, 2, 4, 6]);
        assert_eq!(thread_counts(8), [1, 2, 4, 8]);
    }

    #[test]
    fn the_best_is_the_largest_of_all_counts() {
        let options = CeilingOptions { threads: 2, buffer_bytes: 4 << 20, reps: 1 };
        let ceilings = Ceilings::measure(&options).unwrap();
        assert_eq!(ceilings.dram_read.len(), 2);
        assert_eq!(ceilings.int8_dot.len(), 2);
        assert!(ceilings.dram_read.iter().all(|c| c.bytes_per_second <= ceilings.best_read()));
        assert!(ceilings.int8_dot.iter().all(|c| c.macs_per_second <= ceilings.best_dot()));
        assert!(ceilings.to_string().lines().count() == 4);
    }
}
