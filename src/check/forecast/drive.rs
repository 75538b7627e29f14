//! What the drive gives, and how long a layer takes that waits for it.

use std::time::Duration;

use mach_checkpoint::Checkpoint;
use mach_experts::Sidecar;
use mach_io::{Caching, probe};

use crate::args::ModelConfig;
use crate::experts::IN_FLIGHT;

/// Time for the drive.
const DRIVE: Duration = Duration::from_millis(300);

/// Reads of records by how many are in flight, as the server's own probe finds them.
pub(super) struct Drive {
    /// Reads in flight and bytes a second, rising.
    speeds: Vec<(usize, f64)>,
    /// Past the page cache or through it, as the server would read.
    pub(super) caching: Caching,
}

/// The experts of one layer, for one token. Seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerWork {
    /// Routed experts of a token.
    pub(super) top_k: usize,
    /// Computing all of them, and the shared one.
    pub(super) all: f64,
    /// Computing one.
    pub(super) one: f64,
    /// Checking a record that was read.
    pub(super) check: f64,
    /// Bytes of a record.
    pub(super) record: f64,
}

impl Drive {
    pub(super) fn of(checkpoint: &Checkpoint, config: &ModelConfig) -> Option<Self> {
        let sidecar = Sidecar::open(checkpoint).ok()?;
        let found = probe(sidecar.files(), sidecar.max_stride(), config.experts.io.into(), DRIVE).ok()?;
        let mut speeds: Vec<(usize, f64)> = found
            .table
            .iter()
            .filter(|row| row.caching == found.caching && row.depth <= IN_FLIGHT)
            .map(|row| (row.depth, row.bandwidth))
            .collect();
        speeds.sort_by_key(|&(depth, _)| depth);
        (!speeds.is_empty()).then_some(Drive { speeds, caching: found.caching })
    }

    pub(super) fn best(&self) -> f64 {
        self.speeds.iter().map(|&(_, speed)| speed).fold(0.0, f64::max)
    }

    /// Bytes a second with `reads` in flight: between two measured depths, in proportion.
    fn speed(&self, reads: usize) -> f64 {
        let above = self.speeds.iter().position(|&(depth, _)| depth >= reads);
        match above.unwrap_or(self.speeds.len()) {
            0 => self.speeds.first().map_or(0.0, |&(_, speed)| speed),
            at => match (self.speeds.get(at - 1), self.speeds.get(at)) {
                (Some(&(low, slow)), Some(&(high, fast))) => {
                    slow + (fast - slow) * (reads - low) as f64 / (high - low).max(1) as f64
                }
                _ => self.best(),
            },
        }
    }

    /// Seconds until the last of `reads` records that are asked for at once is there.
    fn last(&self, reads: usize, bytes: f64) -> f64 {
        reads as f64 * bytes / self.speed(reads).max(1.0)
    }

    /// Seconds of a layer's experts if `missing` of them are read while the others compute: each is checked and computed
    /// once it is there, and the first is there when a single one would be.
    fn streamed(&self, work: &LayerWork, missing: usize) -> f64 {
        if missing == 0 {
            return work.all;
        }
        let last = self.last(missing, work.record);
        let first = self.last(1, work.record).min(last);
        let steps = (missing - 1).max(1) as f64;
        let mut done = (work.all - missing as f64 * work.one).max(0.0);
        for read in 0..missing {
            let there = if missing == 1 { last } else { first + (last - first) * read as f64 / steps };
            done = done.max(there) + work.one + work.check;
        }
        done
    }

    /// The same where each expert is missing with this chance: no layer can begin before the one before it, so that what
    /// counts is the mean of its time and not the time of the mean.
    pub(super) fn seconds(&self, work: &LayerWork, missing: f64) -> f64 {
        (0..=work.top_k).map(|reads| chance(work.top_k, reads, missing) * self.streamed(work, reads)).sum()
    }
}

/// That `hits` of `n` happen, each with the chance `p`.
fn chance(n: usize, hits: usize, p: f64) -> f64 {
    let ways = (0..hits).fold(1.0, |ways, i| ways * (n - i) as f64 / (i + 1) as f64);
    let power = |base: f64, n: usize| base.powi(i32::try_from(n).unwrap_or(i32::MAX));
    ways * power(p, hits) * power(1.0 - p, n - hits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive() -> Drive {
        Drive { speeds: vec![(1, 1e9), (4, 2e9), (8, 2e9)], caching: Caching::Direct }
    }

    #[test]
    fn speeds_between_depths_are_in_proportion() {
        let drive = drive();
        assert_eq!((drive.best(), drive.speed(1), drive.speed(4), drive.speed(64)), (2e9, 1e9, 2e9, 2e9));
        assert!((drive.speed(2) - 1.333e9).abs() < 1e6);
    }

    #[test]
    fn a_layer_waits_for_the_reads_it_lacks() {
        let drive = drive();
        let idle = LayerWork { top_k: 8, all: 0.0, one: 0.0, check: 0.0, record: 1e6 };
        assert_eq!(drive.seconds(&idle, 0.0), 0.0);
        assert!((drive.seconds(&idle, 1.0) - 4e-3).abs() < 1e-12);
        // Of one expert that is missing every other time.
        assert!((drive.seconds(&LayerWork { top_k: 1, ..idle }, 0.5) - 0.5e-3).abs() < 1e-12);
        let (few, more) = (drive.seconds(&idle, 0.1), drive.seconds(&idle, 0.2));
        assert!(few > 0.8 * 1e6 / 2e9 && few < more && more < 4e-3, "{few} {more}");
    }

    #[test]
    fn what_is_there_computes_meanwhile_and_what_is_missing_afterwards() {
        let drive = drive();
        // A shared expert and two routed ones of 3 ms each; a read takes 1 ms.
        let work = LayerWork { top_k: 2, all: 9e-3, one: 3e-3, check: 1e-3, record: 1e6 };
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        assert!(close(drive.streamed(&work, 0), 9e-3));
        // The read is hidden behind the two that are there; the one that came is checked and computed.
        assert!(close(drive.streamed(&work, 1), 6e-3 + 4e-3));
        assert!(close(drive.streamed(&work, 2), 3e-3 + 8e-3));
        // Of experts that take no time the last read decides.
        let quick = LayerWork { all: 0.0, one: 0.0, check: 0.0, ..work };
        assert!(close(drive.streamed(&quick, 2), 2e6 / drive.speed(2)));
    }

    #[test]
    fn chances_add_up() {
        for p in [0.0, 0.3, 1.0] {
            let all: f64 = (0..=8).map(|hits| chance(8, hits, p)).sum();
            assert!((all - 1.0).abs() < 1e-12, "{p}: {all}");
        }
        assert!((chance(4, 2, 0.5) - 6.0 / 16.0).abs() < 1e-12);
    }
}
