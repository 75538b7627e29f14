//! A model that takes as long as a checkpoint's without being loaded in full: every matrix has the values of the first one laid out
//! alike, and few experts stand for all. Its answers mean nothing.

use mach_checkpoint::Checkpoint;
use mach_experts::{Bank, Sidecar};
use mach_io::{HugeBuf, ReaderOptions};
use mach_kernels::{Cores, Isa};
use mach_models::device::Placement as _;
use mach_models::{Decoder, ExpertMode, LoadOptions, Model, ModelError};
use mach_quant::MatrixLayout;

use crate::cpu::Cpu;
use crate::experts::Experts;
use crate::load::{bank_error, streaming_bank, supports};
use crate::placement::CpuPlacement;
use crate::{fill, order_of};

/// Makes one that holds `expert_bytes` of experts at most, or streams the checkpoint's own if the options say so. For timing
/// passes.
pub fn stand_in(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    expert_bytes: usize,
) -> Result<Box<dyn Model>, ModelError> {
    supports(checkpoint.config(), options)?;
    let isa = match &options.isa {
        Some(name) => name.parse().map_err(ModelError::Unsupported)?,
        None => Isa::best(),
    };
    let cpu = Cpu::new(Cores::new(options.threads, isa), options.activations, options.turboquant_kv);
    let mut decoder = Decoder::load(checkpoint, cpu.standing_in(), &mut |_| ())?;
    let order = order_of(options.activations);
    if let ExpertMode::Streaming(streaming) = &options.experts {
        let bank = streaming_bank(checkpoint, streaming, order)?;
        decoder.device_mut().give(Experts::Streaming(Box::new(bank)));
    } else if checkpoint.config().moe_layers.contains(&true) {
        let sidecar = match Sidecar::open(checkpoint) {
            Ok(sidecar) => Some(sidecar),
            Err(error) if checkpoint.resident_index().is_some() => return Err(error.into()),
            Err(_) => None,
        };
        let bank = match &sidecar {
            Some(sidecar) => {
                let mut reader = sidecar.reader(&ReaderOptions::default())?;
                Bank::stand_in_of_sidecar(sidecar, order, &mut reader, expert_bytes)
            }
            None => Bank::stand_in(checkpoint, order, expert_bytes),
        };
        decoder.device_mut().give(Experts::Resident(bank.map_err(bank_error)?));
    }
    Ok(Box::new(decoder))
}

/// As [`fill::fill`], but reads only the first matrix of each layout and copies it to the others.
pub(crate) fn fill_alike(placement: &CpuPlacement<'_>, threads: usize) -> Result<HugeBuf, ModelError> {
    let mut firsts = CpuPlacement::new(placement.tensors, placement.order, 0);
    let mut kinds: Vec<(MatrixLayout, usize)> = Vec::new();
    for item in &placement.items {
        if kinds.iter().all(|(layout, _)| *layout != item.matrix.layout) {
            kinds.push((item.matrix.layout, firsts.take(item)));
        }
    }
    debug_assert!(firsts.weight_bytes() <= placement.weight_bytes());
    let values = fill::fill(&firsts, threads, &mut |_| ())?;
    let mut memory = HugeBuf::zeroed(placement.bytes()).map_err(|e| ModelError::Memory(e.to_string()))?;
    for item in &placement.items {
        let layout = item.matrix.layout;
        let from = kinds.iter().find(|(kind, _)| *kind == layout).map(|&(_, offset)| offset);
        let (Some(from), len) = (from, layout.bytes()) else { continue };
        memory[item.matrix.offset..item.matrix.offset + len].copy_from_slice(&values[from..from + len]);
    }
    Ok(memory)
}
