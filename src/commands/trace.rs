//! `mach trace`: records which experts a text uses, and replays that against eviction policies.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use mach_models::{LogitRows, Model, Purpose, Segment, SequenceState};

use crate::args::ModelArgs;
use crate::{Exit, experts};
use mach_bench::token_ids;
use mach_bench::trace::{Header, Recorder, Replay, Trace, bank_sizes, replay, svg};

/// Arguments of `mach trace`.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Note which experts a text uses; `mach trace CHECKPOINT` is short for this
    Record(Box<RecordArgs>),
    /// Hit rates of every eviction policy, and of the best possible one, over sizes of the bank
    Replay(ReplayArgs),
}

#[derive(Debug, Clone, Args)]
struct RecordArgs {
    /// The model
    #[command(flatten)]
    model: ModelArgs,
    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Text to continue
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompt_file", "random"])]
    prompt: Option<String>,
    /// File with the text to continue
    #[arg(long, value_name = "FILE", conflicts_with = "random")]
    prompt_file: Option<PathBuf>,
    /// Continue so many pseudo-random tokens, and decode others, instead of text
    #[arg(long, value_name = "TOKENS")]
    random: Option<usize>,
    /// Tokens to decode
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
}

#[derive(Debug, Clone, Args)]
struct ReplayArgs {
    /// File that `mach trace` wrote
    #[arg(value_name = "TRACE")]
    trace: PathBuf,
    /// Write a plot
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Sizes of the bank in experts
    #[arg(long, value_delimiter = ',', value_name = "SLOTS")]
    slots: Vec<usize>,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs `mach trace`.
pub fn run(args: TraceArgs) -> Result<()> {
    match args.what {
        What::Record(args) => record(*args),
        What::Replay(args) => run_replay(&args),
    }
}

/// `words` of a command line, `mach trace CHECKPOINT` spelt out.
pub fn spell_out(mut words: Vec<OsString>) -> Vec<OsString> {
    let known = ["record", "replay", "help", "-h", "--help"];
    if words.get(1).is_some_and(|w| w == "trace")
        && words.get(2).is_some_and(|w| !known.iter().any(|known| w == known))
    {
        words.insert(2, "record".into());
    }
    words
}

fn record(args: RecordArgs) -> Result<()> {
    let out = &args.out;
    let plain = |exit: Exit| anyhow::anyhow!(exit.message);
    let config = args.model.clone().validate().map_err(plain)?;
    let checkpoint = mach_checkpoint::Checkpoint::open(&config.checkpoint)?;
    let prompt = match (&args.prompt, &args.prompt_file, args.random) {
        (_, _, Some(tokens)) => token_ids(1, tokens.max(1), checkpoint.text_ids()),
        (Some(text), ..) => encode(&checkpoint, text)?,
        (None, Some(file), _) => {
            let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
            encode(&checkpoint, &text)?
        }
        (None, None, None) => bail!("one of --prompt, --prompt-file and --random is needed"),
    };
    let prepared = experts::prepare(&checkpoint, &config, crate::sizing::Beside::alone()).map_err(plain)?;
    let mut model = mach_cpu::load(&checkpoint, &prepared.load, &mut |_| ())?;
    let random = args.random.map(|tokens| token_ids(2, tokens + args.max_tokens, checkpoint.text_ids()));
    let header = Header::of(model.as_ref(), checkpoint.is_synthetic() || random.is_some());
    let mut trace = Trace { header, passes: Vec::new() };
    let mut state = model.new_state();
    let mut next = 0;
    for chunk in prompt.chunks(config.prefill_chunk) {
        next = pass(model.as_mut(), &mut state, chunk, true, &mut trace)?;
    }
    for i in 0..args.max_tokens {
        let token = random.as_ref().and_then(|ids| ids.get(i).copied()).unwrap_or(next);
        next = pass(model.as_mut(), &mut state, &[token], false, &mut trace)?;
    }
    let file = File::create(out).with_context(|| out.display().to_string())?;
    trace.write(&mut BufWriter::new(file))?;
    println!("{}: {} passes, {} decoded tokens", out.display(), trace.passes.len(), args.max_tokens);
    Ok(())
}

fn encode(checkpoint: &mach_checkpoint::Checkpoint, text: &str) -> Result<Vec<u32>> {
    let tokenizer = checkpoint.tokenizer()?;
    let vocab = checkpoint.config().vocab_size;
    let tokens = mach_engine::TextTokenizer::new(tokenizer, vocab)?.encode(text, true)?;
    if tokens.is_empty() {
        bail!("the prompt is empty");
    }
    Ok(tokens)
}

/// Runs tokens, notes their routing, and returns the most likely next token.
fn pass(
    model: &mut dyn Model,
    state: &mut SequenceState,
    tokens: &[u32],
    prompt: bool,
    trace: &mut Trace,
) -> Result<u32> {
    let mut recorder = Recorder::default();
    let purpose = if prompt { Purpose::Prompt } else { Purpose::Decode };
    let mut segments = [Segment { state, tokens, logits: LogitRows::Last, purpose }];
    let logits = model.forward(&mut segments, &mut recorder)?;
    trace.passes.push(recorder.finish(tokens.len(), prompt));
    let best = logits.data.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    Ok(best.map_or(0, |(id, _)| id as u32))
}

fn run_replay(args: &ReplayArgs) -> Result<()> {
    let name = args.trace.display().to_string();
    let file = File::open(&args.trace).with_context(|| name.clone())?;
    let trace = Trace::read(&mut BufReader::new(file)).with_context(|| name)?;
    let sizes = if args.slots.is_empty() { bank_sizes(&trace) } else { args.slots.clone() };
    let found = replay(&trace, &sizes);
    if let Some(out) = &args.svg {
        std::fs::write(out, svg(&found)).with_context(|| out.display().to_string())?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&found)?);
    } else {
        print(&found);
    }
    Ok(())
}

fn print(found: &Replay) {
    println!(
        "{} decoded tokens asked for {} experts; share of them found in the bank:",
        found.decoded, found.asked
    );
    let names = found.rows.first().map(|row| row.hit_rates.iter().map(|r| r.0)).into_iter().flatten();
    let head: String = names.map(|name| format!("{name:>11}")).collect();
    println!("{:>8} {:>7}{head}", "slots", "share");
    for row in &found.rows {
        let cells: String = row.hit_rates.iter().map(|r| format!("{:>9.1} %", 100.0 * r.1)).collect();
        println!("{:>8} {:>5.1} %{cells}", row.slots, 100.0 * row.share);
    }
    if found.random_routing {
        println!("routing is random here: these rates measure reads, they say nothing about policies");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        trace: TraceArgs,
    }

    #[test]
    fn recording_or_replaying() {
        let parse = |line: &str| {
            let words = ["mach", "trace"].into_iter().chain(line.split(' ')).map(OsString::from);
            Cli::try_parse_from(spell_out(words.collect()).split_off(1))
        };
        for line in ["some/dir", "record some/dir"] {
            let args = parse(&format!("{line} --out t.jsonl --prompt hello --streaming")).unwrap().trace;
            assert!(matches!(args.what, What::Record(r) if r.model.experts.streaming && r.max_tokens == 256));
        }
        let args = parse("replay t.jsonl --slots 10,20").unwrap().trace;
        assert!(matches!(args.what, What::Replay(r) if r.slots == [10, 20]));
        assert!(parse("some/dir --prompt hello").is_err(), "nowhere to write");
        assert_eq!(spell_out(vec!["mach".into(), "serve".into(), "x".into()]).len(), 3);
    }
}
