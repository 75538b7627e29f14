//! `mach convert` and `mach export-sidecar`: weights as the kernels read them, experts as records.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use mach_checkpoint::Checkpoint;
use mach_convert::{ConvertError, ConvertOptions, Progress, Quantize, Report};
use mach_quant::Bits;
use tracing::info;

use crate::Exit;
use crate::args::{LogArgs, LogLevel};

/// Arguments of `mach convert`.
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// Directory of the checkpoint to convert
    #[arg(value_name = "SOURCE")]
    source: PathBuf,
    /// Directory to make
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Quantize float weights to 2, 3, 4, 5, 6 or 8 bits; without it every bit is kept
    #[arg(long, value_name = "BITS")]
    bits: Option<Bits>,
    /// Columns that share a scale, with --bits: 32, 64 or 128
    #[arg(long, value_name = "COLUMNS", default_value_t = 64, requires = "bits")]
    group: usize,
    /// Read everything back afterwards and compare with the checksums; a result that is there already is only checked
    #[arg(long)]
    verify: bool,
    /// Threads; 0 uses all cores
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    #[command(flatten)]
    log: LogArgs,
}

/// Arguments of `mach export-sidecar`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// Directory of the checkpoint; `expert_sidecar/` is written into it
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// Read everything back afterwards and compare with the checksums
    #[arg(long)]
    verify: bool,
    /// Threads; 0 uses all cores
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    #[command(flatten)]
    log: LogArgs,
}

/// Runs `mach convert`.
pub fn run(args: ConvertArgs) -> Result<(), Exit> {
    crate::logging::init(&args.log, LogLevel::Info);
    let source = Checkpoint::open(&crate::hub::locate(&args.source)?).map_err(Exit::input)?;
    let quantize = args.bits.map(|bits| Quantize { bits, group: args.group });
    let options = ConvertOptions { out: args.out.clone(), quantize, threads: args.threads };
    let bar = Bar::new("converting");
    let report = mach_convert::convert(&source, &options, &mut |p| bar.update(p)).map_err(exit);
    bar.finish();
    tell(&args.out, report?);
    if args.verify { verify(&args.out) } else { Ok(()) }
}

/// Runs `mach export-sidecar`.
pub fn export(args: ExportArgs) -> Result<(), Exit> {
    crate::logging::init(&args.log, LogLevel::Info);
    let dir = crate::hub::locate(&args.checkpoint)?;
    let checkpoint = Checkpoint::open(&dir).map_err(Exit::input)?;
    let bar = Bar::new("writing experts");
    let report =
        mach_convert::export_sidecar(&checkpoint, args.threads, &mut |p| bar.update(p)).map_err(exit);
    bar.finish();
    tell(&dir.join(mach_checkpoint::SIDECAR_DIR), report?);
    if args.verify { verify(&dir) } else { Ok(()) }
}

fn tell(out: &Path, report: Report) {
    let Report { resident_bytes, expert_bytes, layers, left_out, unchanged } = report;
    let state = if unchanged { "already there: " } else { "" };
    println!(
        "{}: {state}{resident_bytes} bytes of resident weights, {expert_bytes} bytes of experts in {layers} layers",
        out.display()
    );
    if left_out > 0 {
        println!("{left_out} tensors outside the text model (vision, extra prediction heads) were left out");
    }
}

fn verify(dir: &Path) -> Result<(), Exit> {
    compare_checksums(dir)?;
    println!("{}: every checksum is right", dir.display());
    Ok(())
}

/// Reads all that was written and compares it with its checksums.
pub(crate) fn compare_checksums(dir: &Path) -> Result<(), Exit> {
    let checkpoint = Checkpoint::open(dir).map_err(Exit::input)?;
    let bar = Bar::new("verifying");
    let result = mach_convert::verify(&checkpoint, &mut |p| bar.update(p));
    bar.finish();
    result.map_err(Exit::failure)
}

fn exit(error: ConvertError) -> Exit {
    match error {
        ConvertError::Checkpoint(_) | ConvertError::Input(_) => Exit::input(error),
        other => Exit::failure(other),
    }
}

/// A progress bar on a terminal, one log line for each tenth otherwise.
struct Bar {
    bar: ProgressBar,
    what: &'static str,
    tenths: std::cell::Cell<u64>,
}

impl Bar {
    fn new(what: &'static str) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let template = "{msg} {bytes}/{total_bytes} {bar:32} {bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what);
        Self { bar, what, tenths: std::cell::Cell::new(0) }
    }

    fn update(&self, progress: Progress) {
        let Progress { bytes_done, bytes_total } = progress;
        self.bar.set_length(bytes_total);
        self.bar.set_position(bytes_done);
        let tenths = bytes_done.saturating_mul(10).checked_div(bytes_total).unwrap_or(0);
        if self.bar.is_hidden() && tenths > self.tenths.replace(tenths) {
            info!(bytes_done, bytes_total, "{}", self.what);
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
