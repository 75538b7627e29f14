//! `mach COMMAND`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mach::commands::{archs, bench, convert, generate, serve, synth, trace};

/// OpenAI-compatible inference server for Mixture-of-Experts models bigger than memory
#[derive(Debug, Parser)]
#[command(name = "mach", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a checkpoint over HTTP
    Serve(Box<serve::ServeArgs>),
    /// Generate one answer on the terminal
    Generate(Box<generate::GenerateArgs>),
    /// Measure speed beside this machine's ceilings
    Bench(bench::BenchArgs),
    /// Record which experts a text uses, and replay that against eviction policies
    Trace(trace::TraceArgs),
    /// Write a synthetic checkpoint with the shape of a real model
    Synth(synth::SynthArgs),
    /// List the model families, or tell which one a checkpoint is of
    Archs(archs::ArchsArgs),
    /// Convert a checkpoint to the engine format: laid out weights, one record an expert
    Convert(convert::ConvertArgs),
    /// Write the experts of a checkpoint as records beside its tensors, for streaming
    ExportSidecar(convert::ExportArgs),
}

fn main() -> ExitCode {
    mach::run(|| {
        match mach::settings::parse::<Cli>(trace::spell_out(std::env::args_os().collect())).command {
            Command::Serve(args) => serve::run(*args),
            Command::Generate(args) => generate::run(*args),
            Command::Bench(args) => bench::run(args).map_err(|e| mach::Exit::failure(format!("{e:#}"))),
            Command::Trace(args) => trace::run(args).map_err(|e| mach::Exit::failure(format!("{e:#}"))),
            Command::Synth(args) => synth::run(args),
            Command::Archs(args) => archs::run(&args),
            Command::Convert(args) => convert::run(args),
            Command::ExportSidecar(args) => convert::export(args),
        }
    })
}
