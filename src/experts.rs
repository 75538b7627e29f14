//! Where the experts will be: flags, sidecar, drive and memory budget put together.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use mach_checkpoint::{Checkpoint, MANIFEST_FILE};
use mach_experts::{EvictionPolicy, Sidecar, SidecarError};
use mach_io::{Caching, ProbeReport, ReaderOptions, Submission, probe};
use mach_models::{Activations, ExpertMode, LoadOptions, StreamingOptions, StreamingSource};
use mach_server::Residency;
use tracing::{info, warn};

use crate::Exit;
use crate::args::ModelConfig;
use crate::budget::{Bounds, Budget};
use crate::signals::{Signal, Signals};
use crate::sizing::{Beside, Sizing};

/// Time that the probe of the drive may take.
const PROBE: Duration = Duration::from_millis(300);

/// Reads in flight while streaming, at least: most of the arena.
pub(crate) const IN_FLIGHT: usize = 64;

/// Where experts live, and how much memory they get.
#[derive(Debug, Clone, Args)]
pub struct ExpertArgs {
    /// Keep all experts in memory; refused if they do not fit
    #[arg(long, conflicts_with_all = ["streaming", "expert_residency", "expert_cache_gb", "wired_gb", "bank_eviction", "io",
        "fallback_policy"])]
    pub no_streaming: bool,

    /// Stream experts from the drive; without this and --no-streaming, only if they do not fit memory
    #[arg(long, conflicts_with = "expert_residency")]
    pub streaming: bool,

    /// The same choice by name, and bf16_streaming: full precision out of a bf16 checkpoint's own tensors
    #[arg(long, value_enum, value_name = "MODE")]
    pub expert_residency: Option<ResidencyArg>,

    /// Memory of the expert bank in GB (10^9 bytes); 0 reads every expert when it is needed
    #[arg(long, value_name = "GB", value_parser = gigabytes)]
    pub expert_cache_gb: Option<Gigabytes>,

    /// Most memory of weights, bank and arena together while streaming; 9 unless --memory-gb is given
    #[arg(long, value_name = "GB", value_parser = gigabytes)]
    pub wired_gb: Option<Gigabytes>,

    /// Most memory of the whole process; a safe share of what the machine or control group has free if not given
    #[arg(long, value_name = "GB", value_parser = gigabytes)]
    pub memory_gb: Option<Gigabytes>,

    /// Which expert leaves a full bank: lru, lfu or lookahead
    #[arg(long, default_value = "lookahead", value_name = "POLICY")]
    pub bank_eviction: EvictionPolicy,

    /// System interface that reads experts
    #[arg(long, value_enum, default_value_t = IoArg::Auto)]
    pub io: IoArg,

    /// What to do when experts cannot be streamed from a valid sidecar
    #[arg(long, value_enum, default_value_t = FallbackArg::FailFast)]
    pub fallback_policy: FallbackArg,
}

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gigabytes {
    /// Bytes.
    pub bytes: usize,
}

fn gigabytes(text: &str) -> Result<Gigabytes, String> {
    let gb: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if !(0.0..=1e6).contains(&gb) {
        return Err("must be from 0 to 1000000".to_owned());
    }
    Ok(Gigabytes { bytes: (gb * 1e9) as usize })
}

/// Values of `--expert-residency`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResidencyArg {
    /// All in memory.
    #[value(alias = "stacked")]
    Resident,
    /// Records of the sidecar in a bank.
    Streaming,
    /// Full-precision slices of a bf16 checkpoint in a bank.
    #[value(name = "bf16_streaming")]
    Bf16Streaming,
}

/// Values of `--io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IoArg {
    /// io_uring where the system has it.
    Auto,
    /// io_uring; an error where it is missing.
    Uring,
    /// A pool of threads.
    Pread,
}

impl From<IoArg> for Submission {
    fn from(arg: IoArg) -> Self {
        match arg {
            IoArg::Auto => Self::Auto,
            IoArg::Uring => Self::Uring,
            IoArg::Pread => Self::Pread,
        }
    }
}

/// Values of `--fallback-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FallbackArg {
    /// End with an error that says what to do.
    FailFast,
    /// Read slices out of the checkpoint's own tensors, slowly.
    #[value(alias = "diagnostic-python")]
    Diagnostic,
}

