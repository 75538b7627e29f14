//! `mach synth`: a checkpoint with a real model's shape and random weights, for measuring speed.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use mach_checkpoint::synth::{self, Routing, Shape, SynthError, SynthOptions};

use crate::Exit;

/// Arguments of `mach synth`.
#[derive(Debug, Clone, Args)]
pub struct SynthArgs {
    /// Directory to create; it must be empty if it exists
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Shape of a real model, for instance qwen3.6-35b-a3b or qwen3-30b-a3b
    #[arg(long)]
    shape: String,
    /// Layers to write; all of the shape's if not given
    #[arg(long, value_name = "N")]
    layers: Option<usize>,
    /// How tokens spread over experts: `uniform`, or `zipf:S` for a popularity that falls with rank^-S
    #[arg(long, default_value = "uniform")]
    routing: String,
    /// Equal seeds give equal files
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs `mach synth`.
pub fn run(args: SynthArgs) -> Result<(), Exit> {
    let routing: Routing = args.routing.parse().map_err(|e: SynthError| Exit::input(e))?;
    let all = Shape::all().map(|(_, shape)| shape).find(|s| s.name == args.shape).map_or(1, |s| s.layers);
    let options = SynthOptions {
        shape: args.shape,
        layers: args.layers.unwrap_or(all),
        routing,
        seed: args.seed,
        out: args.out,
    };
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("writing {bytes}/{total_bytes} {bar:32} {bytes_per_sec}")
    {
        bar.set_style(style);
    }
    let report = synth::write(&options, &mut |p| {
        bar.set_length(p.bytes_total);
        bar.set_position(p.bytes_done);
    });
    bar.finish_and_clear();
    let report = report.map_err(|e| match e {
        SynthError::Shape { .. } | SynthError::Layers { .. } | SynthError::NotEmpty(_) => Exit::input(e),
        other => Exit::failure(other),
    })?;
    println!("{}: {} bytes of weights in {} files", options.out.display(), report.bytes, report.shards);
    print!("{}", report.spread);
    Ok(())
}
