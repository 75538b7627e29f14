//! What speed to expect: passes of a model that stands in for the checkpoint's, and what the drive gives.

use std::time::{Duration, Instant};

use mach_bench::{CeilingOptions, Ceilings, TokenWork, token_ids};
use mach_checkpoint::Checkpoint;
use mach_experts::Sidecar;
use mach_io::probe;
use mach_models::{LogitRows, Model, ModelError, Observer, Segment, Wants};
use serde::Serialize;

use super::Fit;
use super::fit::Verdict;
use crate::Exit;
use crate::args::ModelConfig;
use crate::experts::IN_FLIGHT;
use crate::sizing::Sizing;

/// Bytes of experts that stand in for all: far more than caches hold.
const EXPERT_BYTES: usize = 768 << 20;
/// Bytes that the measurement of memory reads over and over.
const READ_BYTES: usize = 256 << 20;
/// Time of the decoding that is measured, and of a prompt at most.
const DECODING: Duration = Duration::from_millis(600);
const PROMPT: Duration = Duration::from_millis(1500);
/// Time for the drive.
const DRIVE: Duration = Duration::from_millis(300);
/// Rows of the prompt that tells how long a prompt may be.
const FIRST_ROWS: usize = 32;
/// Most tokens that are decoded.
const DECODED: usize = 512;

/// The machine, and what follows.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Forecast {
    /// Bytes a second that memory is read with at most.
    pub(crate) dram_bytes_per_second: f64,
    /// Bytes that a token has to read at least, with all experts in memory.
    pub(crate) bytes_per_token: u64,
    /// Bytes a second of random reads of records at most; null without a sidecar.
    pub(crate) drive_bytes_per_second: Option<f64>,
    /// Tokens that are in the conversation while it is decoded.
    pub(crate) at_tokens: usize,
    /// Rows of the prompt that was timed.
    pub(crate) prompt_rows: usize,
    pub(crate) resident: Option<Speeds>,
    pub(crate) streaming: Option<Speeds>,
}

/// Tokens a second, without a draft.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Speeds {
    pub(crate) prefill: f64,
    pub(crate) decode: f64,
    /// Part of what memory, or the drive, could do at most.
    pub(crate) decode_of_ceiling: f64,
    /// Part of a token's experts that is assumed to be in the bank.
    pub(crate) hit_rate: f64,
    pub(crate) hit_rate_source: &'static str,
}

/// Seconds.
#[derive(Debug, Clone, Copy, Default)]
struct Pass {
    all: f64,
    experts: f64,
}

/// Time of experts, and which ones the first layer that has any was routed to.
#[derive(Default)]
struct Watch {
    experts: Duration,
    layer: Option<usize>,
    routed: Vec<u32>,
}

impl Observer for Watch {
    fn wants(&self) -> Wants {
        Wants { routed: true, ..Wants::default() }
    }

    fn routed(&mut self, layer: usize, experts: &[u32], _weights: &[f32]) {
        if *self.layer.get_or_insert(layer) == layer {
            self.routed.extend_from_slice(experts);
        }
    }

    fn experts_took(&mut self, time: Duration) {
        self.experts += time;
    }
}

fn timed(model: &mut dyn Model, segment: Segment<'_>, watch: &mut Watch) -> Result<Pass, ModelError> {
    let (start, before) = (Instant::now(), watch.experts);
    let logits = model.forward(&mut [segment], watch)?;
    model.recycle(logits);
    Ok(Pass { all: start.elapsed().as_secs_f64(), experts: (watch.experts - before).as_secs_f64() })
}

