//! `mach-generate`: the same as `mach generate`.

use std::process::ExitCode;

use mach::cli::MachGenerate;
use mach::commands::generate;

fn main() -> ExitCode {
    mach::run(|| generate::run(mach::settings::parse::<MachGenerate>(std::env::args_os().collect()).args))
}
