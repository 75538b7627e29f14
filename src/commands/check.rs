//! `mach check`: what would run, and whether it fits, before anything is loaded.

use std::io::Write as _;

use clap::Args;
use mach_engine::EngineConfig;
use mach_server::ServerConfig;

use crate::Exit;
use crate::args::{LogArgs, LogLevel, ModelArgs};
use crate::budget::Clients;
use crate::check::{Question, Verdict};
use crate::prefix::PrefixArgs;

/// Arguments of `mach check`. Those of the model and of the prefix cache mean what they mean to `mach serve`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The model
    #[command(flatten)]
    pub model: ModelArgs,

    /// Tokens that a conversation is to have room for; as many as --max-context and the model allow if not given
    #[arg(long, value_name = "TOKENS")]
    pub context: Option<usize>,

    /// Sequences at one time
    #[arg(long, default_value_t = EngineConfig::default().max_batch, value_name = "N")]
    pub max_batch: usize,

    /// Measure memory and drive, some seconds long, and forecast speeds
    #[arg(long)]
    pub probe: bool,

    /// Part of the experts wanted, 0 to 1, that the forecast takes to be in the bank; by the bank's size if not given
    #[arg(long, value_name = "RATE", requires = "probe")]
    pub hit_rate: Option<f64>,

    /// Read every expert of the sidecar and compare checksums, which takes as long as reading the file
    #[arg(long)]
    pub verify: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Prefix cache
    #[command(flatten, next_help_heading = "Prefix cache")]
    pub prefix: PrefixArgs,

    /// Logging
    #[command(flatten, next_help_heading = "Logging")]
    pub log: LogArgs,
}

/// Runs the command. A checkpoint that will not fit is a failure, one that cannot be run an error of input.
pub fn run(args: CheckArgs) -> Result<(), Exit> {
    crate::logging::init(&args.log, LogLevel::Error);
    if args.context == Some(0) || args.max_batch == 0 {
        return Err(Exit::input("--context and --max-batch: must be at least 1"));
    }
    if args.hit_rate.is_some_and(|rate| !(0.0..=1.0).contains(&rate)) {
        return Err(Exit::input("--hit-rate: must be between 0 and 1"));
    }
    let server = ServerConfig::default();
    let question = Question {
        context: args.context,
        sequences: args.max_batch,
        prefix: args.prefix.validate()?,
        clients: Clients {
            account: None,
            connections: server.max_connections,
            head: server.max_head,
            unread: None,
            store: 0,
        },
        probe: args.probe,
        hit_rate: args.hit_rate,
    };
    let config = args.model.validate()?;
    let report = crate::check::check(&config, &question)?;
    let text = if args.json {
        serde_json::to_string_pretty(&report).map_err(Exit::failure)?
    } else {
        report.to_string()
    };
    // A closed stdout is no reason to complain.
    let _ = writeln!(std::io::stdout().lock(), "{}", text.trim_end());
    if args.verify {
        super::convert::compare_checksums(&config.checkpoint)?;
    }
    match report.verdict {
        Verdict::WontFit => {
            Err(Exit::failure(report.resident.reason.or(report.streaming.reason).unwrap_or_default()))
        }
        Verdict::Fits | Verdict::Tight => Ok(()),
    }
}
