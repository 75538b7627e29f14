//! `mach bench grammar`: what holding an answer to a grammar costs.

use anyhow::{Result, bail};
use clap::Args;
use mach_bench::Machine;
use mach_bench::grammar::{GrammarPlan, measure_grammars};
use mach_engine::EngineConfig;
use serde_json::json;

use crate::Exit;
use crate::args::ModelArgs;
use crate::loading::{Opened, Report};
use crate::signals::Signals;

/// Arguments of `mach bench grammar`.
#[derive(Debug, Clone, Args)]
pub(super) struct GrammarArgs {
    /// The model
    #[command(flatten)]
    model: ModelArgs,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(2..), value_name = "N")]
    max_tokens: u32,
    /// Answers of each kind; seeds count up
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), value_name = "N")]
    reps: u32,
    /// Print one JSON document instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs `mach bench grammar`.
pub(super) fn run(args: GrammarArgs) -> Result<()> {
    let plain = |exit: Exit| anyhow::anyhow!(exit.message);
    let opened = Opened::open(args.model.clone().validate().map_err(plain)?).map_err(plain)?;
    if !opened.can_chat() {
        bail!("this checkpoint has no chat template");
    }
    let (name, output) = (opened.default_name(), opened.output_format());
    let config = EngineConfig::default();
    let model = opened
        .load(config, vec![name], &Report { signals: Signals::Nowhere, bar: true }, &mut |_| ())
        .map_err(plain)?;
    let model = model.with_output(output);
    let plan = GrammarPlan { max_tokens: args.max_tokens, reps: args.reps };
    let rows = measure_grammars(&model, plan)?;
    if args.json {
        let report = json!({"mach": env!("CARGO_PKG_VERSION"), "machine": Machine::this(), "rows": rows});
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    print!("{}", Machine::this());
    println!(
        "grammar      sampling   tokens  decode us/token  grammar us/token   share  prepare ms (first, again)"
    );
    for row in rows {
        println!(
            "{:<12} {:<10} {:>6} {:>16.1} {:>17.1} {:>6.2}% {:>10.1} {:>8.1}",
            row.grammar,
            row.sampling,
            row.tokens,
            row.decode_us_per_token,
            row.grammar_us_per_token,
            100.0 * row.share_of_decode,
            row.prepare_ms[0],
            row.prepare_ms[1],
        );
    }
    Ok(())
}
