//! `mach-models`: the same as `mach models`.

use std::process::ExitCode;

use clap::Parser as _;
use mach::cli::MachModels;
use mach::commands::models;

fn main() -> ExitCode {
    mach::run(|| models::run(&MachModels::parse().args))
}
