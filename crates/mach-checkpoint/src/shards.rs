//! The mapped shards of a checkpoint and the table of their tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;
use serde::Deserialize;

use crate::header::{TensorEntry, parse_header_and_metadata};
use crate::identity::FileStamp;
use crate::resident::{RESIDENT_FILE, ResidentIndex};
use crate::{CheckpointError, json};

/// One mapped safetensors file.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    /// What the file was when it was mapped.
    pub(crate) stamp: FileStamp,
    pub(crate) map: Mmap,
    /// Bytes before the data: length field and header.
    pub(crate) header_len: usize,
    /// What `mach convert` says of its own file.
    pub(crate) resident: Option<ResidentIndex>,
}

/// All shards, and where each tensor lies.
#[derive(Debug)]
pub(crate) struct Shards {
    pub(crate) files: Vec<Shard>,
    /// Name to (shard, entry).
    pub(crate) tensors: BTreeMap<String, (usize, TensorEntry)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Shards {
    /// Maps the shards that `model.safetensors.index.json` lists, else `model.safetensors`, else
    /// `resident.safetensors` of a converted checkpoint, else every `*.safetensors` of the directory.
    pub(crate) fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let index_path = dir.join("model.safetensors.index.json");
        let single = dir.join("model.safetensors");
        if index_path.is_file() {
            Self::from_index(dir, &index_path)
        } else if single.is_file() {
            Self::from_files(vec![single])
        } else if dir.join(RESIDENT_FILE).is_file() {
            Self::from_files(vec![dir.join(RESIDENT_FILE)])
        } else {
            let mut paths = Vec::new();
            for entry in std::fs::read_dir(dir).map_err(CheckpointError::io(dir))? {
                let path = entry.map_err(CheckpointError::io(dir))?.path();
                if path.extension().is_some_and(|e| e == "safetensors") && path.is_file() {
                    paths.push(path);
                }
            }
            if paths.is_empty() {
                return Err(CheckpointError::invalid(dir, "no *.safetensors file in this directory"));
            }
            paths.sort();
            Self::from_files(paths)
        }
    }

    fn from_files(paths: Vec<PathBuf>) -> Result<Self, CheckpointError> {
        let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for path in paths {
            let (shard, entries) = map_shard(path)?;
            for entry in entries {
                if let Some((first, _)) = shards.tensors.get(&entry.name) {
                    let first = shards.files.get(*first).map_or(shard.path.as_path(), |s| s.path.as_path());
                    return Err(CheckpointError::tensor(
                        &shard.path,
                        &entry.name,
                        format!("also in {}", first.display()),
                    ));
                }
                shards.tensors.insert(entry.name.clone(), (shards.files.len(), entry));
            }
            shards.files.push(shard);
        }
        Ok(shards)
    }

    fn from_index(dir: &Path, index_path: &Path) -> Result<Self, CheckpointError> {
        let index: Index = json::read(index_path)?;
        let names: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
        let mut shards = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for name in names {
            let mut parts = Path::new(name).components();
            // A shard is a plain file name: an index must not reach outside its own directory.
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(CheckpointError::invalid(
                    index_path,
                    format!("shard name `{name}` is not a file name"),
                ));
            }
            let path = dir.join(name);
            if !path.is_file() {
                return Err(CheckpointError::invalid(&path, "shard listed in the index is missing"));
            }
            let (shard, entries) = map_shard(path)?;
            for entry in entries {
                if index.weight_map.get(&entry.name).is_some_and(|listed| listed == name) {
                    shards.tensors.insert(entry.name.clone(), (shards.files.len(), entry));
                }
            }
            shards.files.push(shard);
        }
        for (tensor, name) in &index.weight_map {
            if !shards.tensors.contains_key(tensor) {
                return Err(CheckpointError::tensor(
                    &dir.join(name),
                    tensor,
                    "the index says it is in this shard, but it is not",
                ));
            }
        }
        Ok(shards)
    }
}

fn map_shard(path: PathBuf) -> Result<(Shard, Vec<TensorEntry>), CheckpointError> {
    let file = File::open(&path).map_err(CheckpointError::io(&path))?;
    let stamp = FileStamp::new(&file.metadata().map_err(CheckpointError::io(&path))?);
    // SAFETY: the mapping is read-only and lives as long as its `Mmap`. Another process that shortens the file while it
    // is mapped can still fault a read; a checkpoint is taken to be immutable while it is served.
    let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::io(&path))?;
    let (entries, header_len, metadata) =
        parse_header_and_metadata(&map).map_err(|reason| CheckpointError::invalid(&path, reason))?;
    let resident = if path.file_name().is_some_and(|name| name == RESIDENT_FILE) {
        Some(ResidentIndex::parse(&path, &metadata, &entries)?)
    } else {
        None
    };
    Ok((Shard { path, stamp, map, header_len, resident }, entries))
}
