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

/// The machine, and what follows.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Forecast {
    /// Bytes a second that memory is read with at most.
    pub(crate) dram_bytes_per_second: f64,
    /// Bytes that a token has to read at least, with all experts in memory.
    pub(crate) bytes_per_token: u64,
    /// Bytes a second of random reads of records; null without a sidecar.
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

#[derive(Default)]
struct Stopwatch(Duration);

impl Observer for Stopwatch {
    fn wants(&self) -> Wants {
        Wants::default()
    }

    fn experts_took(&mut self, time: Duration) {
        self.0 += time;
    }
}

fn timed(model: &mut dyn Model, segment: Segment<'_>) -> Result<Pass, ModelError> {
    let (start, mut watch) = (Instant::now(), Stopwatch::default());
    let logits = model.forward(&mut [segment], &mut watch)?;
    model.recycle(logits);
    Ok(Pass { all: start.elapsed().as_secs_f64(), experts: watch.0.as_secs_f64() })
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
    let drive = drive_speed(checkpoint, config);
    let runs = |fit: &Fit| fit.verdict != Verdict::WontFit;
    let ceiling = dram / work.decode_bytes().max(1) as f64;
    let all = Speeds {
        prefill: measured.rows as f64 / measured.prompt.all,
        decode: 1.0 / measured.decode.all,
        decode_of_ceiling: 1.0 / measured.decode.all / ceiling,
        hit_rate: 1.0,
        hit_rate_source: "all experts are in memory",
    };
    let streamed = drive.filter(|_| runs(streaming)).map(|bandwidth| {
        let bank = streaming.bank_experts as f64 / streaming.experts.max(1) as f64;
        let rate = hit_rate.unwrap_or(bank);
        let source = if hit_rate.is_some() {
            "given"
        } else {
            "the bank's share: as if all experts were equally likely"
        };
        let record = streaming.expert_bytes as f64;
        let read = (1.0 - rate) * streaming.experts_per_token as f64 * record / bandwidth;
        let decode = beside(measured.decode, read);
        // A prompt touches nearly all experts of a layer; those in the bank are not read.
        let chunks = rows_of(config, context) as f64;
        let touched =
            1.0 - (1.0 - streaming.experts_per_token as f64 / streaming.experts.max(1) as f64).powf(chunks);
        let prompt = beside(
            Pass {
                all: measured.prompt.all * chunks / measured.rows as f64,
                experts: measured.prompt.experts * chunks / measured.rows as f64,
            },
            touched * (1.0 - bank) * streaming.experts as f64 * record / bandwidth,
        );
        Speeds {
            prefill: chunks / prompt,
            decode: 1.0 / decode,
            decode_of_ceiling: (read / decode).max(1.0 / decode / ceiling),
            hit_rate: rate,
            hit_rate_source: source,
        }
    });
    Ok(Forecast {
        dram_bytes_per_second: dram,
        bytes_per_token: work.decode_bytes(),
        drive_bytes_per_second: drive,
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
    config.prefill_chunk.min(context.saturating_sub(1)).max(1)
}

struct Measured {
    prompt: Pass,
    rows: usize,
    decode: Pass,
    at: usize,
}

fn passes(model: &mut dyn Model, chunk: usize, context: usize) -> Result<Measured, ModelError> {
    let vocab = model.config().vocab_size;
    let most = chunk.min(context.saturating_sub(1)).max(1);
    let ids = token_ids(1, FIRST_ROWS + 2 * most + 4096, vocab);
    let mut ids = ids.as_slice();
    let mut take = |n: usize| {
        let (taken, rest) = ids.split_at(n.min(ids.len()));
        ids = rest;
        taken
    };
    // The first pass pays for the allocation of working memory.
    let mut state = model.new_state();
    let small = FIRST_ROWS.min(most);
    timed(model, Segment::prompt(&mut state, take(small), LogitRows::Last))?;
    let mut state = model.new_state();
    let first = timed(model, Segment::prompt(&mut state, take(small), LogitRows::Last))?;
    let affordable = (small as f64 * PROMPT.as_secs_f64() / first.all.max(1e-9)) as usize;
    let rows = affordable.clamp(small, most);
    let mut state = model.new_state();
    let prompt = timed(model, Segment::prompt(&mut state, take(rows), LogitRows::Last))?;
    let (started, mut samples) = (Instant::now(), Vec::new());
    while samples.len() < 3 || started.elapsed() < DECODING && samples.len() < 256 {
        let token = take(1);
        if token.is_empty() || state.position() + 1 >= context {
            break;
        }
        samples.push(timed(model, Segment::decode(&mut state, token))?);
    }
    samples.sort_by(|a, b| a.all.total_cmp(&b.all));
    let decode = samples.get(samples.len() / 2).copied().unwrap_or_default();
    Ok(Measured { prompt, rows, decode, at: state.position() })
}

/// Bytes a second of random reads of records, as the server's own probe finds it.
fn drive_speed(checkpoint: &Checkpoint, config: &ModelConfig) -> Option<f64> {
    let sidecar = Sidecar::open(checkpoint).ok()?;
    let found = probe(sidecar.files(), sidecar.max_stride(), config.experts.io.into(), DRIVE).ok()?;
    let at = found.table.iter().filter(|row| row.caching == found.caching && row.depth <= IN_FLIGHT);
    Some(at.map(|row| row.bandwidth).fold(found.bandwidth, f64::max))
}
