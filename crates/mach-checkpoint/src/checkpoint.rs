//! The checkpoint directory and its mapped shards.

use std::path::{Path, PathBuf};

use crate::{CheckpointError, GenerationConfig, LinearSource, ModelConfig};

/// Element types met in checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 64-bit signed.
    I64,
    /// 32-bit signed.
    I32,
    /// 32-bit unsigned; packed codes of MLX.
    U32,
    /// Bytes.
    U8,
    /// Signed bytes.
    I8,
    /// OCP e4m3.
    F8E4M3,
    /// Power-of-two scale.
    F8E8M0,
}

/// A tensor as it lies in its mapped shard. `data` may be unaligned for its type.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    /// Full name.
    pub name: &'a str,
    /// Shard that holds it.
    pub file: &'a Path,
    /// Element type.
    pub dtype: Dtype,
    /// Shape, outermost first.
    pub shape: &'a [usize],
    /// Raw little-endian bytes.
    pub data: &'a [u8],
}

/// An opened checkpoint: configuration parsed, shards mapped, headers checked.
#[derive(Debug)]
pub struct Checkpoint {
    // to be filled
    dir: PathBuf,
    config: ModelConfig,
    generation: GenerationConfig,
}

impl Checkpoint {
    /// Opens `dir`: parses `config.json` and `generation_config.json`, maps every shard of the index (or the single
    /// `model.safetensors`, or all `*.safetensors`), checks all headers against their files.
    pub fn open(_dir: &Path) -> Result<Self, CheckpointError> {
        unimplemented!("interface sketch")
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The model's settings.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Sampling defaults and stop ids.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// Whether a tensor of this full name exists.
    pub fn has(&self, _name: &str) -> bool {
        unimplemented!("interface sketch")
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::empty()
    }

    /// The tensor of this full name.
    pub fn tensor(&self, _name: &str) -> Result<TensorView<'_>, CheckpointError> {
        unimplemented!("interface sketch")
    }

    /// The tensor, as f32 values (F32, F16, BF16 widened), its shape checked, every value finite.
    pub fn floats(&self, _name: &str, _shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        unimplemented!("interface sketch")
    }

    /// The weight of a linear layer or embedding table: module path without `.weight`, logical shape `[rows, cols]`.
    /// The shapes in the file settle bits, group and mode (architectures.md section 7); a contradiction with
    /// `config.json` is an error.
    pub fn linear(
        &self,
        _module: &str,
        _rows: usize,
        _cols: usize,
    ) -> Result<LinearSource<'_>, CheckpointError> {
        unimplemented!("interface sketch")
    }

    /// A stack `[experts, rows, cols]` as one source per expert. `module` as in `linear`; bf16 stacks may have no `.weight` suffix.
    pub fn linear_stack(
        &self,
        _module: &str,
        _experts: usize,
        _rows: usize,
        _cols: usize,
    ) -> Result<Vec<LinearSource<'_>>, CheckpointError> {
        unimplemented!("interface sketch")
    }
}
