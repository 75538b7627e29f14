//! The experts of a checkpoint on disk, one contiguous record each.

use std::path::{Path, PathBuf};

use mach_checkpoint::{Checkpoint, MANIFEST_FILE, SIDECAR_DIR};
use mach_io::{HugeBuf, Read, ReadError, Reader, ReaderOptions};

use crate::manifest::{LayerEntry, Manifest};
use crate::record::RecordLayout;

/// Largest manifest read: some hundred thousand records.
const MAX_MANIFEST: u64 = 256 << 20;

/// Why a sidecar cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SidecarError {
    /// There is none.
    #[error("{}: no expert sidecar; `mach export-sidecar` writes one", dir.display())]
    Missing {
        /// Directory of the checkpoint.
        dir: PathBuf,
    },
    /// A file is missing, of a wrong length, or says what cannot be.
    #[error("{}: {reason}", file.display())]
    Invalid {
        /// The file that is meant.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A record's bytes are not those that were written.
    #[error("{}: expert {expert} of layer {layer} is damaged: its checksum differs", file.display())]
    Damaged {
        /// The file that is meant.
        file: PathBuf,
        /// Layer of the model.
        layer: usize,
        /// Expert of the layer.
        expert: usize,
    },
    /// The drive failed.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// Hears of a layer, an expert of it, and the bytes of its record.
pub(crate) type EachRecord<'a> = &'a mut dyn FnMut(usize, usize, &[u8]) -> Result<(), SidecarError>;

/// Where an expert is, and what its bytes must sum up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Index of the file in [`Sidecar::files`].
    pub file: usize,
    /// First byte.
    pub offset: u64,
    /// Bytes of the record, padding included.
    pub len: usize,
    /// CRC32C of those bytes.
    pub crc32c: u32,
}

/// A sidecar whose manifest fits the checkpoint and whose files are there at their exact lengths.
#[derive(Debug)]
pub struct Sidecar {
    manifest: Manifest,
    files: Vec<PathBuf>,
    /// One entry a layer of the model: index of its file.
    by_layer: Vec<Option<usize>>,
}

