//! From a checkpoint to a model on this machine's CPU.

use std::path::Path;
use std::sync::Arc;

use mach_checkpoint::{Checkpoint, CheckpointError, ModelConfig};
use mach_experts::{
    Bank, BankError, BankOptions, ExpertFiles, RecordLayout, Sidecar, SlicePool, SliceSource, StreamingBank,
};
use mach_io::ReaderOptions;
use mach_io::faults::Faults;
use mach_kernels::{Cores, Isa};
use mach_models::device::{CheckpointLoader, Device, Placement};
use mach_models::{
    Decoder, DraftError, DraftNeeds, DraftOptions, ExpertMode, LoadOptions, LoadProgress, Model, ModelError,
    StreamingOptions, StreamingSource,
};
use mach_quant::Order;

use crate::cpu::Cpu;
use crate::experts::Experts;
use crate::{check, kv, order_of};

pub(crate) fn bank_error(error: BankError) -> ModelError {
    match error {
        BankError::Checkpoint(e) => ModelError::Checkpoint(e),
        BankError::Sidecar(e) => ModelError::Sidecar(e),
        other => ModelError::Memory(other.to_string()),
    }
}

/// Refuses, naming it, what the kernels cannot run of a model with these settings.
pub fn supports(config: &ModelConfig, options: &LoadOptions) -> Result<(), ModelError> {
    let spec = mach_models::spec(config);
    check::check(&spec)?;
    kv::check(&spec, options.activations, options.turboquant_kv)
}

/// Looks at the draft in `dir` as a target with these settings would load it, and loads nothing.
pub fn check_draft(
    dir: &Path,
    target: &ModelConfig,
    load: &LoadOptions,
    options: DraftOptions,
) -> Result<DraftNeeds, DraftError> {
    let cpu = Cpu::new(Cores::new(1, Isa::best()), load.activations, load.turboquant_kv);
    mach_models::dflash::check_draft(dir, target, options, &cpu)
}

/// Looks at the block for the token after the next that `checkpoint` holds as it would be loaded, and loads nothing.
pub fn check_block(
    checkpoint: &Checkpoint,
    load: &LoadOptions,
    options: DraftOptions,
) -> Result<DraftNeeds, DraftError> {
    let cpu = Cpu::new(Cores::new(1, Isa::best()), load.activations, load.turboquant_kv);
    mach_models::mtp::check_block(checkpoint, options, &cpu)
}

/// Looks at the EAGLE-3 head in `dir` as a target with these settings would load it, and loads nothing.
pub fn check_head(
    dir: &Path,
    target: &ModelConfig,
    load: &LoadOptions,
    options: DraftOptions,
) -> Result<DraftNeeds, DraftError> {
    let cpu = Cpu::new(Cores::new(1, Isa::best()), load.activations, load.turboquant_kv);
    let streams = mach_models::spec(target).streams.map_or(1, |streams| streams.streams);
    mach_models::eagle3::check_head(dir, target, streams, options, &cpu)
}

