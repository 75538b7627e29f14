//! Every path, residency and device: whether it would run, and why.

use mach_checkpoint::{Checkpoint, ExpertTensors, MANIFEST_FILE};
use mach_experts::Sidecar;
use mach_models::{ExpertMode, LoadOptions, StreamingOptions, StreamingSource};
use mach_specdec::{DecodePath, DraftState, EffectivePath, resolve};
use serde::Serialize;

use super::Fit;
use super::fit::Verdict;
use crate::args::ModelConfig;
use crate::device::on_gpu;
use crate::drafts::{DraftFound, has_drafts, own_path};
use crate::experts::FallbackArg;

/// One way of running the checkpoint.
#[derive(Debug, Serialize)]
pub(crate) struct PathCheck {
    pub(crate) device: &'static str,
    pub(crate) residency: &'static str,
    pub(crate) decode_path: String,
    pub(crate) runs: bool,
    pub(crate) reason: String,
}

/// All ways.
pub(crate) fn of(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    draft: &DraftFound,
    resident: &Fit,
    streaming: &Fit,
    supported: &Result<(), String>,
) -> Vec<PathCheck> {
    let fits = |fit: &Fit| match fit.verdict {
        Verdict::WontFit => Err(fit.reason.clone().unwrap_or_default()),
        _ => Ok(()),
    };
    let streamed =
        LoadOptions { experts: ExpertMode::Streaming(StreamingOptions::default()), ..config.load.clone() };
    let gpu = |load: &LoadOptions| on_gpu(config.device, checkpoint, load);
    let (gpu_resident, gpu_streamed) = (gpu(&config.load), gpu(&streamed));
    let residencies = [
        ("stacked", supported.clone().and(fits(resident))),
        ("streaming", supported.clone().and(sidecar(checkpoint, config)).and(fits(streaming))),
        ("bf16_streaming", supported.clone().and(slices(checkpoint)).and(fits(streaming))),
    ];
    let decode_paths = match own_path(checkpoint) {
        Some(own) if own.is_v4() => vec![own, EffectivePath::V4Eagle3, EffectivePath::TargetOnly],
        Some(own) => vec![EffectivePath::SpecdecV7, own, EffectivePath::TargetOnly],
        None => vec![EffectivePath::SpecdecV7, EffectivePath::TargetOnly],
    };
    let mut all = Vec::new();
    for device in ["cpu", "gpu"] {
        for (residency, loads) in &residencies {
            let missing = match (device, *residency) {
                ("cpu", _) => None,
                (_, "stacked") => gpu_resident.as_ref().err(),
                _ => gpu_streamed.as_ref().err(),
            };
            for &wanted in &decode_paths {
                let decodes = decoding(checkpoint, config, draft, wanted);
                let why = match (missing, loads, &decodes) {
                    (Some(reason), ..) => Err(reason.clone()),
                    (_, Err(reason), _) | (_, _, Err(reason)) => Err(reason.clone()),
                    (None, Ok(()), Ok(reason)) => Ok(reason.clone()),
                };
                all.push(PathCheck {
                    device,
                    residency,
                    decode_path: wanted.to_string(),
                    runs: why.is_ok(),
                    reason: why.unwrap_or_else(|reason| reason),
                });
            }
        }
    }
    all
}

/// Whether the gate takes this path when it is asked to.
fn decoding(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    draft: &DraftFound,
    wanted: EffectivePath,
) -> Result<String, String> {
    let asked = match wanted {
        EffectivePath::TargetOnly => DecodePath::TargetOnly,
        _ => DecodePath::SpecdecV7,
    };
    // A block is taken where there is no draft.
    let state = match (wanted, draft.state()) {
        (EffectivePath::SpecdecV7, DraftState::Block(_)) => DraftState::Absent,
        (EffectivePath::Mtp, DraftState::Ready)
        | (EffectivePath::V4Mtp, DraftState::Block(EffectivePath::V4Eagle3)) => {
            return Err("a draft comes before it".to_owned());
        }
        (EffectivePath::V4Eagle3, DraftState::Block(EffectivePath::V4Mtp)) => {
            return Err("no draft".to_owned());
        }
        (_, state) => state,
    };
    let gate = resolve(asked, config.policy, has_drafts(checkpoint), state);
    match (wanted, draft) {
        (EffectivePath::Mtp, DraftFound::Neither(why)) => Err(why.clone()),
        _ if gate.effective == wanted => Ok(gate.reason),
        _ => Err(gate.reason),
    }
}

/// Whether a server would stream from the sidecar.
fn sidecar(checkpoint: &Checkpoint, config: &ModelConfig) -> Result<(), String> {
    if checkpoint.expert_tensors() == ExpertTensors::None {
        return Err("there are no routed experts to stream".to_owned());
    }
    match Sidecar::open(checkpoint) {
        Ok(_) => Ok(()),
        Err(_) if config.experts.fallback_policy == FallbackArg::Diagnostic => Ok(()),
        Err(error) if checkpoint.dir().join(MANIFEST_FILE).exists() => Err(error.to_string()),
        Err(_) => {
            Err(format!("no expert_sidecar; `mach export-sidecar {}` makes it", checkpoint.dir().display()))
        }
    }
}

fn slices(checkpoint: &Checkpoint) -> Result<(), String> {
    if checkpoint.expert_tensors() == ExpertTensors::None {
        return Err("there are no routed experts to stream".to_owned());
    }
    mach_cpu::footprint(checkpoint, mach_models::Activations::F32, Some(StreamingSource::Bf16))
        .map(drop)
        .map_err(|e| e.to_string())
}
