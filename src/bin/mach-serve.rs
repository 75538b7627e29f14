//! `mach-serve`: the same as `mach serve`.

use std::process::ExitCode;

use clap::Parser;
use mach::commands::serve;

/// Serve a checkpoint over HTTP, as OpenAI's API
#[derive(Debug, Parser)]
#[command(name = "mach-serve", version)]
struct Cli {
    #[command(flatten)]
    args: serve::ServeArgs,
}

fn main() -> ExitCode {
    mach::run(|| serve::run(mach::settings::parse::<Cli>(std::env::args_os().collect()).args))
}
