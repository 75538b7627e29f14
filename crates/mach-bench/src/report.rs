//! Speeds beside their ceilings, for people and for programs.

use std::fmt;

use mach_checkpoint::Checkpoint;
use mach_models::Model;
use serde::Serialize;

use super::{Ceilings, Machine, Samples, TimingPlan, TokenWork};

/// Everything that `mach bench` found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Version of mach.
    pub mach: &'static str,
    /// Where it ran.
    pub machine: Machine,
    /// `model_type`.
    pub model_type: String,
    /// Whether its weights are random (`mach synth`): its speed is real, its text is noise.
    pub synthetic: bool,
    /// Layers of the checkpoint.
    pub layers: usize,
    /// What the model says of itself: instruction set, threads, activations, sizes.
    pub facts: serde_json::Map<String, serde_json::Value>,
    /// What was timed.
    pub plan: TimingPlan,
    /// What a token needs.
    pub work: TokenWork,
    /// Bytes that decoding one token must touch.
    pub decode_bytes_per_token: u64,
    /// Limits before the timing.
    pub ceilings_before: Ceilings,
    /// Limits after the timing.
    pub ceilings_after: Ceilings,
    /// Limits of the card, where one runs the model; decoding is then measured against them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub card: Option<CardCeilings>,
    /// Decoding, against memory reads.
    pub decode: Speed,
    /// Prefill, against 8-bit products of the CPU; a card's are not measured.
    pub prefill: Speed,
}

/// Limits of a card with memory of its own.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CardCeilings {
    /// Bytes a second that a shader reads of its memory, before the timing.
    pub read_before_bytes_per_second: f64,
    /// After it.
    pub read_after_bytes_per_second: f64,
}

/// A speed and its share of the ceiling.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Speed {
    /// Median of the repeats.
    pub tokens_per_second: f64,
    /// The best repeat.
    pub best: f64,
    /// The worst repeat.
    pub worst: f64,
    /// All repeats, in order.
    pub samples: Vec<f64>,
    /// Bytes (decode) or 8-bit multiply-accumulates (prefill) a second at the median.
    pub rate: f64,
    /// The higher of the two measured ceilings.
    pub ceiling: f64,
    /// `rate / ceiling`; absent where the model has no such work (a checkpoint without quantized weights).
    pub fraction: Option<f64>,
}

impl Speed {
    fn new(samples: Vec<f64>, work_per_token: f64, ceiling: f64) -> Self {
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match (sorted.get(middle), sorted.get(middle.wrapping_sub(1))) {
            (Some(&high), Some(&low)) if sorted.len().is_multiple_of(2) => (low + high) / 2.0,
            (Some(&high), _) => high,
            (None, _) => 0.0,
        };
        let rate = median * work_per_token;
        Self {
            tokens_per_second: median,
            best: sorted.last().copied().unwrap_or(0.0),
            worst: sorted.first().copied().unwrap_or(0.0),
            samples,
            rate,
            ceiling,
            fraction: (rate > 0.0 && ceiling > 0.0).then(|| rate / ceiling),
        }
    }
}