/// Measures this machine, and says what speeds follow for the ways of keeping experts that fit (all in memory, a bank).
pub(crate) fn of(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    sizing: &Sizing<'_>,
    context: usize,
    fits: [&Fit; 2],
    hit_rate: Option<f64>,
) -> Result<Forecast, Exit> {
    let [resident, streaming] = fits;
    let threads = sizing.threads();
    let options = CeilingOptions { threads, buffer_bytes: READ_BYTES, reps: 1 };
    let dram = Ceilings::measure(&options).map_err(|e| Exit::failure(format!("{e:#}")))?.best_read();
    let mut model = mach_cpu::stand_in(checkpoint, &config.load, EXPERT_BYTES).map_err(Exit::input)?;
    let measured = passes(model.as_mut(), config.prefill_chunk, context).map_err(Exit::failure)?;
    drop(model);
    let work = TokenWork::of(checkpoint, measured.at).map_err(|e| Exit::failure(format!("{e:#}")))?;
    let drive = Drive::of(checkpoint, config);
    let runs = |fit: &Fit| fit.verdict != Verdict::WontFit;
    let ceiling = dram / work.decode_bytes().max(1) as f64;
    let all = Speeds {
        prefill: measured.rows as f64 / measured.prompt.all,
        decode: 1.0 / measured.decode.all,
        decode_of_ceiling: 1.0 / measured.decode.all / ceiling,
        hit_rate: 1.0,
        hit_rate_source: "all experts are in memory",
    };
    let layers = checkpoint.config().moe_layers.iter().filter(|&&has| has).count().max(1);
    let top_k = streaming.experts_per_token / layers;
    let streamed = drive.as_ref().filter(|_| runs(streaming)).map(|drive| {
        let bank = streaming.bank_experts as f64 / streaming.experts.max(1) as f64;
        let (rate, source) = match hit_rate {
            Some(rate) => (rate, "given"),
            None => (
                hits(&measured.routed, top_k, streaming.bank_experts / layers),
                "the first layer's routing of random tokens, and a bank that keeps what was used last",
            ),
        };
        let record = streaming.expert_bytes as f64;
        let read = layers as f64 * drive.seconds(top_k, 1.0 - rate, record);
        let decode = beside(measured.decode, read);
        // A prompt touches nearly all experts of a layer; those in the bank are not read.
        let chunk = rows_of(config, context) as f64;
        let scale = chunk / measured.rows as f64;
        let used = streaming.experts_per_token as f64 / streaming.experts.max(1) as f64;
        let touched = 1.0 - (1.0 - used).powf(chunk);
        let all = touched * (1.0 - bank) * streaming.experts as f64 * record / drive.best();
        let prompt = Pass { all: measured.prompt.all * scale, experts: measured.prompt.experts * scale };
        let ideal = (1.0 - rate) * streaming.experts_per_token as f64 * record / drive.best();
        Speeds {
            prefill: chunk / beside(prompt, all),
            decode: 1.0 / decode,
            decode_of_ceiling: (ideal / decode).max(1.0 / decode / ceiling),
            hit_rate: rate,
            hit_rate_source: source,
        }
    });
    Ok(Forecast {
        dram_bytes_per_second: dram,
        bytes_per_token: work.decode_bytes(),
        drive_bytes_per_second: drive.as_ref().map(Drive::best),
        at_tokens: measured.at,
        prompt_rows: measured.rows,
        resident: Some(all).filter(|_| runs(resident)),
        streaming: streamed,
    })
}

/// Reads go on while experts that are there compute; the rest of a pass waits for them.
fn beside(pass: Pass, read: f64) -> f64 {
    pass.all - pass.experts + pass.experts.max(read)
}

fn rows_of(config: &ModelConfig, context: usize) -> usize {
    most_rows(config.prefill_chunk, context)
}

/// Rows of a prompt that leaves half of the context for what is decoded.
fn most_rows(chunk: usize, context: usize) -> usize {
    chunk.min(context / 2).max(1)
}

/// Part of the experts wanted that a bank of `slots` for the layer has, which forgets what was used longest ago. `routed` are the
/// experts of token after token.
fn hits(routed: &[u32], top_k: usize, slots: usize) -> f64 {
    let mut recent: Vec<u32> = Vec::new();
    let (mut hit, mut all) = (0usize, 0usize);
    // What an empty bank misses at first says nothing of later.
    let counts_from = routed.len() / 4;
    for (i, token) in routed.chunks(top_k.max(1)).enumerate() {
        for expert in token {
            let at = recent.iter().position(|kept| kept == expert);
            if i * top_k >= counts_from {
                all += 1;
                hit += usize::from(at.is_some());
            }
            if let Some(at) = at {
                recent.remove(at);
            } else if recent.len() >= slots && !recent.is_empty() {
                recent.remove(0);
            }
            if slots > 0 {
                recent.push(*expert);
            }
        }
    }
    hit as f64 / all.max(1) as f64
}

struct Measured {
    prompt: Pass,
    rows: usize,
    decode: Pass,
    at: usize,
    /// Experts of the first layer that has any, token by token.
    routed: Vec<u32>,
}

