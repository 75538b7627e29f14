//! One error type for everything read from a checkpoint directory.

use std::path::{Path, PathBuf};

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
    /// There is no directory of this name.
    #[error("{}: {reason}", path.display())]
    NoDirectory {
        /// What was given.
        path: PathBuf,
        /// What it is instead, or may have been meant as.
        reason: &'static str,
    },
    /// A file was read but its contents are not what they must be.
    #[error("{}: {reason}", file.display())]
    Invalid {
        /// The file that is not valid.
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
    #[error(
        "{}: model_type `{model_type}` is not supported; known: {known}. llama.cpp, mlx-lm or vLLM may serve it",
        file.display()
    )]
    UnknownArchitecture {
        /// `config.json`.
        file: PathBuf,
        /// The value found.
        model_type: String,
        /// The known ones, comma separated.
        known: String,
    },
}

impl CheckpointError {
    /// What is wrong with a path that is no directory.
    pub(crate) fn no_directory(path: &Path) -> Self {
        let words: Vec<&str> = path.to_str().unwrap_or_default().split('/').collect();
        let reason = match words.as_slice() {
            _ if path.is_file() => {
                "this is a file; give the directory of the checkpoint, with config.json and safetensors"
            }
            [owner, name] if !owner.is_empty() && !owner.starts_with('.') && !name.is_empty() => {
                "there is no such directory; it looks like the name of a model on a hub: download it first (`hf download`)"
            }
            _ => "there is no such directory",
        };
        Self::NoDirectory { path: path.to_owned(), reason }
    }

    /// An input/output failure of `file`, for `map_err`.
    pub(crate) fn io(file: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { file: file.to_owned(), source }
    }

    /// Unusable contents of `file`.
    pub(crate) fn invalid(file: &Path, reason: impl Into<String>) -> Self {
        Self::Invalid { file: file.to_owned(), reason: reason.into() }
    }

    /// An unusable or missing tensor.
    pub(crate) fn tensor(file: &Path, tensor: &str, reason: impl Into<String>) -> Self {
        Self::Tensor { file: file.to_owned(), tensor: tensor.to_owned(), reason: reason.into() }
    }
}
