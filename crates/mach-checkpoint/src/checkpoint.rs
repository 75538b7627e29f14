//! The checkpoint directory and its mapped shards.

use std::path::Path;

use crate::config::parse::parse_config;
use crate::families::{MtpNaming, Names, Row};
use crate::identity::WeightFile;
use crate::resident::{MANIFEST_FILE, ResidentIndex};
use crate::shards::Shards;
use crate::tensors::{Tensors, finite_floats};
use crate::{CheckpointError, Dtype, GenerationConfig, ModelConfig, Naming, json};

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

impl TensorView<'_> {
    /// An error about this tensor.
    pub(crate) fn error(&self, reason: impl Into<String>) -> CheckpointError {
        CheckpointError::tensor(self.file, self.name, reason)
    }
}

/// An opened checkpoint: configuration parsed, shards mapped, headers checked.
#[derive(Debug)]
pub struct Checkpoint {
    config_bytes: Vec<u8>,
    config: ModelConfig,
    generation: GenerationConfig,
    row: &'static Row,
    names: Names,
    tensors: Tensors,
}

impl Checkpoint {
    /// Opens `dir`: parses `config.json` and `generation_config.json`, maps every shard of the index (or the single
    /// `model.safetensors`, or all `*.safetensors`), checks all headers against their files.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        if !dir.is_dir() {
            return Err(CheckpointError::no_directory(dir));
        }
        let config_file = dir.join("config.json");
        let config_bytes = json::read_bytes(&config_file)?;
        let (mut config, row, quantization) = parse_config(&config_file, &config_bytes)?;
        let generation = GenerationConfig::read(dir, &config)?;
        let shards = Shards::open(dir)?;
        let embedding = |n: &Naming| format!("{}{}.weight", n.prefix, row.embedding(n));
        let naming = row.namings.iter().find(|n| shards.tensors.contains_key(&embedding(n)));
        let Some(naming) = naming else {
            let tried: Vec<String> = row.namings.iter().map(embedding).collect();
            return Err(CheckpointError::tensor(dir, &tried.join("` or `"), "missing from every shard"));
        };
        config.tensor_prefix = naming.prefix.to_owned();
        config.head_module = naming.head.to_owned();
        let names = row.names(naming, |name| shards.tensors.contains_key(name));
        let tensors = Tensors { dir: dir.to_owned(), quantization, shards };
        Ok(Self { config_bytes, config, generation, row, names, tensors })
    }

    /// The directory that was opened.
    pub fn dir(&self) -> &Path {
        self.tensors.dir()
    }

    /// The model's settings.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The same with another longest context, in tokens.
    #[must_use]
    pub fn with_positions(mut self, tokens: usize) -> Self {
        self.config.max_position_embeddings = tokens;
        self
    }

    /// Sampling defaults and stop ids.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }

    /// The registry's row.
    pub fn family(&self) -> &'static Row {
        self.row
    }

    /// The full name of a module or tensor of the text model, in this file's words. What predicts the token after the
    /// next (`mtp.`) may lie beside the text model.
    pub fn full_name(&self, relative: &str) -> String {
        if self.row.mtp == MtpNaming::Root && relative.starts_with("mtp.") {
            return relative.to_owned();
        }
        format!("{}{}", self.config.tensor_prefix, self.names.rename(relative))
    }

    /// Whether the directory was written by [`synth`](crate::synth): random weights, meaningless text.
    pub fn is_synthetic(&self) -> bool {
        self.dir().join("synthetic.json").is_file()
    }

    /// How many ids, from 0 on, stand for text that the model tells apart: the vocabulary; of a synthetic checkpoint
    /// whose head is its embedding, those whose rows differ.
    pub fn text_ids(&self) -> usize {
        let vocabulary = self.config().vocab_size;
        match self.is_synthetic() && self.family().synthetic.between_norms {
            true => vocabulary.min(crate::synth::TEXT_TOKENS),
            false => vocabulary,
        }
    }

    /// The index of `resident.safetensors`, if `mach convert` wrote this checkpoint: its experts are in the sidecar only.
    pub fn resident_index(&self) -> Option<&ResidentIndex> {
        self.tensors.shards.files.iter().find_map(|s| s.resident.as_ref())
    }

    /// Compares a tensor of `resident.safetensors` with its checksum. Other files have none.
    fn check_sum(&self, view: &TensorView<'_>) -> Result<(), CheckpointError> {
        match self.resident_index().and_then(|index| index.tensors.get(view.name)) {
            Some(entry) if crc32c::crc32c(view.data) != entry.crc32c => {
                Err(view.error("damaged: its checksum differs"))
            }
            _ => Ok(()),
        }
    }

    /// The tensors of all shards.
    pub fn tensors(&self) -> &Tensors {
        &self.tensors
    }

    /// Whether a tensor of this full name exists.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.has(name)
    }

    /// All tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.shards.tensors.keys().map(String::as_str)
    }

    /// Bytes of tensor data in all shards, tensors that no family asks for included.
    pub fn data_bytes(&self) -> u64 {
        self.tensors.shards.tensors.values().map(|(_, entry)| (entry.end - entry.start) as u64).sum()
    }

    /// The tensor of this full name.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>, CheckpointError> {
        self.tensors.tensor(name)
    }

    /// As [`Tensors::locate`].
    pub fn locate(&self, data: &[u8]) -> Option<(&Path, u64)> {
        self.tensors.locate(data)
    }

    /// As [`Tensors::will_need`].
    pub fn will_need(&self, data: &[u8]) {
        self.tensors.will_need(data);
    }

    /// As [`Tensors::let_go`].
    pub fn let_go(&self, data: &[u8]) {
        self.tensors.let_go(data);
    }

    /// The tensor, as f32 values (F32, F16, BF16 widened), its shape checked, every value finite.
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        self.check_sum(&self.tensor(name)?)?;
        self.tensors.floats(name, shape)
    }

    /// The tensor, as whole numbers from 0 to below `below` (I32, I64), its shape checked.
    pub fn integers(&self, name: &str, shape: &[usize], below: u32) -> Result<Vec<u32>, CheckpointError> {
        let view = self.tensor(name)?;
        self.check_sum(&view)?;
        if view.shape != shape {
            return Err(view.error(format!("shape {:?}, but config.json implies {shape:?}", view.shape)));
        }
        let wide: Vec<i64> = match view.dtype {
            Dtype::I64 => view.data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
            Dtype::I32 => {
                view.data.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect()
            }
            other => return Err(view.error(format!("type {other:?} where integers are needed"))),
        };
        let number = |(at, value): (usize, i64)| match u32::try_from(value) {
            Ok(number) if number < below => Ok(number),
            _ => Err(view.error(format!("element {at} is {value}; it must be below {below}"))),
        };
        wide.into_iter().enumerate().map(number).collect()
    }

    /// Weights of a Gated DeltaNet layer's causal convolution, `[channels * taps]`, taps of a channel adjacent, oldest
    /// first. Published `[channels, 1, taps]` and MLX `[channels, taps, 1]` hold them in this same order.
    pub fn conv1d(&self, layer: usize) -> Result<Vec<f32>, CheckpointError> {
        let name = format!("{}layers.{layer}.linear_attn.conv1d.weight", self.config.tensor_prefix);
        let view = self.tensor(&name)?;
        let Some(gdn) = &self.config.gdn else {
            return Err(view.error("config.json names no linear_attention layer"));
        };
        let channels = 2 * gdn.key_heads * gdn.key_dim + gdn.value_heads * gdn.value_dim;
        let taps = gdn.conv_kernel;
        if view.shape != [channels, 1, taps] && view.shape != [channels, taps, 1] {
            return Err(view.error(format!(
                "shape {:?}, but config.json implies [{channels}, 1, {taps}] or [{channels}, {taps}, 1]",
                view.shape
            )));
        }
        self.check_sum(&view)?;
        finite_floats(&view)
    }

    /// What to add to the stored weights of the family's RMS norms (not `linear_attn.norm`, which is used as stored):
    /// 1 where the file holds weights minus one, else 0. The layout of a `conv1d` tells published files from MLX ones.
    pub fn norm_offset(&self) -> f32 {
        if !self.row.norm_minus_one {
            return 0.0;
        }
        let suffix = ".linear_attn.conv1d.weight";
        let conv =
            self.tensors.shards.tensors.iter().find(|(name, _)| {
                name.starts_with(self.config.tensor_prefix.as_str()) && name.ends_with(suffix)
            });
        let published = match conv {
            Some((_, (_, entry))) => entry.shape.last().is_none_or(|&last| last != 1),
            // No linear layer to tell by: the prefix does.
            None => self.config.tensor_prefix.starts_with("model."),
        };
        if published { 1.0 } else { 0.0 }
    }

    /// The files whose bytes nothing vouches for: all but what `mach convert` wrote, whose headers and manifest have a
    /// checksum of everything that is loaded. [`fingerprint`](Self::fingerprint) and the hashes of these files together
    /// say which weights the checkpoint has.
    pub fn unverified_files(&self) -> Vec<WeightFile> {
        let plain = self.tensors.shards.files.iter().filter(|shard| shard.resident.is_none());
        plain.map(|shard| WeightFile { path: shard.path.clone(), stamp: shard.stamp }).collect()
    }

    /// All files of weights, as they were when they were mapped.
    pub fn files(&self) -> Vec<WeightFile> {
        let shards = self.tensors.shards.files.iter();
        shards.map(|shard| WeightFile { path: shard.path.clone(), stamp: shard.stamp }).collect()
    }

    /// A hash over `config.json` and every shard's name, length, header and a sample of its data (for a converted
    /// checkpoint also the manifest of its experts, checksums included); equal for equal checkpoints wherever they lie, and
    /// cheap for any size.
    pub fn fingerprint(&self) -> [u8; 32] {
        const SAMPLES: usize = 64;
        const SAMPLE_BYTES: usize = 4096;
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(bytes);
        };
        field(b"mach checkpoint fingerprint 1");
        field(&self.config_bytes);
        if self.resident_index().is_some() {
            // A manifest that cannot be read makes no experts: what is loaded without one fails.
            field(&json::read_bytes(&self.dir().join(MANIFEST_FILE)).unwrap_or_default());
        }
        for shard in &self.tensors.shards.files {
            field(shard.path.file_name().unwrap_or_default().as_encoded_bytes());
            field(&(shard.map.len() as u64).to_le_bytes());
            field(shard.map.get(..shard.header_len).unwrap_or_default());
            let data = shard.map.get(shard.header_len..).unwrap_or_default();
            let last = data.len().saturating_sub(SAMPLE_BYTES);
            for i in 0..SAMPLES {
                let start = (last as u128 * i as u128 / (SAMPLES as u128 - 1)) as usize;
                let end = data.len().min(start + SAMPLE_BYTES);
                field(data.get(start..end).unwrap_or_default());
                if last == 0 {
                    break;
                }
            }
        }
        *hasher.finalize().as_bytes()
    }
}
