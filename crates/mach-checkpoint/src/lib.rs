//! What is on disk: `config.json`, the architecture registry, safetensors shards, tokenizer files.
//!
//! [`Checkpoint::open`] reads and validates everything that can be validated without touching tensor data;
//! tensors are memory mapped and handed out as [`TensorView`]s. Errors name the file and, where there is one, the tensor.

mod checkpoint;
mod config;
mod error;
mod quantized;

pub use checkpoint::{Checkpoint, Dtype, TensorView};
pub use config::{Family, GdnConfig, GenerationConfig, LayerKind, ModelConfig, MoeConfig, RopeConfig};
pub use error::CheckpointError;
pub use quantized::{LinearSource, Packing};
