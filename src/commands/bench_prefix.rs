//! `mach bench prefix`: what the prefix cache brings and costs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use mach_checkpoint::Checkpoint;
use mach_cpu::footprint;
use mach_engine::TextTokenizer;
use mach_models::{ExpertMode, LoadOptions, StreamingOptions, StreamingSource};

use mach_bench::Machine;
use mach_bench::prefix::{FreshPlan, FreshRow, PrefixPlan, measure_fresh, measure_prefix};

/// Prompt lengths where none are given.
const PROMPTS: [usize; 3] = [1024, 4096, 8192];

/// Arguments of `mach bench prefix`.
#[derive(Debug, Clone, Args)]
pub(super) struct PrefixArgs {
    /// Checkpoint directory to time
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Empty directory on the drive to time, what is written there stays; without it one beside other temporary files, which goes again
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Directory of the tokenizer, for checkpoints without one
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Prompt lengths; those of 1024,4096,8192 that fit the model's context if not given
    #[arg(long, value_delimiter = ',', value_name = "TOKENS")]
    prompts: Vec<usize>,
    /// Tokens that follow a cached prompt
    #[arg(long, default_value_t = 16, value_name = "TOKENS")]
    tail: usize,
    /// Tokens decoded while a save runs
    #[arg(long, default_value_t = 128, value_name = "TOKENS")]
    decode: usize,
    /// Repeats
    #[arg(long, default_value_t = 3, value_name = "N")]
    reps: usize,
    /// Stream experts through a bank with this share of them, and time decoding after a restore in a fresh process instead
    #[arg(long, value_name = "SHARE")]
    bank_share: Option<f64>,
    /// Threads; 0 means all available
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(mut args: PrefixArgs) -> Result<()> {
    if args.reps == 0 || args.tail == 0 || args.decode < 2 || args.prompts.iter().any(|&n| n < 256) {
        bail!("--reps and --tail must be at least 1, --decode 2, --prompts 256");
    }
    let open =
        |dir: &PathBuf| Checkpoint::open(dir).with_context(|| format!("cannot open {}", dir.display()));
    let checkpoint = open(&args.checkpoint)?;
    // A prompt and what follows it must fit the model.
    let most = checkpoint.config().max_position_embeddings.saturating_sub(args.tail + args.decode);
    if args.prompts.is_empty() {
        args.prompts = PROMPTS.into_iter().filter(|&tokens| tokens <= most).collect();
    }
    if let Some(longest) = args.prompts.iter().find(|&&tokens| tokens > most) {
        bail!(
            "--prompts: {longest} tokens and what follows are more than the model's context; at most {most}"
        );
    }
    let tokenizer = match &args.tokenizer {
        Some(dir) => open(dir)?.tokenizer()?,
        None => checkpoint.tokenizer().context("no tokenizer; --tokenizer names a directory with one")?,
    };
    let tokenizer = Arc::new(TextTokenizer::new(tokenizer, checkpoint.config().vocab_size)?);
    let passing = tempfile::Builder::new().prefix("mach-bench-").tempdir()?;
    let dir = args.dir.clone().unwrap_or_else(|| passing.path().to_owned());
    if let Some(share) = args.bank_share {
        return fresh(&args, &dir, &checkpoint, &tokenizer, share);
    }
    let load = LoadOptions { threads: args.threads, ..LoadOptions::default() };
    let model = mach_cpu::load(&checkpoint, &load, &mut |_| {})?;
    let layers = model.config().layers.len();
    let (prompts, tail, decode, reps) = (args.prompts, args.tail, args.decode, args.reps);
    let plan = PrefixPlan { prompts, tail, decode, reps, conversations: 1000 };
    let report = measure_prefix(model, tokenizer, &dir, plan)?;
    let machine = Machine::this();
    if args.json {
        let synthetic = checkpoint.dir().join("synthetic.json").is_file();
        let whole = serde_json::json!({
            "mach": env!("CARGO_PKG_VERSION"), "machine": machine, "layers": layers,
            "synthetic": synthetic, "prefix": report,
        });
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(());
    }
    print!("{machine}");
    println!("{layers} layers; time to the first token in seconds, and how many times faster than cold");
    println!(" tokens     cold         same (L1)      + tail (L1)        same (L2)   restore, of the drive");
    for row in &report.rows {
        println!(
            "{:>7} {:>8.3} {:>9.4} {:>6.0}x {:>9.4} {:>6.0}x {:>9.4} {:>6.0}x   {:.2} GB/s, {:.0} %",
            row.tokens,
            row.cold_seconds,
            row.l1_seconds,
            row.l1_ratio,
            row.l1_tail_seconds,
            row.l1_tail_ratio,
            row.l2_seconds,
            row.l2_ratio,
            row.l2_bytes_per_second / 1e9,
            100.0 * row.l2_fraction,
        );
    }
    println!("saving costs {:.2} % of decode while it runs", 100.0 * report.save_cost);
    if let Some(seconds) = report.lookup_p99_seconds {
        println!("lookup among 1000 conversations: {:.3} ms (p99)", 1e3 * seconds);
    }
    Ok(())
}

/// Decoding with an empty bank against decoding with a warm one.
fn fresh(
    args: &PrefixArgs,
    dir: &Path,
    checkpoint: &Checkpoint,
    tokenizer: &Arc<TextTokenizer>,
    share: f64,
) -> Result<()> {
    if !(0.0..=1.0).contains(&share) {
        bail!("--bank-share must be between 0 and 1");
    }
    let Some(&prompt) = args.prompts.first() else { bail!("--prompts: none") };
    let defaults = LoadOptions::default();
    let size = footprint(checkpoint, defaults.activations, Some(StreamingSource::Sidecar))?;
    let streaming = StreamingOptions {
        bank_slots: ((size.experts as f64 * share) as usize).max(size.working_set),
        arena_slots: size.arena_slots(64),
        depth: 64,
        ..StreamingOptions::default()
    };
    let load = LoadOptions { threads: args.threads, experts: ExpertMode::Streaming(streaming), ..defaults };
    let load = || Ok(mach_cpu::load(checkpoint, &load, &mut |_| {})?);
    let plan = FreshPlan { prompt, decode: args.decode, bank_share: share, reps: args.reps };
    let report = measure_fresh(&load, tokenizer, dir, plan)?;
    let machine = Machine::this();
    let synthetic = checkpoint.is_synthetic();
    if args.json {
        let whole = serde_json::json!({
            "mach": env!("CARGO_PKG_VERSION"), "machine": machine, "random_routing": synthetic, "fresh": report,
        });
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(());
    }
    print!("{machine}");
    println!(
        "{} tokens after a prompt of {prompt}, a bank of {:.0} % of the experts",
        args.decode,
        100.0 * share
    );
    println!("                              first token    decode  hits at the end  brought  of warm");
    let line = |name: &str, row: &FreshRow, share: f64| {
        let mid = |v: &[f64]| {
            let mut v = v.to_vec();
            v.sort_by(f64::total_cmp);
            v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
        };
        println!(
            "{name:<28} {:>10.4} s {:>7.3} s {:>14.1} % {:>8} {:>6.1} %",
            mid(&row.first_seconds),
            mid(&row.decode_seconds),
            100.0 * row.hit_rate,
            row.background_reads,
            100.0 * share,
        );
    };
    line("warm", &report.warm, 1.0);
    line("fresh, experts brought back", &report.fresh, report.fresh_share);
    line("fresh, nothing brought back", &report.without, report.without_share);
    Ok(())
}
