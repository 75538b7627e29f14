//! `mach COMMAND`.

use std::process::ExitCode;

use mach::cli::{Command, Mach};
use mach::commands::{archs, bench, chat, check, convert, generate, manual, models, serve, synth, trace};

fn main() -> ExitCode {
    mach::run(|| {
        match mach::settings::parse::<Mach>(trace::spell_out(std::env::args_os().collect())).command {
            Command::Serve(args) => serve::run(*args),
            Command::Generate(args) => generate::run(*args),
            Command::Chat(args) => chat::run(*args),
            Command::Bench(args) => bench::run(args).map_err(|e| mach::Exit::failure(format!("{e:#}"))),
            Command::Trace(args) => trace::run(args).map_err(|e| mach::Exit::failure(format!("{e:#}"))),
            Command::Synth(args) => synth::run(args),
            Command::Archs(args) => archs::run(&args),
            Command::Check(args) => check::run(*args),
            Command::Models(args) => models::run(&args),
            Command::Convert(args) => convert::run(args),
            Command::ExportSidecar(args) => convert::export(args),
            Command::Completions(args) => manual::completions(&args),
            Command::Man(args) => manual::man(&args),
        }
    })
}
