//! `mach-archs`: the same as `mach archs`.

use std::process::ExitCode;

use clap::Parser;
use mach::commands::archs;

/// List the model families, or tell which one a checkpoint is of
#[derive(Debug, Parser)]
#[command(name = "mach-archs", version)]
struct Cli {
    #[command(flatten)]
    args: archs::ArchsArgs,
}

fn main() -> ExitCode {
    mach::run(|| archs::run(&Cli::parse().args))
}
