//! `mach-golden DIR...`: one line a check; exit code 0 if all passed, 1 on a miss, 2 on unusable input.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use mach_golden::{Options, check_directory};
use mach_models::{Activations, LoadOptions};

/// Checks checkpoints against golden numbers of other implementations.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Directories with a checkpoint and golden.safetensors or golden.json.
    #[arg(required = true)]
    directories: Vec<PathBuf>,
    /// Activation path of the linear layers. The goldens are exact, so int8 is expected to miss on random weights.
    #[arg(long, value_enum, default_value = "f32")]
    activations: Path,
    /// Compute threads; 0 for all.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Instruction set: scalar, avx2, avx-vnni, avx512, neon or neon-dotprod; the best of this machine by default.
    #[arg(long)]
    isa: Option<String>,
    /// Largest absolute difference accepted [default: 2e-3 for f32, 2 for int8].
    #[arg(long)]
    tolerance: Option<f32>,
    /// Steps of a trained model's continuation that are also decoded one by one [default: all].
    #[arg(long)]
    decode_steps: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Path {
    F32,
    Int8,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let activations = match arguments.activations {
        Path::F32 => Activations::F32,
        Path::Int8 => Activations::Int8,
    };
    let options = Options {
        load: LoadOptions {
            activations,
            threads: arguments.threads,
            isa: arguments.isa,
            ..LoadOptions::default()
        },
        tolerance: arguments.tolerance,
        decode_steps: arguments.decode_steps,
    };
    let (mut missed, mut unusable) = (0, 0);
    for dir in &arguments.directories {
        println!("{}", dir.display());
        let mut checks = 0;
        match check_directory(dir, &options, &mut |check| {
            checks += 1;
            println!("  {check}");
        }) {
            Ok(true) => println!("  {checks} checks, all passed"),
            Ok(false) => {
                println!("  {checks} checks, not all passed");
                missed += 1;
            }
            Err(error) => {
                eprintln!("mach-golden: {error:#}");
                unusable += 1;
            }
        }
    }
    match (unusable, missed) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(1),
        _ => ExitCode::from(2),
    }
}
