//! Which draft there is for a checkpoint, its own block included: found by headers, loaded, and what that makes of decoding.

use std::path::PathBuf;
use std::sync::Arc;

use mach_checkpoint::{Checkpoint, MtpNaming, SpecdecKind};
use mach_models::{DraftNeeds, Model};
use mach_server::Decoding;
use mach_specdec::policy::RhoGate;
use mach_specdec::{DFlash, Draft, DraftOptions, DraftState, EffectivePath, Mtp, MtpDraft, resolve};
use tracing::warn;

use crate::Exit;
use crate::args::ModelConfig;
use crate::sizing::{Beside, Sizing};

/// Where the draft is, if there is one.
pub(crate) fn draft_dir(config: &ModelConfig) -> Option<PathBuf> {
    let inside = config.checkpoint.join("draft");
    config.draft_dir.clone().or_else(|| inside.join("config.json").is_file().then_some(inside))
}

/// A draft, looked at before it is loaded.
#[derive(Debug)]
pub(crate) enum DraftFound {
    /// There is none, or it is not wanted.
    None,
    /// It cannot be used.
    Unusable(String),
    /// It can, and takes so much.
    Usable(DraftNeeds),
    /// The model's own block that predicts a token more, or an EAGLE-3 head, which makes this path.
    Block(EffectivePath, DraftNeeds),
    /// The model has no such block, or the head cannot be used, and why.
    NoBlock(EffectivePath, String),
    /// There is no draft, and no block either that could take its place, and why.
    Neither(String),
}

/// What became of a draft.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// On the model's device, if there is one.
    pub(crate) draft: Option<Arc<dyn Draft>>,
    /// Bytes of its weights.
    pub(crate) bytes: Option<usize>,
    /// How tokens are decoded.
    pub(crate) decoding: Decoding,
}

impl DraftFound {
    /// What it takes of memory.
    pub(crate) fn needs(&self) -> DraftNeeds {
        match self {
            DraftFound::Usable(needs) | DraftFound::Block(_, needs) => *needs,
            _ => DraftNeeds::default(),
        }
    }

    /// As the gate takes it.
    pub(crate) fn state(&self) -> DraftState<'_> {
        match self {
            DraftFound::None | DraftFound::Neither(_) => DraftState::Absent,
            DraftFound::Unusable(reason) => DraftState::Unusable(reason),
            DraftFound::Usable(_) => DraftState::Ready,
            DraftFound::Block(path, _) => DraftState::Block(*path),
            DraftFound::NoBlock(path, reason) => DraftState::NoBlock(*path, reason),
        }
    }

    /// Loads it, and decides how tokens are decoded.
    pub(crate) fn load(
        &self,
        checkpoint: &Checkpoint,
        config: &ModelConfig,
        model: &mut dyn Model,
    ) -> Result<Loaded, Exit> {
        let own = match self {
            DraftFound::Block(path, _) | DraftFound::NoBlock(path, _) => Some(*path),
            _ => own_path(checkpoint).filter(|path| path.is_v4()),
        };
        match own {
            Some(path) => {
                let (block, decoding) = load_block(checkpoint, config, path, model)?;
                let bytes = block.as_ref().map(|block| block.weight_bytes());
                let gate = path.is_v4().then(|| Arc::new(RhoGate::new(config.rho_gate)));
                let draft = block.map(|block| Arc::new(MtpDraft::new(block, gate)) as Arc<dyn Draft>);
                Ok(Loaded { draft, bytes, decoding })
            }
            None => {
                if let DraftFound::Neither(reason) = self
                    && mach_models::mtp::present(checkpoint)
                {
                    warn!(reason, "decoding without the model's own block");
                }
                let (draft, decoding) = load_draft(config, model)?;
                let bytes = draft.as_ref().map(|draft| draft.weight_bytes());
                Ok(Loaded { draft: draft.map(|draft| draft as Arc<dyn Draft>), bytes, decoding })
            }
        }
    }
}

/// Whether there are drafts for the checkpoint's family.
pub(crate) fn has_drafts(checkpoint: &Checkpoint) -> bool {
    checkpoint.family().specdec_kind == SpecdecKind::SpecdecV7
}

/// The path that the model's own block makes, if the family has one.
pub(crate) fn own_path(checkpoint: &Checkpoint) -> Option<EffectivePath> {
    let family = checkpoint.family();
    match (family.specdec_kind, family.mtp) {
        (SpecdecKind::V4Mtp, _) => Some(EffectivePath::V4Mtp),
        (_, MtpNaming::None) => None,
        _ => Some(EffectivePath::Mtp),
    }
}

/// Where an EAGLE-3 head is, if one is given for a family that takes them.
fn head_dir(config: &ModelConfig, checkpoint: &Checkpoint) -> Option<PathBuf> {
    let takes = own_path(checkpoint).is_some_and(EffectivePath::is_v4);
    draft_dir(config).filter(|dir| takes && mach_models::eagle3::is_head(dir))
}

