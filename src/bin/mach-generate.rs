//! `mach-generate`: the same as `mach generate`.

use std::process::ExitCode;

use clap::Parser;
use mach::commands::generate;

/// Generate one answer on the terminal
#[derive(Debug, Parser)]
#[command(name = "mach-generate", version)]
struct Cli {
    #[command(flatten)]
    args: generate::GenerateArgs,
}

fn main() -> ExitCode {
    mach::run(|| generate::run(mach::settings::parse::<Cli>(std::env::args_os().collect()).args))
}
