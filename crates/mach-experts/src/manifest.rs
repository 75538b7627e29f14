//! `expert_sidecar/manifest.json`: what the record files hold.

use std::path::{Component, Path};

use mach_checkpoint::ModelConfig;
use mach_quant::MatrixLayout;
use serde::{Deserialize, Serialize};

use crate::record::{Projection, RECORD_ALIGN, RecordLayout};

/// Format and version that this build writes. It reads version 1 too, whose records are gate, up and down without biases
/// and without being said where they begin. The tile layout is part of both.
pub const MANIFEST_FORMAT: (&str, u32) = ("mach-expert-sidecar", 2);

/// More layers than any model has.
const MAX_LAYERS: usize = 1 << 16;

/// Why a manifest cannot be used, in words for a person; the caller knows the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ManifestError(String);

/// What the record files of a sidecar hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_FORMAT`]'s name.
    pub format: String,
    /// The version that it was written in.
    pub version: u32,
    /// `model_type` of the checkpoint.
    pub architecture: String,
    /// Identity of the checkpoint that the experts were read from, and of what was done to them.
    pub source: String,
    /// Start and length of records are multiples of this.
    pub record_align: usize,
    /// Records in each file.
    pub num_experts: usize,
    /// The MoE layers, ascending.
    pub layers: Vec<LayerEntry>,
}

/// One file of records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerEntry {
    /// Layer of the model.
    pub layer: usize,
    /// File name inside the sidecar.
    pub file: String,
    /// Bytes of the file: `stride * num_experts`.
    pub length: u64,
    /// Bytes from one record to the next.
    pub stride: usize,
    /// What a record holds, and where.
    #[serde(rename = "projections")]
    pub record: RecordLayout,
    /// CRC32C of each record, padding included.
    pub crc32c: Vec<u32>,
}

impl LayerEntry {
    /// Name of the file of a layer.
    pub fn file_name(layer: usize) -> String {
        format!("layer-{layer:03}.experts")
    }
}

fn err<T>(reason: impl Into<String>) -> Result<T, ManifestError> {
    Err(ManifestError(reason.into()))
}

impl Manifest {
    /// Parses and checks all that can be checked without the checkpoint and the files.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Version {
            format: Option<String>,
            version: Option<u32>,
        }
        // The version first, so that a later format is named as such whatever its fields are.
        let said: Version = parse_json(bytes)?;
        let (format, version) = MANIFEST_FORMAT;
        let manifest: Self = match (said.format.as_deref(), said.version) {
            (Some(f), Some(1)) if f == format => parse_json::<version1::Manifest>(bytes)?.into_current()?,
            (Some(f), Some(v)) if (f, v) == (format, version) => parse_json(bytes)?,
            _ => {
                return err(format!(
                    "format {} version {} is not known to this build, which reads {format} versions 1 to {version}",
                    said.format.as_deref().unwrap_or("(none)"),
                    said.version.map_or("(none)".to_owned(), |v| v.to_string()),
                ));
            }
        };
        if manifest.record_align != RECORD_ALIGN {
            return err(format!("`record_align` is {}; {RECORD_ALIGN} is needed", manifest.record_align));
        }
        let mut last = None;
        for entry in &manifest.layers {
            if last.is_some_and(|l| l >= entry.layer) {
                return err(format!("layer {} is out of order", entry.layer));
            }
            last = Some(entry.layer);
            entry.check(manifest.num_experts)?;
        }
        Ok(manifest)
    }

    /// As JSON, in the version that this build writes.
    pub fn to_json(&self) -> Result<Vec<u8>, ManifestError> {
        let current = Manifest { version: MANIFEST_FORMAT.1, ..self.clone() };
        serde_json::to_vec_pretty(&current).map_err(|e| ManifestError(e.to_string()))
    }

    /// Compares with what `config.json` says.
    pub fn check(&self, config: &ModelConfig) -> Result<(), ManifestError> {
        if self.architecture != config.model_type {
            return err(format!(
                "made for `{}`, but config.json says `{}`",
                self.architecture, config.model_type
            ));
        }
        let (experts, hidden, width) =
            (config.moe.num_experts, config.hidden_size, config.moe.intermediate_size);
        let layers: Vec<usize> = (0..config.moe_layers.len()).filter(|&l| config.moe_layers[l]).collect();
        if self.layers.iter().map(|e| e.layer).ne(layers.iter().copied()) {
            return err(format!(
                "holds {} layers, but config.json implies {} with experts, or others",
                self.layers.len(),
                layers.len()
            ));
        }
        if self.num_experts != experts && !layers.is_empty() {
            return err(format!("{} experts a layer, but config.json says {experts}", self.num_experts));
        }
        for entry in &self.layers {
            let usable = entry.record.check_gated();
            let usable = usable.and_then(|()| entry.record.check_biases(config.moe.expert_bias));
            usable.map_err(|e| ManifestError(format!("layer {}: {e}", entry.layer)))?;
            for part in entry.record.parts() {
                let found = [part.layout.rows, part.layout.cols];
                let wanted = match part.projection {
                    Projection::Gate | Projection::Up => [width, hidden],
                    Projection::GateUp => [2 * width, hidden],
                    Projection::Down => [hidden, width],
                };
                if found != wanted {
                    return err(format!(
                        "`{}` of layer {} is {} x {}, but config.json implies {} x {}",
                        part.projection.name(),
                        entry.layer,
                        found[0],
                        found[1],
                        wanted[0],
                        wanted[1]
                    ));
                }
            }
        }
        Ok(())
    }
}

