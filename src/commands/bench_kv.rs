//! `mach bench kv`: quantized keys and values beside full ones.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use mach_checkpoint::Checkpoint;
use mach_models::{LoadOptions, TurboQuant};
use serde_json::Value;

use mach_bench::kv::measure_kv;
use mach_bench::{Machine, token_ids};

/// Tokens of a prompt where there are no golden ones.
const RANDOM_TOKENS: usize = 512;

/// Arguments of `mach bench kv`.
#[derive(Debug, Clone, Args)]
pub(super) struct KvArgs {
    /// Checkpoint directory
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Golden prompts; golden.json of the checkpoint if it is there, else random tokens, whose divergence says little
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Widths to compare
    #[arg(long, value_delimiter = ',', default_value = "8,k8v4,4,k4v3,3,k3v2,2", value_name = "BITS")]
    widths: Vec<TurboQuant>,
    /// Positions that attention is timed over
    #[arg(long, default_value_t = 8192, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    context: u32,
    /// Threads; 0 means all available
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: KvArgs) -> Result<()> {
    let checkpoint = Checkpoint::open(&args.checkpoint)
        .with_context(|| format!("cannot open {}", args.checkpoint.display()))?;
    let inside = args.checkpoint.join("golden.json");
    let golden = args.golden.clone().or_else(|| inside.is_file().then_some(inside));
    let prompts = match &golden {
        Some(file) => golden_prompts(file)?,
        None => vec![token_ids(1, RANDOM_TOKENS, checkpoint.text_ids())],
    };
    let load = LoadOptions { threads: args.threads, ..LoadOptions::default() };
    let rows = measure_kv(&checkpoint, &load, &prompts, &args.widths, args.context as usize)?;
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let machine = Machine::this();
    if args.json {
        let whole = serde_json::json!({
            "mach": env!("CARGO_PKG_VERSION"), "machine": machine, "prompts": prompts.len(), "tokens": tokens,
            "random_tokens": golden.is_none(), "context": args.context, "kv": rows,
        });
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(());
    }
    print!("{machine}");
    let source = if golden.is_some() { "golden" } else { "random" };
    println!("{tokens} {source} tokens; attention of one token over {} positions, one layer", args.context);
    println!("kv       B/token  smaller    mean KL     p99 KL  same top  attention       reads");
    for row in rows {
        println!(
            "{:<7} {:>8} {:>7.2}x {:>10.2e} {:>10.2e} {:>8.2}% {:>8.0} us {:>6.2} GB/s",
            row.kv,
            row.bytes_per_token,
            row.times_smaller,
            row.mean_kl,
            row.p99_kl,
            100.0 * row.same_top,
            row.attention_us,
            row.bytes_per_second / 1e9,
        );
    }
    Ok(())
}

/// Prompts and the answers to them.
fn golden_prompts(file: &PathBuf) -> Result<Vec<Vec<u32>>> {
    let named = || format!("{}: no golden prompts", file.display());
    let golden: Value =
        serde_json::from_slice(&std::fs::read(file).with_context(named)?).with_context(named)?;
    let ids = |case: &Value, key: &str| -> Option<Vec<u32>> {
        case[key].as_array()?.iter().map(|id| u32::try_from(id.as_u64()?).ok()).collect()
    };
    let case = |case: &Value| Some([ids(case, "prompt_ids")?, ids(case, "greedy_ids")?].concat());
    let cases = golden["cases"].as_array().with_context(named)?;
    let prompts: Vec<Vec<u32>> = cases.iter().map(case).collect::<Option<_>>().with_context(named)?;
    if prompts.iter().all(Vec::is_empty) {
        bail!("{}: no golden prompts", file.display());
    }
    Ok(prompts)
}
