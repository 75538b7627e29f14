//! The index of `resident.safetensors`: what `mach convert` writes beside the tensors it has laid out.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use mach_quant::MatrixLayout;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{CheckpointError, TensorEntry, json};

/// Name of the file of a converted checkpoint that holds everything but experts.
pub const RESIDENT_FILE: &str = "resident.safetensors";

/// Directory of the experts.
pub const SIDECAR_DIR: &str = "expert_sidecar";

/// Manifest of the experts, relative to the checkpoint.
pub const MANIFEST_FILE: &str = "expert_sidecar/manifest.json";

/// Format and version that this build reads and writes. The tile layout is part of it.
pub const RESIDENT_FORMAT: (&str, u32) = ("mach-resident", 1);

/// Key of the index in the file's `__metadata__`.
const KEY: &str = "mach";

/// What lies where in the file of resident weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidentIndex {
    /// [`RESIDENT_FORMAT`]'s name.
    pub format: String,
    /// [`RESIDENT_FORMAT`]'s version.
    pub version: u32,
    /// Identity of the conversion, equal to that of the sidecar's manifest.
    pub source: String,
    /// Every tensor of the file.
    pub tensors: BTreeMap<String, ResidentTensor>,
}

/// What is known of a tensor beyond the safetensors header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidentTensor {
    /// How the bytes of a matrix lie; `None` for vectors and convolutions, which are as in the source. A laid out matrix may
    /// be followed by zeros up to a multiple of the page size.
    pub layout: Option<MatrixLayout>,
    /// CRC32C of the tensor's bytes, such zeros included; eight hexadecimal digits in JSON.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub crc32c: u32,
}

fn to_hex<S: Serializer>(value: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{value:08x}"))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    u32::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
}

impl ResidentIndex {
    /// The `__metadata__` entry, key and value.
    pub fn to_metadata(&self) -> Result<(String, String), serde_json::Error> {
        Ok((KEY.to_owned(), serde_json::to_string(self)?))
    }

    pub(crate) fn parse(
        path: &Path,
        metadata: &HashMap<String, String>,
        entries: &[TensorEntry],
    ) -> Result<Self, CheckpointError> {
        let invalid = |reason: &str| CheckpointError::invalid(path, reason);
        let text = metadata.get(KEY).ok_or_else(|| invalid("no index: not written by `mach convert`"))?;
        let index: Self = json::parse(path, text.as_bytes())?;
        if (index.format.as_str(), index.version) != RESIDENT_FORMAT {
            return Err(invalid(&format!(
                "format {} version {} is not known to this build, which reads {} version {}; convert again",
                index.format, index.version, RESIDENT_FORMAT.0, RESIDENT_FORMAT.1
            )));
        }
        for entry in entries {
            let bad = |reason: String| CheckpointError::tensor(path, &entry.name, reason);
            let known =
                index.tensors.get(&entry.name).ok_or_else(|| bad("not in the file's index".into()))?;
            if let Some(layout) = &known.layout {
                layout.validate().map_err(|e| bad(e.to_string()))?;
                if entry.end - entry.start < layout.bytes() {
                    return Err(bad(format!("shorter than the {} bytes of its layout", layout.bytes())));
                }
            }
        }
        // Every tensor is in the index, so the index has more only if one of its own is missing.
        if index.tensors.len() != entries.len() {
            return Err(invalid("its index lists tensors that are not in the file"));
        }
        Ok(index)
    }
}
