//! `mach-archs`: the same as `mach archs`.

use std::process::ExitCode;

use clap::Parser as _;
use mach::cli::MachArchs;
use mach::commands::archs;

fn main() -> ExitCode {
    mach::run(|| archs::run(&MachArchs::parse().args))
}