impl Sidecar {
    /// Opens the sidecar of a checkpoint and checks everything but the contents of records.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self, SidecarError> {
        let path = checkpoint.dir().join(MANIFEST_FILE);
        if !path.exists() {
            return Err(SidecarError::Missing { dir: checkpoint.dir().to_owned() });
        }
        let invalid = |reason: String| SidecarError::Invalid { file: path.clone(), reason };
        let manifest = read_manifest(&path)?;
        manifest.check(checkpoint.config()).map_err(|e| invalid(e.to_string()))?;
        let source = match checkpoint.resident_index() {
            Some(index) => index.source.clone(),
            None => source_id(checkpoint),
        };
        if manifest.source != source {
            return Err(invalid("made from another checkpoint than the tensors beside it".to_owned()));
        }
        Self::from_manifest(&checkpoint.dir().join(SIDECAR_DIR), manifest)
    }

    /// The sidecar in `dir` with this manifest: checks that its files are there at their exact lengths.
    pub fn from_manifest(dir: &Path, manifest: Manifest) -> Result<Self, SidecarError> {
        let mut files = Vec::with_capacity(manifest.layers.len());
        let mut by_layer = Vec::new();
        for entry in &manifest.layers {
            let file = dir.join(&entry.file);
            let found = std::fs::metadata(&file).map_err(|e| SidecarError::Invalid {
                file: file.clone(),
                reason: format!("cannot be opened: {e}"),
            })?;
            if !found.is_file() || found.len() != entry.length {
                let reason = format!("{} bytes where the manifest says {}", found.len(), entry.length);
                return Err(SidecarError::Invalid { file, reason });
            }
            by_layer.resize(entry.layer, None);
            by_layer.push(Some(files.len()));
            files.push(file);
        }
        Ok(Sidecar { manifest, files, by_layer })
    }

    /// What `manifest.json` says.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The files of records, as [`Location::file`] counts them.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn entry(&self, layer: usize) -> Option<(usize, &LayerEntry)> {
        let file = (*self.by_layer.get(layer)?)?;
        Some((file, self.manifest.layers.get(file)?))
    }

    /// The record layout of a layer; `None` if it has no experts.
    pub fn record(&self, layer: usize) -> Option<RecordLayout> {
        self.entry(layer).map(|(_, entry)| entry.record)
    }

    /// Bytes of the largest record.
    pub fn max_stride(&self) -> usize {
        self.manifest.layers.iter().map(|e| e.stride).max().unwrap_or(0)
    }

    /// Where an expert is.
    pub fn location(&self, layer: usize, expert: usize) -> Option<Location> {
        let (file, entry) = self.entry(layer)?;
        let crc32c = *entry.crc32c.get(expert)?;
        Some(Location { file, offset: (expert * entry.stride) as u64, len: entry.stride, crc32c })
    }

    /// Every (layer, expert), in the order of the files.
    pub fn experts(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let experts = self.manifest.num_experts;
        self.manifest.layers.iter().flat_map(move |entry| (0..experts).map(move |e| (entry.layer, e)))
    }

    /// A reader of the files.
    pub fn reader(&self, options: &ReaderOptions) -> Result<Reader, SidecarError> {
        Ok(Reader::open(&self.files, options)?)
    }

    /// An error unless `record`, the bytes read for an expert, has the expert's checksum.
    pub fn check_record(&self, layer: usize, expert: usize, record: &[u8]) -> Result<(), SidecarError> {
        let location = self.location(layer, expert);
        let bytes = location.and_then(|l| record.get(..l.len));
        match (location, bytes) {
            (Some(location), Some(bytes)) if crc32c::crc32c(bytes) == location.crc32c => Ok(()),
            _ => Err(self.damaged(layer, expert)),
        }
    }

    /// The error for a record that does not have its checksum.
    pub(crate) fn damaged(&self, layer: usize, expert: usize) -> SidecarError {
        let file = self.location(layer, expert).and_then(|l| self.files.get(l.file));
        SidecarError::Damaged { file: file.cloned().unwrap_or_default(), layer, expert }
    }

    /// Reads and checks a sample of records spread over all layers: the first and last of each file and some between.
    pub fn verify_sample(&self, reader: &mut Reader) -> Result<(), SidecarError> {
        const BETWEEN: usize = 3;
        let experts = self.manifest.num_experts;
        let sample = self.manifest.layers.iter().flat_map(|entry| {
            let mut picks: Vec<usize> = (0..BETWEEN)
                // Other experts in every layer.
                .map(|i| (entry.layer * 7919 + i * experts / BETWEEN) % experts.max(1))
                .chain([0, experts.saturating_sub(1)])
                .collect();
            picks.sort_unstable();
            picks.dedup();
            picks.into_iter().map(|e| (entry.layer, e))
        });
        self.verify(reader, sample.filter(|_| experts > 0), &mut |_| ())
    }

    /// Reads and checks a few records of a few layers, spread over all: quick enough for every start.
    pub fn verify_some(&self, reader: &mut Reader) -> Result<(), SidecarError> {
        const LAYERS: usize = 12;
        let (layers, experts) = (self.manifest.layers.len(), self.manifest.num_experts);
        let sample = (0..layers.min(LAYERS)).filter_map(|i| {
            let entry = self.manifest.layers.get(i * layers / layers.clamp(1, LAYERS))?;
            // Another expert in each, and once the last of a file.
            let expert = if i + 1 == layers.min(LAYERS) { experts - 1 } else { entry.layer * 7919 % experts };
            Some((entry.layer, expert))
        });
        self.verify(reader, sample.filter(|_| experts > 0), &mut |_| ())
    }

    /// Reads and checks every record. `progress` hears how many bytes are checked.
    pub fn verify_all(&self, reader: &mut Reader, progress: &mut dyn FnMut(u64)) -> Result<(), SidecarError> {
        self.verify(reader, self.experts(), progress)
    }

    fn verify(
        &self,
        reader: &mut Reader,
        which: impl Iterator<Item = (usize, usize)>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), SidecarError> {
        let stride = self.max_stride();
        let memory = HugeBuf::zeroed(reader.depth() * stride)
            .map_err(|e| ReadError::Setup(e.to_string()))?
            .into_slots(stride);
        let mut bytes = 0;
        self.read_each(reader, memory, which, &mut |layer, expert, record| {
            self.check_record(layer, expert, record)?;
            bytes += record.len() as u64;
            progress(bytes);
            Ok(())
        })
    }

    /// Reads the listed experts through `memory`, as many at a time as it has slots, and hands over each record as it
    /// comes. Ends at the first error.
    pub(crate) fn read_each(
        &self,
        reader: &mut Reader,
        mut memory: Vec<mach_io::Slot>,
        which: impl Iterator<Item = (usize, usize)>,
        each: EachRecord<'_>,
    ) -> Result<(), SidecarError> {
        let mut which = which.fuse();
        let mut running: Vec<(usize, usize)> = Vec::new();
        let mut result = Ok(());
        loop {
            while result.is_ok()
                && let Some(slot) = memory.pop()
            {
                let Some((layer, expert)) = which.next() else {
                    memory.push(slot);
                    break;
                };
                let Some(Location { file, offset, len, .. }) = self.location(layer, expert) else {
                    memory.push(slot);
                    continue;
                };
                let tag = running.len() as u64;
                running.push((layer, expert));
                reader.submit([Read { file, offset, len, slot, tag }]);
            }
            let Some(done) = reader.wait_any() else { return result };
            match done.result {
                Ok(slot) => {
                    if result.is_ok()
                        && let Some(&(layer, expert)) = running.get(done.tag as usize)
                    {
                        let len = self.location(layer, expert).map_or(0, |l| l.len);
                        result = each(layer, expert, slot.get(..len).unwrap_or_default());
                    }
                    memory.push(slot);
                }
                Err(failure) => {
                    result = result.and(Err(failure.error.into()));
                    memory.extend(failure.slot);
                }
            }
        }
    }
}

/// Identity of a checkpoint's own tensors, as manifests record it.
pub fn source_id(checkpoint: &Checkpoint) -> String {
    checkpoint.fingerprint().iter().map(|b| format!("{b:02x}")).collect()
}

fn read_manifest(path: &Path) -> Result<Manifest, SidecarError> {
    let invalid = |reason: String| SidecarError::Invalid { file: path.to_owned(), reason };
    let len = std::fs::metadata(path).map_err(|e| invalid(e.to_string()))?.len();
    if len > MAX_MANIFEST {
        return Err(invalid(format!("{len} bytes is too long for a manifest")));
    }
    let bytes = std::fs::read(path).map_err(|e| invalid(e.to_string()))?;
    Manifest::parse(&bytes).map_err(|e| invalid(e.to_string()))
}
