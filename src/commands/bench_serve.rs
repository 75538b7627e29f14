//! `mach bench serve`: what serving costs beside the model.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use mach_checkpoint::Checkpoint;

use mach_bench::Machine;
use mach_bench::serve::{ServePlan, TARGET_TOKENS, TARGET_TTFT_MS, measure_serve};

/// Arguments of `mach bench serve`.
#[derive(Debug, Clone, Args)]
pub(super) struct ServeArgs {
    /// Checkpoint whose tokenizer and template are used; its weights are not
    #[arg(value_name = "CKPT")]
    checkpoint: PathBuf,
    /// Streams at one time
    #[arg(long, default_value_t = 32, value_name = "N")]
    streams: usize,
    /// Tokens of each stream
    #[arg(long, default_value_t = 4000, value_name = "TOKENS")]
    tokens: u32,
    /// Tokens of the prompt whose first token is timed
    #[arg(long, default_value_t = 8192, value_name = "TOKENS")]
    prompt: usize,
    /// Repeats
    #[arg(long, default_value_t = 5, value_name = "N")]
    reps: usize,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: ServeArgs) -> Result<()> {
    if args.streams == 0 || args.tokens == 0 || args.prompt == 0 || args.reps == 0 {
        bail!("--streams, --tokens, --prompt and --reps must be at least 1");
    }
    let dir = &args.checkpoint;
    let checkpoint = Checkpoint::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    let (streams, tokens, prompt, reps) = (args.streams, args.tokens, args.prompt, args.reps);
    let report = measure_serve(&checkpoint, ServePlan { streams, tokens, prompt, reps })?;
    let machine = Machine::this();
    if args.json {
        let whole = serde_json::json!({
            "mach": env!("CARGO_PKG_VERSION"), "machine": machine, "serve": report,
            "targets": {"tokens_per_second": TARGET_TOKENS, "added_ttft_ms": TARGET_TTFT_MS},
        });
        println!("{}", serde_json::to_string_pretty(&whole)?);
        return Ok(());
    }
    print!("{machine}");
    println!("a model that takes no time; server, engine and clients share the machine");
    println!(
        "{streams} streams of {tokens} tokens: {:.0} tokens/s (target {TARGET_TOKENS:.0}), {:.0} bytes a token",
        report.tokens(),
        report.bytes_per_token,
    );
    println!(
        "prompt of {} tokens: first token after {:.2} ms, tokenising alone {:.2} ms: {:.2} ms added, \
         {:.2} ms at best (target {TARGET_TTFT_MS})",
        report.prompt_tokens,
        report.ttft_ms,
        report.tokenise_ms,
        report.added_ms(),
        report.least_added_ms(),
    );
    Ok(())
}