fn passes(model: &mut dyn Model, chunk: usize, context: usize) -> Result<Measured, ModelError> {
    let vocab = model.config().vocab_size;
    let most = most_rows(chunk, context);
    let ids = token_ids(1, 2 * FIRST_ROWS + most + DECODED, vocab);
    let mut ids = ids.as_slice();
    let mut take = |n: usize| {
        let (taken, rest) = ids.split_at(n.min(ids.len()));
        ids = rest;
        taken
    };
    // The first pass pays for the allocation of working memory.
    let mut watch = Watch::default();
    let mut prompt = |model: &mut dyn Model, rows: usize, watch: &mut Watch| {
        let mut state = model.new_state();
        timed(model, Segment::prompt(&mut state, take(rows), LogitRows::Last), watch)
            .map(|pass| (pass, state))
    };
    let small = FIRST_ROWS.min(most);
    prompt(model, small, &mut watch)?;
    let (first, _) = prompt(model, small, &mut watch)?;
    let affordable = (small as f64 * PROMPT.as_secs_f64() / first.all.max(1e-9)) as usize;
    let rows = affordable.clamp(small, most);
    let (whole, mut state) = prompt(model, rows, &mut watch)?;
    let (started, mut samples) = (Instant::now(), Vec::new());
    while samples.is_empty() || started.elapsed() < DECODING {
        let token = take(1);
        if token.is_empty() || state.position() >= context.max(4) {
            break;
        }
        samples.push(timed(model, Segment::decode(&mut state, token), &mut watch)?);
    }
    samples.sort_by(|a, b| a.all.total_cmp(&b.all));
    let decode = samples.get(samples.len() / 2).copied().unwrap_or_default();
    Ok(Measured { prompt: whole, rows, decode, at: state.position(), routed: watch.routed })
}

/// Reads of records by how many are in flight, as the server's own probe finds them.
struct Drive {
    /// Reads in flight and bytes a second, rising.
    speeds: Vec<(usize, f64)>,
}

impl Drive {
    fn of(checkpoint: &Checkpoint, config: &ModelConfig) -> Option<Self> {
        let sidecar = Sidecar::open(checkpoint).ok()?;
        let found = probe(sidecar.files(), sidecar.max_stride(), config.experts.io.into(), DRIVE).ok()?;
        let mut speeds: Vec<(usize, f64)> = found
            .table
            .iter()
            .filter(|row| row.caching == found.caching && row.depth <= IN_FLIGHT)
            .map(|row| (row.depth, row.bandwidth))
            .collect();
        speeds.sort_by_key(|&(depth, _)| depth);
        (!speeds.is_empty()).then_some(Drive { speeds })
    }

    fn best(&self) -> f64 {
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

    /// Seconds that a layer waits for its `top_k` experts of `bytes` bytes, each of which is missing with this chance: those of a layer
    /// are read side by side, and no layer can begin before the one before it.
    fn seconds(&self, top_k: usize, missing: f64, bytes: f64) -> f64 {
        let mut ways = (1.0 - missing).powi(i32::try_from(top_k).unwrap_or(i32::MAX));
        let mut seconds = 0.0;
        for reads in 1..=top_k {
            ways = if missing >= 1.0 {
                if reads == top_k { 1.0 } else { 0.0 }
            } else {
                ways * (top_k + 1 - reads) as f64 / reads as f64 * missing / (1.0 - missing)
            };
            seconds += ways * reads as f64 * bytes / self.speed(reads);
        }
        seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bank_that_holds_all_misses_nothing_and_one_that_holds_none_everything() {
        let routed: Vec<u32> = (0..400).map(|i| i * 7 % 10).collect();
        assert_eq!(hits(&routed, 2, 10), 1.0);
        assert_eq!(hits(&routed, 2, 0), 0.0);
        // A circle of ten never finds its next in a bank of nine that forgets the oldest.
        assert_eq!(hits(&routed, 2, 9), 0.0);
        let skewed: Vec<u32> = (0..400).map(|i| if i % 2 == 0 { 3 } else { i % 40 }).collect();
        let rate = hits(&skewed, 2, 4);
        assert!((0.5..0.6).contains(&rate), "{rate}");
    }

    #[test]
    fn a_layer_waits_for_the_reads_it_lacks() {
        let drive = Drive { speeds: vec![(1, 1e9), (4, 2e9), (8, 2e9)] };
        assert_eq!((drive.best(), drive.speed(1), drive.speed(4), drive.speed(64)), (2e9, 1e9, 2e9, 2e9));
        assert!((drive.speed(2) - 1.333e9).abs() < 1e6);
        assert_eq!(drive.seconds(8, 0.0, 1e6), 0.0);
        assert!((drive.seconds(8, 1.0, 1e6) - 4e-3).abs() < 1e-12);
        // Of one expert that is missing every other time.
        assert!((drive.seconds(1, 0.5, 1e6) - 0.5e-3).abs() < 1e-12);
        let (few, more) = (drive.seconds(8, 0.1, 1e6), drive.seconds(8, 0.2, 1e6));
        assert!(few > 0.8 * 1e6 / 2e9 && few < more && more < 4e-3, "{few} {more}");
    }

    #[test]
    fn reads_are_hidden_behind_the_experts_that_are_there() {
        let pass = Pass { all: 10.0, experts: 4.0 };
        assert_eq!((beside(pass, 3.0), beside(pass, 7.0)), (10.0, 13.0));
    }
}
