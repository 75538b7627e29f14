//! What is on disk: `config.json`, the registry of families, safetensors shards, tokenizer files.
//!
//! [`Checkpoint::open`] reads and validates everything that can be validated without touching tensor data;
//! tensors are memory mapped and handed out as [`TensorView`]s. Errors name the file and, where there is one, the tensor.

mod checkpoint;
mod config;
mod error;
mod experts;
mod families;
mod finite;
mod header;
mod identity;
mod json;
mod layout;
mod quantized;
mod resident;
mod shards;
mod source;
pub mod synth;
mod tensors;
mod tokenizer;
mod weights;

pub use checkpoint::{Checkpoint, TensorView};
pub use config::{
    CompressedConfig, Family, GdnConfig, Gemma3Config, Gemma4Config, GenerationConfig, LayerKind,
    Llama3Config, ModelConfig, MoeConfig, RopeConfig, YarnConfig,
};
pub use error::CheckpointError;
pub use experts::{ExpertBiases, ExpertSource, VectorSource};
pub use families::{
    Batching, FAMILIES, FamilyCard, KvCacheKind, MtpNaming, Naming, OutputConvention, Row, SpecdecKind,
    SwigluVariant, Synthetic, Yarn,
};
pub use header::{Dtype, TensorEntry, parse_header};
pub use identity::{FileStamp, WeightFile};
pub use layout::ExpertTensors;
pub use quantized::{LinearSource, Packing};
pub use resident::{
    MANIFEST_FILE, RESIDENT_FILE, RESIDENT_FORMAT, ResidentIndex, ResidentTensor, SIDECAR_DIR,
};
pub use tensors::Tensors;
pub use tokenizer::ChatTemplate;
pub use weights::{PackedMatrix, WeightSource};
