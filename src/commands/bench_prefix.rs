//! `mach bench prefix`: what the prefix cache brings and costs.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use mach_checkpoint::Checkpoint;
use mach_engine::TextTokenizer;
use mach_models::LoadOptions;

use crate::bench::Machine;
use crate::bench::prefix::{PrefixPlan, measure_prefix};

/// Arguments of `mach bench prefix`.
#[derive(Debug, Clone, Args)]
pub(super) struct PrefixArgs {
    /// Checkpoint directory to time
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Empty directory on the drive to time; what is written there stays
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Directory of the tokenizer, for checkpoints without one
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Prompt lengths
    #[arg(long, value_delimiter = ',', default_value = "1024,4096,8192", value_name = "TOKENS")]
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
    /// Threads; 0 means all available
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: PrefixArgs) -> Result<()> {
    if args.reps == 0 || args.tail == 0 || args.decode < 2 || args.prompts.iter().any(|&n| n < 256) {
        bail!("--reps and --tail must be at least 1, --decode 2, --prompts 256");
    }
    let open =
        |dir: &PathBuf| Checkpoint::open(dir).with_context(|| format!("cannot open {}", dir.display()));
    let checkpoint = open(&args.checkpoint)?;
    let tokenizer = match &args.tokenizer {
        Some(dir) => open(dir)?.tokenizer()?,
        None => checkpoint.tokenizer().context("no tokenizer; --tokenizer names a directory with one")?,
    };
    let tokenizer = Arc::new(TextTokenizer::new(tokenizer, checkpoint.config().vocab_size)?);
    let load = LoadOptions { threads: args.threads, ..LoadOptions::default() };
    let model = mach_models::load(&checkpoint, &load, &mut |_| {})?;
    let layers = model.config().layers.len();
    let (prompts, tail, decode, reps) = (args.prompts, args.tail, args.decode, args.reps);
    let plan = PrefixPlan { prompts, tail, decode, reps, conversations: 1000 };
    let report = measure_prefix(model, tokenizer, &args.dir, plan)?;
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
