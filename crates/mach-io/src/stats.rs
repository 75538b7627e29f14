//! What a reader has done so far.

use std::time::Duration;

/// Buckets: 8 for each doubling of microseconds, up to 2^32 us.
const PER_OCTAVE: usize = 8;
const BUCKETS: usize = 32 * PER_OCTAVE;

/// Latencies in buckets that are at most 12.5 % wide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatencyHistogram {
    buckets: Vec<u64>,
    count: u64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        LatencyHistogram { buckets: vec![0; BUCKETS], count: 0 }
    }
}

impl LatencyHistogram {
    /// Counts one.
    pub fn record(&mut self, latency: Duration) {
        if let Some(bucket) = self.buckets.get_mut(Self::bucket(latency.as_micros())) {
            *bucket += 1;
            self.count += 1;
        }
    }

    fn bucket(micros: u128) -> usize {
        let us = micros.clamp(1, u128::from(u32::MAX)) as usize;
        if us < PER_OCTAVE {
            return us;
        }
        let octave = us.ilog2() as usize;
        // The three bits after the leading one choose the part of the octave.
        (octave * PER_OCTAVE + ((us >> (octave - 3)) & (PER_OCTAVE - 1))).min(BUCKETS - 1)
    }

    /// Upper edge of a bucket.
    fn edge(bucket: usize) -> Duration {
        if bucket < PER_OCTAVE {
            return Duration::from_micros(bucket as u64);
        }
        let (octave, part) = (bucket / PER_OCTAVE, bucket % PER_OCTAVE);
        Duration::from_micros((((PER_OCTAVE + part + 1) as u64) << octave) / PER_OCTAVE as u64)
    }

    /// The latency that a share `q` (0..=1) of all reads did not exceed, to a bucket's width; `None` before the first.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let wanted = ((self.count as f64 * q.clamp(0.0, 1.0)).ceil() as u64).max(1);
        let mut seen = 0;
        for (i, &n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= wanted {
                return Some(Self::edge(i));
            }
        }
        None
    }

    /// Latencies recorded.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// A snapshot of a reader's counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadStats {
    /// Reads that ended well.
    pub reads: u64,
    /// Bytes that they brought.
    pub bytes: u64,
    /// Reads that failed.
    pub failures: u64,
    /// Most reads that were at the drive at one time.
    pub in_flight_high_water: usize,
    /// From handing a read to the system to its completion.
    pub latency: LatencyHistogram,
    /// Time spent blocked in [`Reader::wait_any`](crate::Reader::wait_any).
    pub stall: Duration,
    /// Time during which at least one read was at the drive: `bytes / busy` is what the drive delivered. A completion counts
    /// when it is taken, so work between submitting and taking can only make this longer.
    pub busy: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_a_bucket() {
        let mut h = LatencyHistogram::default();
        assert_eq!(h.quantile(0.5), None);
        for us in 1..=10_000u64 {
            h.record(Duration::from_micros(us));
        }
        for q in [0.01, 0.5, 0.9, 0.99, 1.0] {
            let (exact, found) = (10_000.0 * q, h.quantile(q).unwrap().as_micros() as f64);
            assert!(found >= exact && found <= exact * 1.13 + 1.0, "{q}: {found} for {exact}");
        }
        h.record(Duration::from_secs(1 << 40));
        assert_eq!(h.count(), 10_001);
    }
}