impl LayerEntry {
    fn check(&self, experts: usize) -> Result<(), ManifestError> {
        let layer = self.layer;
        if layer >= MAX_LAYERS {
            return err(format!("layer {layer}: more than {MAX_LAYERS} layers"));
        }
        let mut parts = Path::new(&self.file).components();
        // A plain file name: a manifest must not reach outside its own directory.
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
            return err(format!("layer {layer}: `{}` is not a file name", self.file));
        }
        let stride = self.record.stride();
        if self.stride != stride || stride == 0 {
            return err(format!(
                "layer {layer}: `stride` is {}, but its matrices need {stride}",
                self.stride
            ));
        }
        let length = (stride as u64).checked_mul(experts as u64);
        if length != Some(self.length) {
            return err(format!(
                "layer {layer}: `length` {} is not {experts} records of {stride}",
                self.length
            ));
        }
        if self.crc32c.len() != experts {
            return err(format!("layer {layer}: {} checksums for {experts} experts", self.crc32c.len()));
        }
        Ok(())
    }
}

/// What version 1 wrote. Its records lie as [`RecordLayout::new`] places them.
mod version1 {
    use super::{Deserialize, ManifestError, MatrixLayout, Projection, RecordLayout};

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct Manifest {
        format: String,
        version: u32,
        architecture: String,
        source: String,
        record_align: usize,
        num_experts: usize,
        layers: Vec<LayerEntry>,
    }

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct LayerEntry {
        layer: usize,
        file: String,
        length: u64,
        stride: usize,
        gate: MatrixLayout,
        up: MatrixLayout,
        down: MatrixLayout,
        crc32c: Vec<u32>,
    }

    impl Manifest {
        pub(super) fn into_current(self) -> Result<super::Manifest, ManifestError> {
            let Self { format, version, architecture, source, record_align, num_experts, layers } = self;
            let layers = layers.into_iter().map(LayerEntry::into_current).collect::<Result<_, _>>()?;
            Ok(super::Manifest { format, version, architecture, source, record_align, num_experts, layers })
        }
    }

    impl LayerEntry {
        fn into_current(self) -> Result<super::LayerEntry, ManifestError> {
            let Self { layer, file, length, stride, gate, up, down, crc32c } = self;
            let matrices =
                [(Projection::Gate, gate, None), (Projection::Up, up, None), (Projection::Down, down, None)];
            let record =
                RecordLayout::with(&matrices).map_err(|e| ManifestError(format!("layer {layer}: {e}")))?;
            Ok(super::LayerEntry { layer, file, length, stride, record, crc32c })
        }
    }
}

fn parse_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, ManifestError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|e| ManifestError(format!("`{}`: {}", e.path(), e.inner())))?;
    deserializer.end().map_err(|e| ManifestError(e.to_string()))?;
    Ok(value)
}
