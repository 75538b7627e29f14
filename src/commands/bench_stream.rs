//! `mach bench stream`: what streaming reaches of what the drive can do.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use mach_checkpoint::Checkpoint;
use mach_experts::Sidecar;
use mach_io::probe;

use crate::args::{ModelArgs, ModelConfig};
use crate::{Exit, experts, memory};
use mach_bench::Machine;
use mach_bench::stream::{
    Measured, StreamPlan, StreamReport, measure_cached, measure_checks, measure_stream,
};

/// Time of one measurement of the drive.
const PROBE: Duration = Duration::from_millis(1500);

/// Arguments of `mach bench stream`.
#[derive(Debug, Clone, Args)]
pub(super) struct StreamArgs {
    /// The model
    #[command(flatten)]
    model: ModelArgs,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens decoded after it
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    decode: u32,
    /// Repeats; every sample is in the JSON
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    reps: u32,
    /// Seed of the pseudo-random token ids
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Load the model a second time with all experts in memory, and compare with a bank that holds all of them
    #[arg(long)]
    cached: bool,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs `mach bench stream`.
pub(super) fn run(args: StreamArgs) -> Result<()> {
    let plain = |exit: Exit| anyhow::anyhow!(exit.message);
    let mut config = args.model.clone().validate().map_err(plain)?;
    // Streaming is what is timed here, however much memory there is.
    if config.experts.expert_residency.is_none() && !config.experts.no_streaming {
        config.experts.streaming = true;
    }
    let checkpoint = Checkpoint::open(&config.checkpoint)?;
    let plan = StreamPlan {
        prompt: args.prompt as usize,
        chunk: config.prefill_chunk,
        decode: args.decode as usize,
        reps: args.reps as usize,
        seed: args.seed,
        ids: checkpoint.text_ids(),
    };
    if args.cached {
        return cached(&checkpoint, &config, plan, args.json);
    }
    let started = Instant::now();
    let prepared = experts::prepare(&checkpoint, &config, crate::sizing::Beside::alone()).map_err(plain)?;
    if prepared.residency == mach_server::Residency::Stacked {
        bail!("all experts fit memory; say --streaming");
    }
    let mut model = mach_cpu::load(&checkpoint, &prepared.load, &mut |_| ())?;
    let load_seconds = started.elapsed().as_secs_f64();
    let Measured { prefill, decode, ceilings } =
        measure_stream(model.as_mut(), &plan, &mut || ceiling(&checkpoint, &config))?;
    let facts = model.card().pairs().into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect();
    let peak_bytes = memory::peak();
    drop(model);
    let record = Sidecar::open(&checkpoint).map_or(1 << 20, |sidecar| sidecar.max_stride());
    print(
        &args,
        &StreamReport {
            mach: env!("CARGO_PKG_VERSION"),
            machine: Machine::this(),
            model_type: checkpoint.config().model_type.clone(),
            random_routing: checkpoint.is_synthetic(),
            facts,
            plan,
            ceilings,
            load_seconds,
            budget_bytes: prepared.budget.total(),
            peak_bytes,
            checks: measure_checks(record),
            prefill,
            decode,
        },
    )
}

fn print(args: &StreamArgs, report: &StreamReport) -> Result<()> {
    if args.json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

/// The best that random reads of one expert reach.
fn ceiling(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<f64> {
    let sidecar = Sidecar::open(checkpoint)?;
    let found = probe(sidecar.files(), sidecar.max_stride(), config.experts.io.into(), PROBE)?;
    Ok(found.table.iter().map(|row| row.bandwidth).fold(0.0, f64::max))
}

/// Two models side by side, decoding in turn.
fn cached(checkpoint: &Checkpoint, config: &ModelConfig, plan: StreamPlan, json: bool) -> Result<()> {
    let found = measure_cached(checkpoint, &config.load, config.experts.bank_eviction, &plan)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        println!("resident  {:.2?} tok/s", found.resident);
        println!("bank      {:.2?} tok/s", found.streaming);
        println!("ratio     {:.3}", found.ratio());
    }
    Ok(())
}
