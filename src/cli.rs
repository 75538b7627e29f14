//! The command lines of all programs.

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::commands::{archs, bench, chat, check, convert, generate, manual, models, serve, synth, trace};

/// OpenAI-compatible inference server for Mixture-of-Experts models bigger than memory
#[derive(Debug, Parser)]
#[command(name = "mach", version, propagate_version = true)]
pub struct Mach {
    /// What is to be done.
    #[command(subcommand)]
    pub command: Command,
}

/// Commands of `mach`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a checkpoint over HTTP
    #[command(after_help = "The program mach-serve is the same.")]
    Serve(Box<serve::ServeArgs>),
    /// Generate one answer on the terminal
    #[command(after_help = "The program mach-generate is the same.")]
    Generate(Box<generate::GenerateArgs>),
    /// Talk with a model on the terminal
    Chat(Box<chat::ChatArgs>),
    /// Measure speed beside this machine's ceilings
    Bench(bench::BenchArgs),
    /// Record which experts a text uses, and replay that against eviction policies
    Trace(trace::TraceArgs),
    /// Write a synthetic checkpoint with the shape of a real model
    Synth(synth::SynthArgs),
    /// List the model families, or tell which one a checkpoint is of
    #[command(after_help = "The program mach-archs is the same.")]
    Archs(archs::ArchsArgs),
    /// Tell, from a checkpoint's headers, what would run on this machine, on which path, and whether it fits
    #[command(
        after_help = "Exit code 0: it fits, or is tight. 1: it will not fit. 2: it is no checkpoint that mach can run."
    )]
    Check(Box<check::CheckArgs>),
    /// List the checkpoints on this machine
    #[command(after_help = "The program mach-models is the same.")]
    Models(models::ModelsArgs),
    /// Convert a checkpoint to the engine format: laid out weights, one record an expert
    Convert(convert::ConvertArgs),
    /// Write the experts of a checkpoint as records beside its tensors, for streaming
    ExportSidecar(convert::ExportArgs),
    /// Print what a shell completes the programs' command lines with
    Completions(manual::CompletionsArgs),
    /// Print a manual page
    Man(manual::ManArgs),
}

/// Serve a checkpoint over HTTP, as OpenAI's API
#[derive(Debug, Parser)]
#[command(name = "mach-serve", version)]
pub struct MachServe {
    /// As those of `mach serve`.
    #[command(flatten)]
    pub args: serve::ServeArgs,
}

/// Generate one answer on the terminal
#[derive(Debug, Parser)]
#[command(name = "mach-generate", version)]
pub struct MachGenerate {
    /// As those of `mach generate`.
    #[command(flatten)]
    pub args: generate::GenerateArgs,
}

/// List the model families, or tell which one a checkpoint is of
#[derive(Debug, Parser)]
#[command(name = "mach-archs", version)]
pub struct MachArchs {
    /// As those of `mach archs`.
    #[command(flatten)]
    pub args: archs::ArchsArgs,
}

/// List the checkpoints on this machine
#[derive(Debug, Parser)]
#[command(name = "mach-models", version)]
pub struct MachModels {
    /// As those of `mach models`.
    #[command(flatten)]
    pub args: models::ModelsArgs,
}

/// The command lines of all programs, `mach` first.
pub fn programs() -> Vec<clap::Command> {
    vec![
        Mach::command(),
        MachServe::command(),
        MachGenerate::command(),
        MachArchs::command(),
        MachModels::command(),
    ]
}