impl FallbackArg {
    fn as_str(self) -> &'static str {
        match self {
            Self::FailFast => "fail-fast",
            // The word that operators look for.
            Self::Diagnostic => "diagnostic-python",
        }
    }
}

/// What was settled.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// How to load.
    pub(crate) load: LoadOptions,
    /// How memory is divided.
    pub(crate) budget: Budget,
    /// Where experts live.
    pub(crate) residency: Residency,
    /// What to tell the operator.
    pub(crate) signals: Vec<Signal>,
}

/// Settles where experts live.
pub(crate) fn prepare(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    beside: Beside,
) -> Result<Prepared, Exit> {
    refuse_stacks(checkpoint)?;
    let args = &config.experts;
    let sizing = Sizing::new(checkpoint, config, beside);
    let bounds = sizing.bounds;
    let wanted = match (args.no_streaming, args.streaming, args.expert_residency) {
        (true, ..) | (_, _, Some(ResidencyArg::Resident)) => Some(ResidencyArg::Resident),
        (_, true, _) => Some(ResidencyArg::Streaming),
        (.., mode) => mode,
    };
    let dense = !checkpoint.config().moe_layers.contains(&true);
    let asked = match wanted {
        Some(ResidencyArg::Streaming | ResidencyArg::Bf16Streaming) => Some("--streaming"),
        _ => args.expert_cache_gb.map(|_| "--expert-cache-gb"),
    };
    if let (true, Some(flag)) = (dense, asked) {
        return Err(Exit::input(format!(
            "{flag}: {} has no routed experts, and nothing else is read from the drive while it runs",
            checkpoint.dir().display()
        )));
    }
    let all = || sizing.resident();
    let wanted = match wanted {
        Some(ResidencyArg::Resident) => {
            let budget = all()?.map_err(|e| {
                Exit::input(format!("--no-streaming: {e}; --streaming reads experts from the drive instead"))
            })?;
            return Ok(resident(config, budget));
        }
        Some(other) => other,
        None => match all()? {
            Ok(budget) if args.expert_cache_gb.is_none() => return Ok(resident(config, budget)),
            Ok(_) => ResidencyArg::Streaming,
            Err(reason) if dense => return Err(Exit::input(reason)),
            Err(reason) => {
                info!(reason, "streaming experts from the drive");
                ResidencyArg::Streaming
            }
        },
    };
    let (options, residency, depth, signal) = match wanted {
        ResidencyArg::Bf16Streaming => {
            let options = StreamingOptions { source: StreamingSource::Bf16, ..StreamingOptions::default() };
            (options, Residency::Bf16Streaming, 0, None)
        }
        _ => {
            // Those who look at startup signals are the operators of servers.
            let red = if beside.clients.is_some() { Signals::Stdout } else { Signals::Nowhere };
            let drive = drive(checkpoint, args, red)?;
            (drive.options, drive.residency, drive.depth, Some(drive.signal))
        }
    };
    let budget = sizing.streaming(options.source, depth)?.map_err(Exit::input)?;
    let options = StreamingOptions {
        bank_slots: budget.bank_slots,
        arena_slots: budget.arena_slots,
        eviction: args.bank_eviction,
        ..options
    };
    let mut signals = vec![mode_signal(config, residency, &options), optimizations_signal(&options)];
    signals.extend(signal);
    signals.push(memory_signal(&budget, bounds));
    let load = LoadOptions { experts: ExpertMode::Streaming(options), ..config.load.clone() };
    Ok(Prepared { load, budget, residency, signals })
}

/// Whether experts end up in the same place, memory or drive, with what `with` counts as with the less that `without` does.
pub(crate) fn same_place(config: &ModelConfig, with: &Sizing<'_>, without: &Sizing<'_>) -> bool {
    let args = &config.experts;
    let in_memory = |sizing: &Sizing<'_>| matches!(sizing.resident(), Ok(Ok(_)));
    let source = match args.expert_residency {
        Some(ResidencyArg::Bf16Streaming) => StreamingSource::Bf16,
        _ => StreamingSource::Sidecar,
    };
    let streams = |sizing: &Sizing<'_>| matches!(sizing.streaming(source, IN_FLIGHT), Ok(Ok(_)));
    let asked = args.streaming
        || args.expert_cache_gb.is_some()
        || matches!(args.expert_residency, Some(ResidencyArg::Streaming | ResidencyArg::Bf16Streaming));
    if !asked && (in_memory(without) || args.no_streaming) {
        return in_memory(with);
    }
    streams(with) || !streams(without)
}