/// Loads a checkpoint. What the kernels cannot run is refused before anything is read.
pub fn load(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Model>, ModelError> {
    supports(checkpoint.config(), options)?;
    let isa = match &options.isa {
        Some(name) => name.parse().map_err(ModelError::Unsupported)?,
        None => Isa::best(),
    };
    let cpu = Cpu::new(Cores::new(options.threads, isa), options.activations, options.turboquant_kv);
    let files = Files::open(checkpoint, &options.experts, order_of(options.activations))?;
    let weights = weight_bytes(checkpoint, &cpu)?;
    let bytes_total = weights + files.bytes_in_memory(checkpoint)?;
    let mut decoder = Decoder::load(checkpoint, cpu, &mut |bytes_done| {
        progress(LoadProgress { bytes_done, bytes_total });
    })?;
    let mut done = |bytes| progress(LoadProgress { bytes_done: weights + bytes, bytes_total });
    let experts = files.experts(checkpoint, decoder.device().cores.threads(), &mut done)?;
    decoder.device_mut().give(experts);
    Ok(Box::new(decoder))
}

/// All routed experts of a checkpoint in memory, laid out for an activation path; for devices that take them from there.
pub fn resident_experts(
    checkpoint: &Checkpoint,
    order: Order,
    threads: usize,
    done: &mut dyn FnMut(u64),
) -> Result<Bank, ModelError> {
    match Files::open(checkpoint, &ExpertMode::Resident, order)?.experts(checkpoint, threads, done)? {
        Experts::Resident(bank) => Ok(bank),
        Experts::None | Experts::Streaming(_) => {
            Err(ModelError::Device("the experts are not resident".into()))
        }
    }
}

impl Cpu {
    /// Brings the routed experts of the model whose weights this device holds.
    pub fn load_experts(&mut self, checkpoint: &Checkpoint, mode: &ExpertMode) -> Result<(), ModelError> {
        let files = Files::open(checkpoint, mode, order_of(self.activations))?;
        let experts = files.experts(checkpoint, self.cores.threads(), &mut |_| ())?;
        self.give(experts);
        Ok(())
    }
}

/// Where routed experts come from, opened and checked before anything is read.
enum Files {
    /// All to be read: from the sidecar of a converted checkpoint, which has them nowhere else, or from its tensors.
    Resident(Option<Sidecar>, Order),
    Streaming(Box<StreamingBank>),
}

impl Files {
    fn open(checkpoint: &Checkpoint, mode: &ExpertMode, order: Order) -> Result<Self, ModelError> {
        Ok(match mode {
            ExpertMode::Resident => {
                let converted = checkpoint.resident_index().is_some();
                Files::Resident(if converted { Some(Sidecar::open(checkpoint)?) } else { None }, order)
            }
            ExpertMode::Streaming(_) if !checkpoint.config().moe_layers.contains(&true) => {
                return Err(ModelError::Unsupported(format!(
                    "{}: there are no routed experts to stream",
                    checkpoint.dir().display()
                )));
            }
            ExpertMode::Streaming(options) => {
                Files::Streaming(Box::new(streaming_bank(checkpoint, options, order)?))
            }
        })
    }

    fn bytes_in_memory(&self, checkpoint: &Checkpoint) -> Result<u64, CheckpointError> {
        match self {
            Files::Resident(sidecar, order) => expert_bytes(checkpoint, sidecar.as_ref(), *order),
            Files::Streaming(_) => Ok(0),
        }
    }

    fn experts(
        self,
        checkpoint: &Checkpoint,
        threads: usize,
        done: &mut dyn FnMut(u64),
    ) -> Result<Experts, ModelError> {
        let bank = match self {
            Files::Streaming(bank) => return Ok(Experts::Streaming(bank)),
            Files::Resident(Some(sidecar), order) => {
                let mut reader = sidecar.reader(&ReaderOptions::default())?;
                Bank::from_sidecar(&sidecar, order, &mut reader, done)
            }
            Files::Resident(None, order) => Bank::resident(checkpoint, order, threads, done),
        };
        bank.map(Experts::Resident).map_err(bank_error)
    }
}

/// Bytes of the weights outside the experts.
fn weight_bytes(checkpoint: &Checkpoint, cpu: &Cpu) -> Result<u64, CheckpointError> {
    let mut loader = CheckpointLoader::new(checkpoint, cpu.placement(checkpoint.tensors()));
    mach_models::place(&mut loader)?;
    Ok(loader.placement.weight_bytes())
}

/// Threads that read slices of safetensors.
const SLICE_THREADS: usize = 4;

pub(crate) fn streaming_bank(
    checkpoint: &Checkpoint,
    options: &StreamingOptions,
    order: Order,
) -> Result<StreamingBank, ModelError> {
    let files = match options.source {
        StreamingSource::Sidecar => {
            let sidecar = Sidecar::open(checkpoint)?;
            let defaults = ReaderOptions::default();
            let reader = sidecar.reader(&ReaderOptions {
                submission: options.submission,
                caching: options.caching,
                depth: if options.depth == 0 { defaults.depth } else { options.depth },
                registered: Vec::new(),
            })?;
            let reader = match &options.faults {
                Some(Faults(plan)) => reader.with_faults(Arc::clone(plan)),
                None => reader,
            };
            ExpertFiles::Records { sidecar, reader }
        }
        StreamingSource::Bf16 | StreamingSource::Diagnostic => {
            let source = slices(checkpoint, options.source, order)?;
            let pool =
                SlicePool::new(source, SLICE_THREADS).map_err(|e| ModelError::Memory(e.to_string()))?;
            ExpertFiles::Slices(pool)
        }
    };
    let bank = StreamingBank::new(
        files,
        BankOptions {
            bank_slots: options.bank_slots,
            arena_slots: options.arena_slots,
            top_k: checkpoint.config().moe.top_k,
            order,
            eviction: options.eviction,
            probed_bandwidth: options.probed_bandwidth,
        },
    )?;
    Ok(bank)
}

/// The experts inside the checkpoint's own tensors.
pub(crate) fn slices(
    checkpoint: &Checkpoint,
    source: StreamingSource,
    order: Order,
) -> Result<SliceSource, ModelError> {
    if checkpoint.resident_index().is_some() {
        return Err(ModelError::Unsupported(format!(
            "{}: written by `mach convert`: its experts are in the sidecar only, not in its safetensors",
            checkpoint.dir().display()
        )));
    }
    let slices = SliceSource::of(checkpoint, order)?;
    if source == StreamingSource::Bf16 && !slices.is_bf16() {
        return Err(ModelError::Unsupported(format!(
            "{}: its experts are not plain bfloat16, which is what bf16_streaming is for",
            checkpoint.dir().display()
        )));
    }
    Ok(slices)
}

/// Bytes of all experts' weights: the sidecar's, or from the first record of each layer.
pub(crate) fn expert_bytes(
    checkpoint: &Checkpoint,
    sidecar: Option<&Sidecar>,
    order: Order,
) -> Result<u64, CheckpointError> {
    let mut total = 0;
    if let Some(sidecar) = sidecar {
        let experts = sidecar.manifest().num_experts as u64;
        let records = sidecar.manifest().layers.iter().map(|e| e.record.in_order(order));
        return Ok(records.map(|r| r.weight_bytes() as u64 * experts).sum());
    }
    for layer in (0..checkpoint.config().layers.len()).filter(|&l| checkpoint.config().moe_layers[l]) {
        let experts = checkpoint.experts(layer)?;
        if let Some(first) = experts.first() {
            let record = RecordLayout::of(first, order)?;
            total += (record.weight_bytes() * experts.len()) as u64;
        }
    }
    Ok(total)
}
