//! What belongs to a checkpoint, and the command that makes what is missing.

use std::path::Path;

use mach_checkpoint::{Checkpoint, ExpertTensors, MANIFEST_FILE};
use mach_experts::Sidecar;
use mach_specdec::EffectivePath;
use serde::Serialize;

use crate::args::ModelConfig;
use crate::drafts::{DraftFound, draft_dir, has_drafts};

/// A part of a checkpoint.
#[derive(Debug, Serialize)]
pub(crate) struct Artifact {
    pub(crate) name: &'static str,
    pub(crate) present: bool,
    /// Whether it can be used; null if it is not there.
    pub(crate) valid: Option<bool>,
    /// What it is, or what is wrong.
    pub(crate) detail: String,
    /// The command that makes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) command: Option<String>,
}

impl Artifact {
    fn of(name: &'static str, found: Result<Option<String>, String>, present: bool) -> Self {
        let (valid, detail) = match found {
            Ok(Some(detail)) => (Some(true), detail),
            Ok(None) => (None, "missing".to_owned()),
            Err(reason) => (Some(false), reason),
        };
        Self { name, present, valid: valid.filter(|_| present), detail, command: None }
    }

    fn made_by(self, command: String) -> Self {
        Self { command: Some(command).filter(|_| self.valid != Some(true)), ..self }
    }
}

/// All of them.
pub(crate) fn of(checkpoint: &Checkpoint, config: &ModelConfig, draft: &DraftFound) -> Vec<Artifact> {
    let dir = checkpoint.dir();
    let at = dir.display();
    let weights = checkpoint.files();
    let bytes: u64 = weights.iter().map(|file| file.stamp.bytes).sum();
    let mut all = vec![
        Artifact::of("config.json", Ok(Some(checkpoint.config().model_type.clone())), true),
        Artifact::of("weights", Ok(Some(format!("{} files, {bytes} bytes", weights.len()))), true),
        tokenizer(checkpoint),
        template(checkpoint),
    ];
    if checkpoint.expert_tensors() != ExpertTensors::None {
        all.push(sidecar(checkpoint).made_by(format!("mach export-sidecar {at}")));
    }
    let engine = checkpoint.resident_index().is_some();
    let found = if engine { Ok(Some("laid out for the kernels".to_owned())) } else { Ok(None) };
    all.push(
        Artifact::of("engine format", found, engine).made_by(format!("mach convert {at} --out DIRECTORY")),
    );
    all.extend(of_draft(config, draft, has_drafts(checkpoint)));
    all
}

fn tokenizer(checkpoint: &Checkpoint) -> Artifact {
    let present = checkpoint.dir().join("tokenizer.json").is_file();
    let found = checkpoint.tokenizer().map_err(|e| e.to_string());
    Artifact::of("tokenizer.json", found.map(|t| Some(format!("{} tokens", t.get_vocab_size(true)))), present)
}

fn template(checkpoint: &Checkpoint) -> Artifact {
    let found = checkpoint.chat_template().map_err(|e| e.to_string());
    let present = !matches!(found, Ok(None));
    Artifact::of("chat template", found.map(|t| t.map(|t| format!("{} characters", t.source.len()))), present)
}

fn sidecar(checkpoint: &Checkpoint) -> Artifact {
    let present = checkpoint.dir().join(MANIFEST_FILE).exists();
    let found = match Sidecar::open(checkpoint) {
        _ if !present => Ok(None),
        Ok(sidecar) => {
            let records = sidecar.experts().count();
            Ok(Some(format!("{records} records of up to {} bytes", sidecar.max_stride())))
        }
        Err(error) => Err(error.to_string()),
    };
    Artifact::of("expert_sidecar", found, present)
}

/// The draft, and the model's own block where that is looked for.
fn of_draft(config: &ModelConfig, draft: &DraftFound, has_drafts: bool) -> Vec<Artifact> {
    let dir = draft_dir(config);
    let present = dir.as_deref().is_some_and(Path::is_dir);
    let found = match draft {
        DraftFound::Usable(needs) => Ok(Some(format!("{} bytes of weights", needs.weights))),
        DraftFound::Unusable(reason) => Err(reason.clone()),
        DraftFound::Block(EffectivePath::V4Eagle3, needs) => {
            Ok(Some(format!("an EAGLE-3 head, {} bytes of weights", needs.weights)))
        }
        DraftFound::NoBlock(EffectivePath::V4Eagle3, reason) => Err(reason.clone()),
        DraftFound::Block(..) | DraftFound::NoBlock(..) | DraftFound::Neither(_) => {
            let block = match draft {
                DraftFound::Block(_, needs) => {
                    let found = format!("the model's own block, {} bytes", needs.weights);
                    Artifact::of("mtp", Ok(Some(found)), true)
                }
                DraftFound::NoBlock(_, reason) | DraftFound::Neither(reason) => {
                    Artifact::of("mtp", Err(reason.clone()), false)
                }
                _ => return Vec::new(),
            };
            // Where a draft comes before the block, it is missing.
            let missing = has_drafts.then(|| Artifact::of("draft", Ok(None), false));
            return missing.into_iter().chain([block]).collect();
        }
        DraftFound::None if present => Ok(Some("not wanted".to_owned())),
        DraftFound::None => Ok(None),
    };
    vec![Artifact::of("draft", found, present)]
}
