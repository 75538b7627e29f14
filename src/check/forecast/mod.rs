//! What speed to expect: passes of the checkpoint's model, or of one that stands in for it, and what the drive gives.

mod drive;
mod passes;

use mach_bench::stream::measure_checks;
use mach_bench::{CeilingOptions, Ceilings, TokenWork};
use mach_checkpoint::Checkpoint;
use mach_io::Caching;
use mach_models::{ExpertMode, LoadOptions, StreamingOptions, StreamingSource};
use serde::Serialize;

use self::drive::{Drive, LayerWork};
use self::passes::{Measured, Pass, most_rows, passes};
use super::Fit;
use super::fit::Verdict;
use crate::Exit;
use crate::args::ModelConfig;
use crate::experts::IN_FLIGHT;
use crate::sizing::Sizing;

/// Bytes of experts that stand in for all: far more than caches hold. A checkpoint with no more than that is loaded itself.
const EXPERT_BYTES: usize = 768 << 20;
/// Bytes that the measurement of memory reads over and over.
const READ_BYTES: usize = 256 << 20;

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
    let probe = Probe { checkpoint, config, context, streaming };
    let measured = probe.run(ExpertMode::Resident)?;
    let work = TokenWork::of(checkpoint, measured.at).map_err(|e| Exit::failure(format!("{e:#}")))?;
    let runs = |fit: &Fit| fit.verdict != Verdict::WontFit;
    let ceiling = dram / work.decode_bytes().max(1) as f64;
    let all = Speeds {
        prefill: measured.rows as f64 / measured.prompt.all,
        decode: 1.0 / measured.decode.all,
        decode_of_ceiling: 1.0 / measured.decode.all / ceiling,
        hit_rate: 1.0,
        hit_rate_source: "all experts are in memory",
    };
    let drive = Drive::of(checkpoint, config);
    let streamed = match drive.as_ref().filter(|_| runs(streaming)) {
        Some(drive) => Some(probe.streamed(&measured, drive, threads, hit_rate, ceiling)?),
        None => None,
    };
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

/// What is to be timed.
struct Probe<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    context: usize,
    streaming: &'a Fit,
}

impl Probe<'_> {
    /// Whether the checkpoint is small enough to be loaded itself.
    fn real(&self) -> bool {
        let experts = self.streaming.experts as u64 * self.streaming.expert_bytes as u64;
        self.checkpoint.data_bytes() + experts <= EXPERT_BYTES as u64
    }

    fn run(&self, experts: ExpertMode) -> Result<Measured, Exit> {
        let load = LoadOptions { experts, ..self.config.load.clone() };
        let mut model = match self.real() {
            true => mach_cpu::load(self.checkpoint, &load, &mut |_| ()),
            false => mach_cpu::stand_in(self.checkpoint, &load, EXPERT_BYTES),
        }
        .map_err(Exit::input)?;
        let (chunk, ids) = (self.config.prefill_chunk, self.checkpoint.text_ids());
        passes(model.as_mut(), ids, chunk, self.context, self.real()).map_err(Exit::failure)
    }

    /// A bank as the server's, or as much of it as stands for it.
    fn bank(&self, caching: Caching) -> Result<ExpertMode, Exit> {
        let source = Some(StreamingSource::Sidecar);
        let size = mach_cpu::footprint(self.checkpoint, self.config.load.activations, source);
        let most = EXPERT_BYTES / self.streaming.expert_bytes.max(1);
        Ok(ExpertMode::Streaming(StreamingOptions {
            bank_slots: self.streaming.bank_experts.min(most.max(2 * self.streaming.experts_per_token)),
            arena_slots: size.map_err(Exit::input)?.arena_slots(IN_FLIGHT),
            eviction: self.config.experts.bank_eviction,
            submission: self.config.experts.io.into(),
            caching,
            depth: IN_FLIGHT,
            ..StreamingOptions::default()
        }))
    }

    fn layers(&self) -> usize {
        self.checkpoint.config().moe_layers.iter().filter(|&&has| has).count().max(1)
    }

    /// Part of a token's experts that the bank has, and how that is known.
    fn hits(&self, measured: &Measured) -> (f64, &'static str) {
        let (seen, layers) = (measured.routed.layers(), self.layers());
        let (slots, top_k) =
            (self.streaming.bank_experts * seen / layers, self.streaming.experts_per_token / layers);
        let source = match seen == layers {
            true => "random tokens, and the bank's own policy",
            false => "the first layer's routing of random tokens, and the bank's own policy",
        };
        (measured.routed.hits(top_k, slots, self.config.experts.bank_eviction), source)
    }

    /// `ceiling`: tokens a second that memory allows.
    fn streamed(
        &self,
        measured: &Measured,
        drive: &Drive,
        threads: usize,
        hit_rate: Option<f64>,
        ceiling: f64,
    ) -> Result<Speeds, Exit> {
        let (fit, layers) = (self.streaming, self.layers());
        let (top_k, record) = (fit.experts_per_token / layers, fit.expert_bytes as f64);
        let (rate, source) = hit_rate.map_or_else(|| self.hits(measured), |rate| (rate, "given"));
        let shared = self.checkpoint.config().moe.shared_intermediate_size.is_some();
        let each = measured.decode.experts / layers as f64;
        let checked = measure_checks(fit.expert_bytes).bytes_per_second * threads.max(1) as f64;
        let work = LayerWork {
            top_k,
            all: each,
            one: each / (top_k + usize::from(shared)).max(1) as f64,
            check: record / checked,
            record,
        };
        let outside = measured.decode.all - measured.decode.experts;
        let token = |missing: f64| outside + layers as f64 * drive.seconds(&work, missing);
        // What a token takes beyond that, or less, is seen with some bank and goes with the reads.
        let seen = self.run(self.bank(drive.caching)?)?;
        let per_token = fit.experts_per_token.max(1) as f64;
        let more = (seen.mean - token(seen.misses / per_token)) / seen.misses.max(1.0);
        let missing = (1.0 - rate) * per_token;
        let decode = (token(1.0 - rate) + more * missing).max(measured.decode.all);
        // A prompt touches nearly all experts of a layer; those in the bank are not read.
        let bank = fit.bank_experts as f64 / fit.experts.max(1) as f64;
        let chunk = most_rows(self.config.prefill_chunk, self.context) as f64;
        let scale = chunk / measured.rows as f64;
        let used = fit.experts_per_token as f64 / fit.experts.max(1) as f64;
        let touched = 1.0 - (1.0 - used).powf(chunk);
        let all = touched * (1.0 - bank) * fit.experts as f64 * record / drive.best();
        let prompt = Pass { all: measured.prompt.all * scale, experts: measured.prompt.experts * scale };
        let ideal = missing * record / drive.best();
        Ok(Speeds {
            prefill: chunk / beside(prompt, all),
            decode: 1.0 / decode,
            decode_of_ceiling: (ideal / decode).max(1.0 / decode / ceiling),
            hit_rate: rate,
            hit_rate_source: source,
        })
    }
}

/// Reads go on while experts that are there compute; the rest of a pass waits for them.
fn beside(pass: Pass, read: f64) -> f64 {
    pass.all - pass.experts + pass.experts.max(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_hidden_behind_the_experts_that_are_there() {
        let pass = Pass { all: 10.0, experts: 4.0 };
        assert_eq!((beside(pass, 3.0), beside(pass, 7.0)), (10.0, 13.0));
    }
}
