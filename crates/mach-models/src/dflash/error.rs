//! What can go wrong with a draft.

use std::path::PathBuf;

use mach_checkpoint::CheckpointError;

use crate::ModelError;

/// Why a draft cannot be loaded or run. Never a reason to fail a request: decoding goes on without it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DraftError {
    /// The draft's files are unusable.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// `config.json` describes a draft that this build cannot run.
    #[error("{}: {reason}", file.display())]
    Config {
        /// The draft's `config.json`.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The draft belongs to another target.
    #[error("the draft does not fit the model: {0}")]
    Mismatch(String),
    /// The device failed, or cannot hold or run the draft.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The draft produced what no token can be chosen from.
    #[error("the draft's logits are not finite")]
    NotFinite,
}
