//! Figures of streaming beside their limits.

use std::fmt;

use serde::Serialize;

use super::{Checks, Phase, StreamPlan};
use crate::Machine;

/// Everything that `mach bench stream` found.
#[derive(Debug, Clone, Serialize)]
pub struct StreamReport {
    /// Version of mach.
    pub mach: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// `model_type`.
    pub model_type: String,
    /// Random weights, and so random routing: hit rates are those of uniform chance, not of a real model.
    pub random_routing: bool,
    /// What the model says of itself.
    pub facts: serde_json::Map<String, serde_json::Value>,
    /// What was timed.
    pub plan: StreamPlan,
    /// Bytes a second of random reads of one expert, the best of all depths: before the first repeat and after each.
    pub ceilings: Vec<f64>,
    /// Seconds from nothing to a model that answers, the probe of the drive included.
    pub load_seconds: f64,
    /// Bytes announced at the start.
    pub budget_bytes: usize,
    /// Most bytes of physical memory that the process has held; absent where the system does not say.
    pub peak_bytes: Option<usize>,
    /// What checking a record's checksum costs.
    pub checks: Checks,
    /// Prompts, one entry a repeat.
    pub prefill: Vec<Phase>,
    /// Decoding, one entry a repeat.
    pub decode: Vec<Phase>,
}

/// Resident against a bank with a slot for everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cached {
    /// Tokens a second, all experts in memory.
    pub resident: Vec<f64>,
    /// Tokens a second, everything in the bank.
    pub streaming: Vec<f64>,
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

impl Phase {
    /// Tokens a second.
    pub fn rate(&self) -> f64 {
        self.tokens as f64 / self.seconds.max(1e-9)
    }

    /// Bytes a second while the drive had work.
    pub fn bandwidth(&self) -> f64 {
        self.bytes as f64 / self.busy_seconds.max(1e-9)
    }

    /// Share of the time that the larger of computing and reading at the ceiling would take.
    pub fn overlap(&self) -> f64 {
        let (reading, computing) =
            (self.bytes as f64 / self.ceiling.max(1.0), self.seconds - self.stall_seconds);
        reading.max(computing) / self.seconds.max(1e-9)
    }
}

impl Cached {
    /// Streaming over resident, by medians.
    pub fn ratio(&self) -> f64 {
        median(self.streaming.iter().copied()) / median(self.resident.iter().copied()).max(1e-9)
    }
}

impl fmt::Display for StreamReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.machine)?;
        let random = if self.random_routing { " (random weights: routing by chance)" } else { "" };
        write!(f, "model: {}{random}", self.model_type)?;
        for (key, value) in self.facts.iter().filter(|(key, _)| *key != "model_type") {
            write!(f, ", {key}={}", value.as_str().unwrap_or_default())?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "drive: {} GB/s (random reads of one expert, best depth; before the first repeat and after each)",
            self.ceilings.iter().map(|c| format!("{:.2}", c / 1e9)).collect::<Vec<_>>().join(", ")
        )?;
        writeln!(f, "ready after {:.2} s", self.load_seconds)?;
        for (name, phases) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            let of = |get: &dyn Fn(&Phase) -> f64| median(phases.iter().map(get));
            let (asked, hits) = phases.iter().fold((0, 0), |(a, h), p| (a + p.hits + p.misses, h + p.hits));
            write!(
                f,
                "{name:<8} {:>8.2} tok/s  {:.2} GB/s while reading = {:.1} % of the drive, {:.1} MB a token, waited {:.0} %",
                of(&|p| p.rate()),
                of(&|p| p.bandwidth()) / 1e9,
                100.0 * of(&|p| p.bandwidth() / p.ceiling.max(1.0)),
                of(&|p| p.bytes as f64 / p.tokens.max(1) as f64) / 1e6,
                100.0 * of(&|p| p.stall_seconds / p.seconds),
            )?;
            if asked > 0 {
                write!(f, ", hit rate {:.1} %", 100.0 * hits as f64 / asked as f64)?;
            }
            if name == "prefill" {
                write!(f, ", {:.1} % of the larger of computing and reading", 100.0 * of(&|p| p.overlap()))?;
            }
            writeln!(f)?;
        }
        let token = 1.0 / median(self.decode.iter().map(Phase::rate)).max(1e-9);
        let read = median(self.decode.iter().map(|p| p.misses as f64 / p.tokens.max(1) as f64));
        let parts: Vec<String> = self
            .checks
            .joins
            .iter()
            .map(|(threads, seconds)| {
                let share = 100.0 * read * seconds / token;
                format!("{threads} threads {:.2} us = {share:.3} %", seconds * 1e6)
            })
            .collect();
        writeln!(
            f,
            "checks   {:.2} GB/s a thread; joining the sums of a record's parts, of a token's time: {}",
            self.checks.bytes_per_second / 1e9,
            parts.join(", "),
        )?;
        if let Some(peak) = self.peak_bytes {
            writeln!(
                f,
                "memory   peak {:.3} GB, announced {:.3} GB ({:+.1} %)",
                peak as f64 / 1e9,
                self.budget_bytes as f64 / 1e9,
                100.0 * (peak as f64 / self.budget_bytes.max(1) as f64 - 1.0)
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_the_limits() {
        let phase = Phase {
            tokens: 10,
            seconds: 2.0,
            bytes: 900,
            busy_seconds: 1.0,
            stall_seconds: 0.8,
            ceiling: 500.0,
            ..Phase::default()
        };
        assert_eq!((phase.rate(), phase.bandwidth()), (5.0, 900.0));
        // Reading at 500 a second takes 1.8 s, computing 1.2 s, the whole 2 s.
        assert!((phase.overlap() - 0.9).abs() < 1e-9);
        assert!((Phase { ceiling: 5000.0, ..phase }.overlap() - 0.6).abs() < 1e-9);
        let cached = Cached { resident: vec![10.0, 30.0, 20.0], streaming: vec![19.0] };
        assert_eq!(cached.ratio(), 0.95);
    }
}