/// The draft that loading would use, by its headers. Where a draft is for the family, its own block is looked at only if
/// there is none.
fn draft_found(config: &ModelConfig, checkpoint: &Checkpoint) -> DraftFound {
    let (dir, path) = (draft_dir(config), own_path(checkpoint));
    let options = DraftOptions { quantize_bits: config.draft_bits };
    if let Some(dir) = head_dir(config, checkpoint) {
        return match mach_cpu::check_head(&dir, checkpoint.config(), &config.load, options) {
            _ if !wants_block(config, EffectivePath::V4Eagle3) => DraftFound::None,
            Ok(needs) => DraftFound::Block(EffectivePath::V4Eagle3, needs),
            Err(error) => DraftFound::NoBlock(EffectivePath::V4Eagle3, of_draft(config, &error)),
        };
    }
    // Other drafts are not for a family whose own block is under a gate.
    let dir = dir.filter(|_| !path.is_some_and(EffectivePath::is_v4));
    let Some(dir) = dir else {
        let Some(path) = path.filter(|&path| wants_block(config, path)) else { return DraftFound::None };
        return match mach_cpu::check_block(checkpoint, &config.load, options) {
            Ok(needs) => DraftFound::Block(path, needs),
            Err(error) if path.is_v4() => DraftFound::NoBlock(path, error.to_string()),
            Err(error) => DraftFound::Neither(error.to_string()),
        };
    };
    let gate = resolve(config.decode_path, config.policy, has_drafts(checkpoint), DraftState::Ready);
    if gate.effective != EffectivePath::SpecdecV7 {
        return DraftFound::None;
    }
    match mach_cpu::check_draft(&dir, checkpoint.config(), &config.load, options) {
        Ok(needs) => DraftFound::Usable(needs),
        Err(error) => DraftFound::Unusable(of_draft(config, &error)),
    }
}

/// The draft that loading would use, and what is needed beside the model with it. A block that nobody asked for is left
/// where the model has no room with it, or would have to stream its experts for it.
pub(crate) fn draft_that_fits(
    config: &ModelConfig,
    checkpoint: &Checkpoint,
    beside: Beside,
) -> (DraftFound, Beside) {
    let found = draft_found(config, checkpoint);
    let with = Beside { draft: found.needs(), ..beside };
    if !matches!(found, DraftFound::Block(EffectivePath::Mtp, _)) {
        return (found, with);
    }
    let sizing = |beside| Sizing::new(checkpoint, config, beside);
    if crate::experts::same_place(config, &sizing(with), &sizing(beside)) {
        return (found, with);
    }
    (DraftFound::Neither("there is no room for the model's own block".to_owned()), beside)
}

/// What is wrong with a draft. A directory that was given is named as such, whatever it is.
fn of_draft(config: &ModelConfig, error: &dyn std::fmt::Display) -> String {
    match &config.draft_dir {
        Some(dir) if !dir.is_dir() => format!("--draft-dir {}: there is no such directory", dir.display()),
        Some(dir) => format!("--draft-dir {}: {error}", dir.display()),
        None => error.to_string(),
    }
}

/// Loads the draft, if there is one, and decides how tokens are decoded.
pub(crate) fn load_draft(
    config: &ModelConfig,
    model: &mut dyn Model,
) -> Result<(Option<Arc<DFlash>>, Decoding), Exit> {
    let dir = draft_dir(config);
    let family = model.can_be_drafted_for();
    // What would be decided with a sound draft: one that is not wanted is not loaded.
    let wanted = dir.filter(|_| {
        let gate = resolve(config.decode_path, config.policy, family, DraftState::Ready);
        gate.effective == EffectivePath::SpecdecV7
    });
    let options = DraftOptions { quantize_bits: config.draft_bits };
    let loaded = wanted.as_ref().map(|dir| model.load_draft(dir, options));
    let loaded = loaded.map(|result| result.map_err(|error| of_draft(config, &error)));
    let state = match &loaded {
        None => DraftState::Absent,
        Some(Err(reason)) => DraftState::Unusable(reason),
        Some(Ok(_)) => DraftState::Ready,
    };
    let gate = resolve(config.decode_path, config.policy, family, state);
    if config.require_draft && gate.effective != EffectivePath::SpecdecV7 {
        return Err(Exit::input(format!("--require-draft: {}", gate.reason)));
    }
    if let DraftState::Unusable(reason) = state {
        warn!(reason, "decoding without the draft");
    }
    let draft = loaded.and_then(Result::ok).map(Arc::new);
    Ok((draft, Decoding { path: config.decode_path, gate, policy: config.policy, guard: config.guard }))
}

/// Whether the model's own block would be used if it is sound.
fn wants_block(config: &ModelConfig, path: EffectivePath) -> bool {
    resolve(config.decode_path, config.policy, false, DraftState::Block(path)).effective == path
}

/// Loads the model's own block, or an EAGLE-3 head, if there is one, and decides how tokens are decoded.
fn load_block(
    checkpoint: &Checkpoint,
    config: &ModelConfig,
    path: EffectivePath,
    model: &mut dyn Model,
) -> Result<(Option<Arc<Mtp>>, Decoding), Exit> {
    let options = DraftOptions { quantize_bits: config.draft_bits };
    let head = head_dir(config, checkpoint);
    let load = || match &head {
        Some(dir) => model.load_eagle(dir, options).map_err(|error| of_draft(config, &error)),
        None => model.load_mtp(checkpoint, options).map_err(|error| error.to_string()),
    };
    let loaded = wants_block(config, path).then(load);
    let state = match &loaded {
        None => DraftState::Absent,
        Some(Err(reason)) => DraftState::NoBlock(path, reason),
        Some(Ok(_)) => DraftState::Block(path),
    };
    let gate = resolve(config.decode_path, config.policy, model.can_be_drafted_for(), state);
    if config.require_draft && gate.effective != path {
        return Err(Exit::input(format!("--require-draft: {}", gate.reason)));
    }
    match (&config.draft_dir, &head, state) {
        (_, Some(_), DraftState::NoBlock(_, reason)) => warn!(reason, "decoding without the draft"),
        (Some(dir), None, _) => {
            warn!(dir = %dir.display(), "this draft is not for this family: EAGLE-3 heads are, and its own block");
        }
        _ => {}
    }
    let block = loaded.and_then(Result::ok).map(Arc::new);
    Ok((block, Decoding { path: config.decode_path, gate, policy: config.policy, guard: config.guard }))
}
