//! `mach bench`: how fast this machine runs a checkpoint, and how fast it could.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use mach_checkpoint::Checkpoint;
use mach_models::{Activations, LoadOptions};

use crate::device::{DeviceArg, DeviceWish};

use super::bench_grammar::GrammarArgs;
use super::bench_kv::KvArgs;
use super::bench_prefix::PrefixArgs;
use super::bench_serve::ServeArgs;
use super::bench_specdec::SpecdecArgs;
use super::bench_stream::StreamArgs;
use mach_bench::{CardCeilings, CeilingOptions, Ceilings, Machine, Report, TimingPlan, TokenWork, measure};

/// Arguments of `mach bench`.
#[derive(Debug, Clone, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct BenchArgs {
    /// Checkpoint directory to time.
    #[arg(value_name = "CKPT", required = true)]
    checkpoint: Option<PathBuf>,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens decoded after the prompt.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    decode: u32,
    /// Prompt tokens that one forward pass takes.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// Repeats of prompt and decode; the median is reported, the samples are kept.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    reps: u32,
    /// Seed of the prompt's pseudo-random token ids.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Exact float32 activations instead of int8.
    #[arg(long)]
    f32_activations: bool,
    /// Instruction set (scalar, avx2, avx-vnni, avx512, neon, neon-dotprod) instead of the best one.
    #[arg(long)]
    isa: Option<String>,
    /// What runs the model: cpu, gpu or gpu:N.
    #[arg(long, default_value_t = DeviceArg::Cpu)]
    device: DeviceArg,
    /// On a GPU, print where the time of a prompt and of a token goes, kernel by kernel, instead.
    #[cfg(feature = "gpu")]
    #[arg(long)]
    kernels: bool,
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Measure the ceilings only: memory read bandwidth and 8-bit products.
    Ceilings(CommonArgs),
    /// Speculation: the cost of a verify pass by its rows, and answers with and without it.
    Specdec(Box<SpecdecArgs>),
    /// Streaming: decoding and prompts beside what the drive can do.
    Stream(Box<StreamArgs>),
    /// Grammars: what holding an answer to one costs beside decoding it.
    Grammar(Box<GrammarArgs>),
    /// The prefix cache: time to the first token cold, from memory, from disk; what saving costs.
    Prefix(Box<PrefixArgs>),
    /// Quantized keys and values: size, divergence, speed.
    Kv(Box<KvArgs>),
    /// Serving: HTTP, template and text over a model that takes no time.
    Serve(Box<ServeArgs>),
}

#[derive(Debug, Clone, Args)]
struct CommonArgs {
    /// Threads; 0 means all available.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// MiB of memory that the bandwidth measurement reads; many times the last-level cache.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    buffer_mib: u32,
    /// Print one JSON document instead of a table.
    #[arg(long)]
    json: bool,
}

impl CommonArgs {
    fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        }
    }

    fn ceiling_options(&self) -> CeilingOptions {
        CeilingOptions { threads: self.threads(), buffer_bytes: (self.buffer_mib as usize) << 20, reps: 5 }
    }
}

/// Runs `mach bench`.
pub fn run(args: BenchArgs) -> Result<()> {
    match args.what {
        Some(What::Specdec(args)) => return super::bench_specdec::run(*args),
        Some(What::Stream(args)) => return super::bench_stream::run(*args),
        Some(What::Grammar(args)) => return super::bench_grammar::run(*args),
        Some(What::Prefix(args)) => return super::bench_prefix::run(*args),
        Some(What::Kv(args)) => return super::bench_kv::run(*args),
        Some(What::Serve(args)) => return super::bench_serve::run(*args),
        _ => {}
    }
    if let Some(What::Ceilings(common)) = &args.what {
        let machine = Machine::this();
        let ceilings = Ceilings::measure(&common.ceiling_options())?;
        if common.json {
            println!(
                "{}",
                serde_json::to_string_pretty(&serde_json::json!({
                    "mach": env!("CARGO_PKG_VERSION"), "machine": machine, "ceilings": ceilings
                }))?
            );
        } else {
            print!("{machine}{ceilings}");
        }
        return Ok(());
    }
    let Some(directory) = &args.checkpoint else { bail!("no checkpoint directory given") };
    let directory = &crate::hub::locate(directory).map_err(|exit| anyhow::anyhow!(exit.message))?;
    let checkpoint =
        Checkpoint::open(directory).with_context(|| format!("cannot open {}", directory.display()))?;
    let plan = TimingPlan {
        prompt: args.prompt as usize,
        decode: args.decode as usize,
        chunk: args.chunk as usize,
        reps: args.reps as usize,
        seed: args.seed,
        ids: checkpoint.text_ids(),
    };
    let options = args.common.ceiling_options();
    let load = LoadOptions {
        activations: if args.f32_activations { Activations::F32 } else { Activations::Int8 },
        threads: options.threads,
        isa: args.isa.clone(),
        ..LoadOptions::default()
    };
    let wish = DeviceWish { device: args.device, require_exact: false };
    let device = wish.choose(&checkpoint, &load).map_err(|exit| anyhow::anyhow!(exit.message))?;
    #[cfg(feature = "gpu")]
    if args.kernels {
        return super::bench_kernels::run(&device, &checkpoint, &load, plan.prompt);
    }
    let work = TokenWork::of(&checkpoint, plan.mean_decode_context())?;
    let before = Ceilings::measure(&options)?;
    let mut model = device.load(&checkpoint, &load, &mut |_| {})?;
    let card = |at: &str| device.read_rate().map_err(|e| anyhow::anyhow!("reads {at}: {e}"));
    let card_before = card("before the timing")?;
    let samples = measure(model.as_mut(), &plan)?;
    let card_after = card("after the timing")?;
    let after = Ceilings::measure(&options)?;
    let card = card_before.zip(card_after).map(|(before, after)| CardCeilings {
        read_before_bytes_per_second: before,
        read_after_bytes_per_second: after,
    });
    let report = Report::new(&checkpoint, model.as_ref(), plan, work, samples, [before, after], card);
    if args.common.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn parse(words: &[&str]) -> Result<BenchArgs, clap::Error> {
        Cli::try_parse_from([&["bench"], words].concat()).map(|cli| cli.bench)
    }

    #[test]
    fn a_directory_or_the_word_ceilings() {
        let args = parse(&["some/dir", "--threads", "2", "--decode", "8"]).unwrap();
        assert_eq!(args.checkpoint, Some(PathBuf::from("some/dir")));
        assert_eq!((args.common.threads(), args.decode, args.prompt), (2, 8, 512));
        let args = parse(&["ceilings", "--threads", "3", "--json"]).unwrap();
        let Some(What::Ceilings(common)) = args.what else { panic!("not the ceilings") };
        assert!(common.json && common.threads() == 3);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["dir", "--reps", "0"]).is_err());
        assert!(parse(&["dir", "--prompt", "-1"]).is_err());
    }

    #[test]
    fn a_missing_checkpoint_is_an_error_that_names_it() {
        let error = run(parse(&["no/such/checkpoint"]).unwrap()).unwrap_err();
        assert!(format!("{error:#}").contains("no/such/checkpoint"));
    }
}
