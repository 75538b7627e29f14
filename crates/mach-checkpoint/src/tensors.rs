//! The tensors of a directory of safetensors shards, whatever model they belong to.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::TensorView;
use crate::config::Quantization;
use crate::shards::Shards;
use crate::{CheckpointError, finite, json};

/// Mapped shards with checked headers, and what `config.json` says about their quantization.
#[derive(Debug)]
pub struct Tensors {
    pub(crate) dir: PathBuf,
    pub(crate) quantization: Quantization,
    pub(crate) shards: Shards,
}

impl Tensors {
    /// Maps the shards of `dir`; returns them with the parsed `config.json`, of which only the quantization is
    /// interpreted. For checkpoints that are no model of their own, such as drafts.
    pub fn open(dir: &Path) -> Result<(Self, Value), CheckpointError> {
        let config_file = dir.join("config.json");
        let config: Value = json::read(&config_file)?;
        let quantization = Quantization::from_config(&config, None)
            .map_err(|reason| CheckpointError::invalid(&config_file, reason))?;
        let shards = Shards::open(dir)?;
        Ok((Self { dir: dir.to_owned(), quantization, shards }, config))
    }

    /// The directory that was opened.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether a tensor of this full name exists.
    pub fn has(&self, name: &str) -> bool {
        self.shards.tensors.contains_key(name)
    }

    /// The tensor of this full name.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        let Some((name, (shard, entry))) = self.shards.tensors.get_key_value(name) else {
            return Err(CheckpointError::tensor(&self.dir, name, "missing from every shard"));
        };
        let shard = self.shards.files.get(*shard);
        let Some((shard, data)) = shard.and_then(|s| Some((s, s.map.get(entry.start..entry.end)?))) else {
            return Err(CheckpointError::tensor(&self.dir, name, "lies outside its shard"));
        };
        let Some(dtype) = entry.dtype else {
            let reason = format!("type {} is not supported", entry.stored_dtype);
            return Err(CheckpointError::tensor(&shard.path, name, reason));
        };
        Ok(TensorView { name, file: &shard.path, dtype, shape: &entry.shape, data })
    }

    /// The tensor, as f32 values (F32, F16, BF16 widened), its shape checked, every value finite.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        let view = self.tensor(name)?;
        if view.shape != shape {
            return Err(view.error(format!("shape {:?}, but config.json implies {shape:?}", view.shape)));
        }
        finite_floats(&view)
    }
}

pub(crate) fn finite_floats(view: &TensorView<'_>) -> Result<Vec<f32>, CheckpointError> {
    let Some(values) = finite::widen(view.dtype, view.data) else {
        return Err(view.error(format!("type {:?} where floats are needed", view.dtype)));
    };
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(at) => Err(view.error(format!("element {at} is {}", values[at]))),
    }
}

/// Where tensor data lie, and what the system should do about them.
impl Tensors {
    /// The shard that tensor data lie in, and their offset in that file; `None` for other memory.
    pub fn locate(&self, data: &[u8]) -> Option<(&Path, u64)> {
        let at = data.as_ptr().addr();
        self.shards.files.iter().find_map(|shard| {
            let offset = at.checked_sub(shard.map.as_ptr().addr())?;
            let inside = !data.is_empty() && offset + data.len() <= shard.map.len();
            inside.then_some((shard.path.as_path(), offset as u64))
        })
    }

    /// Tells the system that tensor data will be looked at soon, so that it begins to read them.
    pub fn will_need(&self, data: &[u8]) {
        let at = data.as_ptr().addr();
        for shard in &self.shards.files {
            if let Some(offset) = at.checked_sub(shard.map.as_ptr().addr())
                && offset + data.len() <= shard.map.len()
                && let Err(error) = shard.map.advise_range(memmap2::Advice::WillNeed, offset, data.len())
            {
                tracing::debug!(%error, "{} is not read ahead", shard.path.display());
            }
        }
    }

    /// Tells the system that the memory behind tensor data is not needed for now: the pages leave this process and are
    /// read from the file again when they are touched.
    pub fn let_go(&self, data: &[u8]) {
        let at = data.as_ptr().addr();
        for shard in &self.shards.files {
            if let Some(offset) = at.checked_sub(shard.map.as_ptr().addr())
                && offset + data.len() <= shard.map.len()
            {
                // SAFETY: the mapping is of a file, shared and read-only: dropped pages come back with the same bytes.
                let advised = unsafe {
                    shard.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, data.len())
                };
                if let Err(error) = advised {
                    tracing::debug!(%error, "pages of {} stay mapped", shard.path.display());
                }
            }
        }
    }
}
