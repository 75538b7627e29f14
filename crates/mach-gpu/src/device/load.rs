//! From a checkpoint to a model on a GPU.

use mach_checkpoint::{Checkpoint, ModelConfig};
use mach_models::device::{CheckpointLoader, Device, Placement};
use mach_models::{Activations, Decoder, ExpertMode, LoadOptions, LoadProgress, Model, ModelError};

use super::experts::LayerExperts;
use super::profile::{Profile, UnderWay};
use super::{check, failed, gpu::Gpu};
use crate::{Context, Pipelines};

/// Refuses, naming it, what a GPU cannot run of a model with these settings.
pub fn supports(config: &ModelConfig, options: &LoadOptions) -> Result<(), ModelError> {
    if options.activations == Activations::F32 {
        return Err(ModelError::Unsupported("f32 activations are the CPU's: --device cpu".into()));
    }
    if let Some(kv) = options.turboquant_kv {
        return Err(ModelError::Unsupported(format!("turboquant-kv {kv} is the CPU's: --device cpu")));
    }
    if matches!(options.experts, ExpertMode::Streaming(_)) {
        return Err(ModelError::Unsupported(
            "experts are streamed to the CPU only: --no-streaming, or --device cpu".into(),
        ));
    }
    mach_cpu::supports(config, options)?;
    check::check(&mach_models::spec(config))
}

/// Loads a checkpoint. What the shaders cannot run is refused before anything is read. `exact` says whether the device's
/// bytes were found to be the CPU's; a `profile` hears where the time of passes goes.
pub fn load(
    context: &Context,
    pipelines: Pipelines,
    exact: bool,
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    profile: Option<Profile>,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Model>, ModelError> {
    supports(checkpoint.config(), options)?;
    let mut gpu = Gpu::new(context, pipelines, options, exact);
    let under_way = || UnderWay { started: std::time::Instant::now(), kernels: Vec::new() };
    gpu.profile = profile.map(|profile| (profile, under_way()));
    let mut loader = CheckpointLoader::new(checkpoint, gpu.placement(checkpoint.tensors()));
    mach_models::place(&mut loader)?;
    let weights = loader.placement.weight_bytes();
    drop(loader);
    let footprint = mach_cpu::footprint(checkpoint, options.activations, None)?;
    let bytes_total = weights + footprint.expert_weight_bytes;
    let threads = options.threads.max(1);
    let has_experts = checkpoint.config().moe_layers.contains(&true);
    if has_experts {
        let mut done = |bytes| progress(LoadProgress { bytes_done: bytes, bytes_total });
        let bank = mach_cpu::resident_experts(checkpoint, gpu.order, threads, &mut done)?;
        for layer in 0..checkpoint.config().layers.len() {
            gpu.experts.push(LayerExperts::bring(context, &bank, layer).map_err(failed)?);
        }
        gpu.expert_bytes = bank.weight_bytes();
    }
    let before = gpu.expert_bytes;
    let decoder = Decoder::load(checkpoint, gpu, &mut |bytes| {
        progress(LoadProgress { bytes_done: before + bytes, bytes_total });
    })?;
    Ok(Box::new(decoder))
}
