//! What checking records costs.

use std::hint::black_box;
use std::time::Instant;

use mach_experts::{Parts, checksums};
use serde::Serialize;

/// Numbers of threads whose parts are joined.
const THREADS: [usize; 5] = [2, 4, 8, 16, 64];

/// Joins that are timed.
const JOINS: u32 = 20_000;

/// Checksums of a record: those of its parts, each by a thread of its own, and putting them together on one.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Checks {
    /// Bytes of a record.
    pub record_bytes: usize,
    /// Bytes a second that one thread sums in memory.
    pub bytes_per_second: f64,
    /// Threads, and seconds that one thread takes to join their sums of one record.
    pub joins: Vec<(usize, f64)>,
}

/// Times records of this length.
pub fn measure_checks(record_bytes: usize) -> Checks {
    let record: Vec<u8> = (0..record_bytes).map(|i| i as u8).collect();
    let rounds = ((64 << 20) / record_bytes.max(1)).clamp(1, 64);
    let started = Instant::now();
    for _ in 0..rounds {
        black_box(checksums(black_box(&[&record])));
    }
    let bytes_per_second = (rounds * record_bytes) as f64 / started.elapsed().as_secs_f64().max(1e-9);
    let join = |threads: usize| {
        let part = record_bytes.div_ceil(threads).max(1);
        let sums: Vec<u32> = record.chunks(part).map(|part| checksums(&[part]).into_iter().sum()).collect();
        let parts = Parts::new(record_bytes, part);
        let started = Instant::now();
        for _ in 0..JOINS {
            black_box(parts.whole(black_box(&sums).iter().copied()));
        }
        (threads, started.elapsed().as_secs_f64() / f64::from(JOINS))
    };
    Checks { record_bytes, bytes_per_second, joins: THREADS.map(join).to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_threads_has_a_figure() {
        let checks = measure_checks(4096);
        assert_eq!(checks.joins.iter().map(|(threads, _)| *threads).collect::<Vec<_>>(), THREADS);
        assert!(checks.bytes_per_second > 0.0);
    }
}
