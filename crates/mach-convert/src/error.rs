//! Why a conversion ends early.

use std::path::{Path, PathBuf};

use mach_checkpoint::CheckpointError;
use mach_experts::{ManifestError, SidecarError};

/// Why a conversion cannot be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// The source is unusable, or the result is.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The sidecar is unusable.
    #[error(transparent)]
    Sidecar(#[from] SidecarError),
    /// A manifest could not be made.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A request that makes no sense.
    #[error("{0}")]
    Input(String),
    /// The drive has too little space to begin.
    #[error("{}: {needed} bytes are needed, {available} are free", dir.display())]
    Space {
        /// Directory on the drive.
        dir: PathBuf,
        /// Bytes still to write.
        needed: u64,
        /// Bytes free.
        available: u64,
    },
    /// The drive filled up on the way.
    #[error(
        "{}: the drive is full; make room and run the same command again, it goes on where it stopped",
        file.display()
    )]
    Full {
        /// The file that was being written.
        file: PathBuf,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file that failed.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
}

impl ConvertError {
    /// A failure of `file`, for `map_err`.
    pub(crate) fn io(file: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::Full { file: file.to_owned() }
            }
            _ => Self::Io { file: file.to_owned(), source },
        }
    }
}
