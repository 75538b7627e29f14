//! What passes cost on this machine, measured while serving.

use super::Cycle;

/// How much an old measurement counts beside the next one.
const MEMORY: f64 = 0.95;
/// The same beside a lower one.
const LOW_MEMORY: f64 = 0.8;
/// Plain passes are measured again after this many others: contexts grow, and so do costs.
const STALE: usize = 256;
/// Weight of the plain passes that must have been measured.
const ENOUGH: f64 = 2.5;
/// A measurement this many times what was expected counts as that many times: a pause of the machine says nothing.
const OUTLIER: f64 = 3.0;

/// A mean in which old values fade.
#[derive(Debug, Clone, Copy, Default)]
struct Fading {
    weight: f64,
    sum: f64,
}

impl Fading {
    fn add(&mut self, value: f64) {
        let mean = self.mean().unwrap_or(value);
        // What disturbs a machine only ever adds: the lower value is the better one.
        let memory = if value < mean { LOW_MEMORY } else { MEMORY };
        self.weight = self.weight * memory + 1.0;
        self.sum = self.sum * memory + value.min(OUTLIER * mean);
    }

    fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }
}

/// Seconds by rows: a line through fading measurements.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Line {
    /// Sums of 1, rows, rows^2, seconds, rows * seconds.
    sums: [f64; 5],
}

impl Line {
    pub(super) fn add(&mut self, rows: usize, seconds: f64) {
        if !(seconds.is_finite() && seconds > 0.0) {
            return;
        }
        let (x, mut y) = (rows as f64, seconds);
        // Until blocks of several sizes were seen, larger ones are no outliers.
        if let Some(expected) = self.at(rows, 0.0).filter(|_| self.spread() > 0.25) {
            y = y.min(OUTLIER * expected.max(f64::MIN_POSITIVE));
        }
        for (sum, term) in self.sums.iter_mut().zip([1.0, x, x * x, y, x * y]) {
            *sum = *sum * MEMORY + term;
        }
    }

    fn spread(&self) -> f64 {
        let [n, x, xx, ..] = self.sums;
        if n > 0.0 { xx / n - x / n * (x / n) } else { 0.0 }
    }

    /// Seconds for `rows`, once anything was measured. With blocks of one size only, the line goes through `one` at
    /// one row.
    pub(super) fn at(&self, rows: usize, one: f64) -> Option<f64> {
        let [n, x, _, y, xy] = self.sums;
        if n <= 0.0 {
            return None;
        }
        let (mean_x, mean_y) = (x / n, y / n);
        let spread = self.spread();
        let slope = if spread > 0.25 {
            (xy / n - mean_x * mean_y) / spread
        } else if mean_x > 1.0 {
            (mean_y - one) / (mean_x - 1.0)
        } else {
            0.0
        };
        Some((mean_y + slope.max(0.0) * (rows as f64 - mean_x)).max(0.25 * one))
    }
}

/// Seconds of plain passes and of verify passes by rows. What a row adds is about the same for each: its share of the
/// arithmetic, and the experts that it brings along.
#[derive(Debug, Clone, Copy, Default)]
pub struct Costs {
    plain: Fading,
    verify: Line,
    since_plain: usize,
}

impl Costs {
    /// Takes in a cycle.
    pub fn record(&mut self, cycle: &Cycle) {
        if !(cycle.verify_seconds.is_finite() && cycle.verify_seconds > 0.0) {
            return;
        }
        if cycle.proposed == 0 {
            self.plain.add(cycle.verify_seconds);
            self.since_plain = 0;
        } else {
            self.verify.add(cycle.proposed + 1, cycle.verify_seconds);
            self.since_plain += 1;
        }
    }

    /// Seconds of a plain pass, once there was one.
    pub fn plain(&self) -> Option<f64> {
        self.plain.mean()
    }

    /// Whether a plain pass is due to be measured.
    pub fn stale(&self) -> bool {
        self.plain.weight < ENOUGH || self.since_plain >= STALE
    }

    /// Seconds of a verify pass of `rows` rows, once plain and verify passes were seen.
    pub fn verify(&self, rows: usize) -> Option<f64> {
        let plain = self.plain()?;
        self.verify.at(rows, plain).map(|seconds| seconds.max(0.5 * plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cycle(proposed: usize, seconds: f64) -> Cycle {
        Cycle { proposed, verify_seconds: seconds, ..Cycle::default() }
    }

    #[test]
    fn a_line_is_found_again() {
        let mut costs = Costs::default();
        assert_eq!((costs.plain(), costs.verify(4)), (None, None));
        costs.record(&cycle(0, 1.0));
        assert_eq!((costs.plain(), costs.verify(4)), (Some(1.0), None));
        costs.record(&cycle(15, 4.0));
        assert!((costs.verify(16).unwrap() - 4.0).abs() < 1e-9, "one size: through the plain pass");
        assert!((costs.verify(1).unwrap() - 1.0).abs() < 1e-9);
        let mut costs = Costs::default();
        costs.record(&cycle(0, 1.0));
        for rows in [2.0, 4.0, 8.0, 16.0] {
            costs.record(&cycle(rows as usize - 1, 2.0 + 0.125 * rows));
        }
        costs.record(&cycle(3, f64::NAN));
        assert!((costs.verify(12).unwrap() - 3.5).abs() < 1e-9);
    }

    #[test]
    fn a_pause_of_the_machine_does_not_last() {
        let mut costs = Costs::default();
        for _ in 0..20 {
            costs.record(&cycle(0, 1.0));
            costs.record(&cycle(3, 2.0));
            costs.record(&cycle(7, 3.0));
        }
        costs.record(&cycle(0, 1000.0));
        costs.record(&cycle(3, 1000.0));
        assert!(costs.plain().unwrap() < 1.2 && costs.verify(4).unwrap() < 2.6);
    }

    #[test]
    fn plain_passes_are_due_now_and_then() {
        let mut costs = Costs::default();
        for _ in 0..3 {
            assert!(costs.stale());
            costs.record(&cycle(0, 1.0));
        }
        for _ in 0..STALE {
            assert!(!costs.stale());
            costs.record(&cycle(3, 2.0));
        }
        assert!(costs.stale());
    }
}