/// A family whose experts are served one by one is not served from stacks; `mach convert` makes records of them.
pub(crate) fn refuse_stacks(checkpoint: &Checkpoint) -> Result<(), Exit> {
    let family = checkpoint.family();
    if family.stacked || !checkpoint.stacks_experts() {
        return Ok(());
    }
    Err(Exit::input(format!(
        "{0}: {1} is served with sliced experts, and this checkpoint stacks them; `mach convert {0} --out DIR` slices them",
        checkpoint.dir().display(),
        family.model_type,
    )))
}

fn resident(config: &ModelConfig, budget: Budget) -> Prepared {
    let load = LoadOptions { experts: ExpertMode::Resident, ..config.load.clone() };
    let nothing = StreamingOptions { arena_slots: 0, ..StreamingOptions::default() };
    let signals =
        vec![mode_signal(config, Residency::Stacked, &nothing), memory_signal(&budget, Bounds::default())];
    Prepared { load, budget, residency: Residency::Stacked, signals }
}

/// How the server runs, in the words that operators know.
fn mode_signal(config: &ModelConfig, residency: Residency, options: &StreamingOptions) -> Signal {
    // int8 activations are the path that serves; f32 is the one that is held to references.
    let (profile, activations) = match config.load.activations {
        Activations::Int8 => ("production", "int8"),
        Activations::F32 => ("exact", "f32"),
    };
    Signal::new("mode")
        .with("profile", profile)
        .with("production_streaming_mode", residency.mode())
        .with("transient_prefill", u8::from(options.arena_slots > 0))
        .with("expert_residency", residency.as_str())
        .with("activations", activations)
        .with("numerics", mach_cpu::numerics(&config.load))
}

/// What streaming does to be fast. Nothing predicts experts before the router asks, and streamed ones are the CPU's.
fn optimizations_signal(options: &StreamingOptions) -> Signal {
    let records = options.source == StreamingSource::Sidecar;
    Signal::line("production optimizations")
        .with("direct_pread", u8::from(records && options.caching == Caching::Direct))
        .with("native_prefill_fused", u8::from(records && options.arena_slots > 0))
        .with("async_prefetch", u8::from(mach_experts::PREDICTS))
        .with("resident_metal", u8::from(mach_experts::IN_DEVICE_MEMORY))
}

fn memory_signal(budget: &Budget, bounds: Bounds) -> Signal {
    let needs = &budget.needs;
    let mut signal = Signal::new("memory")
        .with("budget_bytes", budget.total())
        .with("resident_weight_bytes", needs.resident)
        .with("bank_bytes", budget.bank())
        .with("arena_bytes", budget.arena())
        .with("state_bytes", budget.state)
        .with("scratch_bytes", needs.scratch)
        .with("draft_bytes", needs.draft)
        .with("prefix_bytes", needs.prefix)
        .with("save_bytes", needs.saves)
        .with("request_bytes", needs.requests.total())
        .with("base_bytes", needs.base);
    if let Some(available) = bounds.available {
        signal = signal.with("available_bytes", available);
    }
    signal
}

/// What the drive can do with the sidecar, or what replaces it.
struct Drive {
    options: StreamingOptions,
    residency: Residency,
    depth: usize,
    signal: Signal,
}

