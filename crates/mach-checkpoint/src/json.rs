//! Reading the small JSON files of a checkpoint.

use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::CheckpointError;

/// Largest side file read; an index of a thousand shards is far below.
const MAX_BYTES: u64 = 256 << 20;

/// The whole file, refused if absurdly large.
pub(crate) fn read_bytes(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    let file = std::fs::File::open(path).map_err(CheckpointError::io(path))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(CheckpointError::io(path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(CheckpointError::invalid(path, format!("larger than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Parses `bytes` of `path`; the error names the field.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, CheckpointError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value: T = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let inner = error.into_inner();
        let reason = if field == "." { inner.to_string() } else { format!("`{field}`: {inner}") };
        CheckpointError::invalid(path, reason)
    })?;
    deserializer.end().map_err(|error| CheckpointError::invalid(path, error.to_string()))?;
    Ok(value)
}

/// Reads and parses a file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    parse(path, &read_bytes(path)?)
}

/// Reads and parses a file that need not exist.
pub(crate) fn read_optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CheckpointError> {
    if path.is_file() { read(path).map(Some) } else { Ok(None) }
}
