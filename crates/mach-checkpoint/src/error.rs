//! One error type for everything read from a checkpoint directory.

use std::path::PathBuf;

/// Why a checkpoint cannot be used. Every variant that concerns a file names it; tensors likewise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file could not be read.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file or directory.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file was read but its contents are not what they must be.
    #[error("{}: {reason}", file.display())]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong, in words for a person.
        reason: String,
    },
    /// A tensor is missing, or has a wrong shape, type or value.
    #[error("{}: tensor `{tensor}`: {reason}", file.display())]
    Tensor {
        /// The shard that holds the tensor, or the directory if none does.
        file: PathBuf,
        /// The tensor's full name.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// `model_type` is not one that this build knows.
    #[error("{}: model_type `{model_type}` is not supported; known: {known}", file.display())]
    UnknownArchitecture {
        /// `config.json`.
        file: PathBuf,
        /// The value found.
        model_type: String,
        /// The known ones, comma separated.
        known: String,
    },
}
