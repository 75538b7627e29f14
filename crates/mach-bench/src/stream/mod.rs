//! Streaming: what decoding and prompts reach of what the drive can do.

mod cached;
mod checks;
mod report;

use std::time::Instant;

use anyhow::Result;
use mach_experts::StreamingSummary;
use mach_models::{LogitRows, Model, NoObserver, Purpose, Segment, SequenceState};
use serde::Serialize;

pub use cached::measure_cached;
pub use checks::{Checks, measure_checks};
pub use report::{Cached, StreamReport};

use super::token_ids;

/// What to time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StreamPlan {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Prompt tokens of one pass.
    pub chunk: usize,
    /// Tokens decoded after it.
    pub decode: usize,
    /// Repeats, each over token ids of its own.
    pub reps: usize,
    /// Seed of the token ids.
    pub seed: u64,
    /// The ids are below this.
    pub ids: usize,
}

/// One phase of one repeat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Phase {
    /// Tokens that the phase ran.
    pub tokens: usize,
    /// Wall-clock seconds of the phase, idle time included.
    pub seconds: f64,
    /// Bytes read.
    pub bytes: u64,
    /// Seconds during which the drive had work.
    pub busy_seconds: f64,
    /// Seconds that computing waited for reads.
    pub stall_seconds: f64,
    /// Experts found in the bank by decoding.
    pub hits: u64,
    /// Experts read for decoding.
    pub misses: u64,
    /// What the drive could do around it: the higher of the ceilings before and after the repeat.
    pub ceiling: f64,
}

/// Phases of all repeats, and the ceilings between them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// One phase of prompt a repeat.
    pub prefill: Vec<Phase>,
    /// One phase of decoding a repeat.
    pub decode: Vec<Phase>,
    /// Before the first repeat and after each.
    pub ceilings: Vec<f64>,
}

/// Times prompts and decoding. `ceiling` measures what the drive can do now: drives that are shared with others change from
/// minute to minute. Every repeat has token ids of its own; decoding feeds ids of the same source, because a
/// model with random weights falls into loops, and loops need few experts.
pub fn measure_stream(
    model: &mut dyn Model,
    plan: &StreamPlan,
    ceiling: &mut dyn FnMut() -> Result<f64>,
) -> Result<Measured> {
    let mut found = Measured { ceilings: vec![ceiling()?], ..Measured::default() };
    for rep in 0..plan.reps {
        let ids = token_ids(plan.seed.wrapping_add(rep as u64), plan.prompt + plan.decode, plan.ids);
        let (prompt, decoded) = ids.split_at(plan.prompt);
        let mut state = model.new_state();
        let phases = [
            phase(model, &mut state, prompt, plan.chunk, Purpose::Prompt)?,
            phase(model, &mut state, decoded, 1, Purpose::Decode)?,
        ];
        let (before, after) = (found.ceilings.last().copied().unwrap_or(0.0), ceiling()?);
        found.ceilings.push(after);
        let [prefill, decode] = phases.map(|phase| Phase { ceiling: before.max(after), ..phase });
        found.prefill.push(prefill);
        found.decode.push(decode);
    }
    Ok(found)
}

/// Runs tokens in chunks and takes the difference of the counters.
pub fn phase(
    model: &mut dyn Model,
    state: &mut SequenceState,
    ids: &[u32],
    chunk: usize,
    purpose: Purpose,
) -> Result<Phase> {
    let before = snapshot(model);
    let start = Instant::now();
    for part in ids.chunks(chunk.max(1)) {
        let logits = model.forward(
            &mut [Segment { state, tokens: part, logits: LogitRows::Last, purpose }],
            &mut NoObserver,
        )?;
        std::hint::black_box(logits);
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = snapshot(model);
    Ok(Phase {
        tokens: ids.len(),
        seconds,
        bytes: after.total.reads.bytes_read - before.total.reads.bytes_read,
        busy_seconds: after.busy_seconds - before.busy_seconds,
        stall_seconds: after.total.stall_seconds - before.total.stall_seconds,
        hits: after.total.hits - before.total.hits,
        misses: after.total.misses - before.total.misses,
        ceiling: 0.0,
    })
}

fn snapshot(model: &dyn Model) -> StreamingSummary {
    model.streaming_stats().map(|stats| stats.snapshot().as_ref().clone()).unwrap_or_default()
}
