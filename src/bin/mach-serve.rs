//! `mach-serve`: the same as `mach serve`.

use std::process::ExitCode;

use mach::cli::MachServe;
use mach::commands::serve;

fn main() -> ExitCode {
    mach::run(|| serve::run(mach::settings::parse::<MachServe>(std::env::args_os().collect()).args))
}