/// Opens the sidecar, checks a sample of its records, and finds the best way to read it. A red flag goes to `red`.
fn drive(checkpoint: &Checkpoint, args: &ExpertArgs, red: Signals) -> Result<Drive, Exit> {
    let present = checkpoint.dir().join(MANIFEST_FILE).exists();
    let started = Instant::now();
    let opened = Sidecar::open(checkpoint).and_then(|sidecar| {
        let options = ReaderOptions { submission: args.io.into(), ..ReaderOptions::default() };
        // The very reads that streaming will do.
        sidecar.verify_some(&mut sidecar.reader(&options)?)?;
        let found = probe(sidecar.files(), sidecar.max_stride(), args.io.into(), PROBE)?;
        Ok((sidecar, found))
    });
    let signal = |valid: bool, extension: &str| {
        Signal::new("direct-pread")
            .with("expected", 1)
            .with("sidecar_present", u8::from(present))
            .with("sidecar_valid", u8::from(valid))
            .with("native_extension", extension)
            .with("fallback_policy", args.fallback_policy.as_str())
    };
    match opened {
        Ok((_, found)) => {
            info!(seconds = started.elapsed().as_secs_f64(), "sidecar opened, drive probed");
            if let Some(reason) = found.direct.why_off() {
                warn!(reason, "direct reads are off: the page cache takes memory and time from the experts");
            }
            let options = StreamingOptions {
                submission: args.io.into(),
                caching: found.caching,
                // More in flight than the drive needs costs nothing where all are waited for, and keeps it busy while others work.
                depth: found.depth.max(IN_FLIGHT),
                probed_bandwidth: Some(found.bandwidth),
                ..StreamingOptions::default()
            };
            let signal = reading(signal(true, "ready"), &found, options.depth);
            Ok(Drive { residency: Residency::Streaming, depth: options.depth, options, signal })
        }
        Err(error) if args.fallback_policy == FallbackArg::Diagnostic => {
            warn!(%error, "no valid sidecar: experts are read slice by slice out of safetensors, slowly");
            let options =
                StreamingOptions { source: StreamingSource::Diagnostic, ..StreamingOptions::default() };
            Ok(Drive {
                residency: Residency::Diagnostic,
                depth: 0,
                options,
                signal: signal(false, "missing"),
            })
        }
        Err(error) => {
            signal(false, "missing").emit_to(red);
            Err(Exit::input(format!("--streaming: {error}; {}", way_out(checkpoint, &error))))
        }
    }
}

/// What an operator can do about a sidecar that cannot be used.
fn way_out(checkpoint: &Checkpoint, error: &SidecarError) -> String {
    if let Some(index) = checkpoint.resident_index() {
        // There are no other tensors to write it from, or to read instead.
        let (source, quantized) = index.source.split_once('+').unwrap_or((&index.source, ""));
        let how = if quantized.is_empty() { String::new() } else { format!(", quantized to {quantized}") };
        return format!(
            "a converted checkpoint has its experts there alone: bring the files back, or convert its source (id {source}{how}) \
             again with `mach convert SOURCE --out NEW_DIR`"
        );
    }
    let anew = match error {
        SidecarError::Missing { .. } => "",
        _ => "`mach export-sidecar` writes it anew; ",
    };
    format!("{anew}--fallback-policy diagnostic reads the checkpoint's own tensors, slowly")
}

fn reading(signal: Signal, found: &ProbeReport, depth: usize) -> Signal {
    signal
        .with("mode", found.submission)
        .with("direct", u8::from(found.caching == Caching::Direct))
        .with("direct_reads", found.direct.name())
        .with("depth", depth)
        .with("probed_depth", found.depth)
        .with("read_kib", found.read_kib)
        .with("probed_bytes_per_second", found.bandwidth as u64)
}

#[cfg(test)]
mod tests {
    use mach_models::DraftNeeds;

    use super::*;
    use crate::args::ModelArgs;

    /// What nobody asked for is not there at the price of experts in memory, or of a bank.
    #[test]
    fn a_block_that_would_move_the_experts_is_seen() {
        let demo = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let checkpoint = Checkpoint::open(&demo).unwrap();
        let same = |change: &dyn Fn(&mut ExpertArgs), bytes: usize| {
            let mut config = ModelArgs::of(&demo).validate().unwrap();
            change(&mut config.experts);
            let sizing = |draft| Sizing::new(&checkpoint, &config, Beside { draft, ..Beside::alone() });
            same_place(&config, &sizing(DraftNeeds::of_weights(bytes)), &sizing(DraftNeeds::default()))
        };
        const SMALL: usize = 1 << 10;
        const HUGE: usize = 1 << 44;
        let usual = |_: &mut ExpertArgs| ();
        let in_memory = |args: &mut ExpertArgs| args.no_streaming = true;
        let streamed = |args: &mut ExpertArgs| args.streaming = true;
        assert!(same(&usual, SMALL) && !same(&usual, HUGE));
        assert!(same(&in_memory, SMALL) && !same(&in_memory, HUGE));
        assert!(same(&streamed, SMALL) && !same(&streamed, HUGE));
        // Where nothing fits in any case, the block makes no difference.
        let little = |args: &mut ExpertArgs| {
            args.streaming = true;
            args.memory_gb = Some(Gigabytes { bytes: 1 << 20 });
        };
        assert!(same(&little, SMALL));
    }
}
