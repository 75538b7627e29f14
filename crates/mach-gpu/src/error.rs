//! What may go wrong on a GPU.

use std::time::Duration;

/// Why there is no GPU, or why it did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GpuError {
    /// The Vulkan loader is not installed.
    #[error("no Vulkan loader: {0}")]
    NoLoader(String),
    /// There is a loader, but no driver of any device.
    #[error("no Vulkan driver: {0}")]
    NoDriver(String),
    /// Drivers are there and have no device.
    #[error("no GPU")]
    NoAdapter,
    /// All that is there computes on the CPU, which is taken only if it is asked for by its number.
    #[error("no GPU but a software one ({0}), which is used only if asked for by its number")]
    OnlySoftware(String),
    /// There are fewer.
    #[error("no GPU {asked}: there are {count}, numbered from 0")]
    NoSuchAdapter {
        /// The number asked for.
        asked: usize,
        /// How many there are.
        count: usize,
    },
    /// The adapter cannot run the shaders.
    #[error("{adapter} lacks {what}")]
    Lacks {
        /// Name of the adapter.
        adapter: String,
        /// What it lacks.
        what: String,
    },
    /// The driver gave no device.
    #[error("{adapter} gave no device: {why}")]
    Refused {
        /// Name of the adapter.
        adapter: String,
        /// The driver's reason.
        why: String,
    },
    /// A shader that does not compile, or breaks a rule.
    #[error("shader {name}: {why}")]
    Shader {
        /// Name of the shader.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A command that does not fit what it is given.
    #[error("GPU: {0}")]
    Invalid(String),
    /// The device has no memory left.
    #[error("GPU out of memory: {0}")]
    OutOfMemory(String),
    /// The device is gone: driver reset, removed, crashed.
    #[error("GPU lost: {0}")]
    Lost(String),
    /// The device did not finish in time.
    #[error("GPU did not finish in {0:?}")]
    Hang(Duration),
}

impl GpuError {
    /// Whether the device is of no more use.
    pub fn is_fatal(&self) -> bool {
        matches!(self, GpuError::Lost(_) | GpuError::Hang(_))
    }
}