impl Report {
    /// Puts work, samples and ceilings together. A fraction is of the higher ceiling, before or after.
    pub fn new(
        checkpoint: &Checkpoint,
        model: &dyn Model,
        plan: TimingPlan,
        work: TokenWork,
        samples: Samples,
        [before, after]: [Ceilings; 2],
        card: Option<CardCeilings>,
    ) -> Self {
        let read = match card {
            Some(card) => card.read_before_bytes_per_second.max(card.read_after_bytes_per_second),
            None => before.best_read().max(after.best_read()),
        };
        let dot = if card.is_some() { 0.0 } else { before.best_dot().max(after.best_dot()) };
        Self {
            mach: env!("CARGO_PKG_VERSION"),
            machine: Machine::this(),
            model_type: model.config().model_type.clone(),
            synthetic: checkpoint.dir().join("synthetic.json").is_file(),
            layers: model.config().layers.len(),
            facts: model
                .card()
                .pairs()
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value.into()))
                .collect(),
            plan,
            work,
            decode_bytes_per_token: work.decode_bytes(),
            card,
            decode: Speed::new(samples.decode, work.decode_bytes() as f64, read),
            prefill: Speed::new(samples.prefill, work.int8_macs as f64, dot),
            ceilings_before: before,
            ceilings_after: after,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, work, .. } = self;
        write!(f, "{}", self.machine)?;
        let random = if self.synthetic { " (synthetic: random weights)" } else { "" };
        write!(f, "model: {}{random}, {} layers", self.model_type, self.layers)?;
        for (key, value) in self.facts.iter().filter(|(key, _)| *key != "model_type" && *key != "layers") {
            write!(f, ", {key}={}", value.as_str().unwrap_or_default())?;
        }
        writeln!(f)?;
        write!(f, "ceilings before\n{}", self.ceilings_before)?;
        write!(f, "ceilings after\n{}", self.ceilings_after)?;
        if let Some(card) = self.card {
            writeln!(
                f,
                "memory of the card, read by a shader: {:.1} GB/s before, {:.1} after",
                card.read_before_bytes_per_second / 1e9,
                card.read_after_bytes_per_second / 1e9
            )?;
        }
        let mb = |bytes: u64| bytes as f64 / 1e6;
        writeln!(
            f,
            "a decoded token touches {:.1} MB: resident {:.1}, experts {:.1}, head {:.1}, embedding {:.3}, \
             keys and values {:.1}, recurrent state {:.1} (context {})",
            mb(self.decode_bytes_per_token),
            mb(work.resident_bytes),
            mb(work.expert_bytes),
            mb(work.head_bytes),
            mb(work.embedding_bytes),
            mb(work.kv_bytes),
            mb(work.recurrent_bytes),
            work.context
        )?;
        writeln!(
            f,
            "a prompt token costs {:.1} M int8 products and {:.1} M float ones",
            work.int8_macs as f64 / 1e6,
            work.float_macs as f64 / 1e6
        )?;
        let line =
            |f: &mut fmt::Formatter<'_>, name: &str, tokens, speed: &Speed, unit: &str, limit: &str| {
                write!(
                    f,
                    "{name:<7} {tokens:>6} tokens  {:>9.2} tok/s (median of {}; {:.2} to {:.2})",
                    speed.tokens_per_second,
                    speed.samples.len(),
                    speed.worst,
                    speed.best
                )?;
                match speed.fraction {
                    Some(part) => writeln!(
                        f,
                        "  {:.1} {unit} = {:.1} % of the {:.1} {unit} that {limit} can do",
                        speed.rate / 1e9,
                        100.0 * part,
                        speed.ceiling / 1e9
                    ),
                    None => writeln!(f),
                }
            };
        line(f, "prefill", plan.prompt, &self.prefill, "GMAC/s", "the int8 units")?;
        line(
            f,
            "decode",
            plan.decode,
            &self.decode,
            "GB/s",
            if self.card.is_some() { "the card's memory" } else { "memory" },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Speed;

    #[test]
    fn the_median_and_its_share() {
        let speed = Speed::new(vec![30.0, 10.0, 20.0], 2.0, 80.0);
        assert_eq!((speed.tokens_per_second, speed.worst, speed.best), (20.0, 10.0, 30.0));
        assert_eq!((speed.rate, speed.fraction), (40.0, Some(0.5)));
        assert_eq!(speed.samples, [30.0, 10.0, 20.0]);
        assert_eq!(Speed::new(vec![1.0, 4.0], 0.0, 80.0).tokens_per_second, 2.5);
        assert_eq!(Speed::new(vec![1.0, 4.0], 0.0, 80.0).fraction, None);
        assert_eq!(Speed::new(vec![], 1.0, 1.0).tokens_per_second, 0.0);
    }
}
