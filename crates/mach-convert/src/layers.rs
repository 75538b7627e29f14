//! The record files, one a layer.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::mpsc::{channel, sync_channel};

use mach_checkpoint::{Checkpoint, CheckpointError, ExpertSource};
use mach_experts::{LayerEntry, Projection, RecordLayout};
use mach_io::HugeBuf;
use mach_quant::Order;

use crate::ConvertError;
use crate::matrix::{Conversion, Quantize};
use crate::parallel::parallel;
use crate::staging::write_file;

/// Bytes of records that are packed before they are written; two such buffers exist.
const BATCH: usize = 64 << 20;

/// An expert and what becomes of its gate, up and down.
struct Expert<'a> {
    source: ExpertSource<'a>,
    matrices: [Conversion<'a>; 3],
}

/// What the file of a layer will hold.
pub(crate) struct Layer<'a> {
    checkpoint: &'a Checkpoint,
    pub(crate) layer: usize,
    pub(crate) record: RecordLayout,
    experts: Vec<Expert<'a>>,
}

impl<'a> Layer<'a> {
    pub(crate) fn of(
        checkpoint: &'a Checkpoint,
        layer: usize,
        quantize: Option<Quantize>,
    ) -> Result<Self, ConvertError> {
        let mut experts: Vec<Expert<'a>> = Vec::new();
        let mut record = None;
        for (e, source) in checkpoint.experts(layer)?.into_iter().enumerate() {
            let convert = |m| Conversion::new(m, Order::Tiles, quantize);
            let matrices = [convert(source.gate)?, convert(source.up)?, convert(source.down)?];
            let this = RecordLayout::of_matrices(&source, matrices.each_ref().map(|m| m.layout))?;
            if *record.get_or_insert(this) != this {
                return Err(CheckpointError::Tensor {
                    file: source.gate.file.to_path_buf(),
                    tensor: source.gate.module.to_owned(),
                    reason: format!("expert {e} is stored in another format than expert 0 of its layer"),
                }
                .into());
            }
            experts.push(Expert { source, matrices });
        }
        let record = record.ok_or_else(|| ConvertError::Input(format!("layer {layer} has no experts")))?;
        Ok(Layer { checkpoint, layer, record, experts })
    }

    /// Bytes of the file.
    pub(crate) fn length(&self) -> u64 {
        self.record.stride() as u64 * self.experts.len() as u64
    }

    /// Writes the file into `dir`, and beside it what the manifest will say of it. A file that an earlier run finished
    /// is kept if its bytes are still those. `progress` hears how many more bytes are done.
    pub(crate) fn write(
        &self,
        dir: &Path,
        threads: usize,
        progress: &mut dyn FnMut(u64),
    ) -> Result<LayerEntry, ConvertError> {
        if let Some(entry) = self.finished(dir) {
            progress(self.length());
            return Ok(entry);
        }
        let path = dir.join(LayerEntry::file_name(self.layer));
        let mut crc32c = Vec::new();
        write_file(&path, |file| self.write_records(&path, file, threads, &mut crc32c, progress))?;
        let entry = self.entry(crc32c);
        let json = serde_json::to_vec(&entry).map_err(|e| ConvertError::Input(e.to_string()))?;
        write_file(&journal(dir, self.layer), |file| file.write_all(&json))?;
        Ok(entry)
    }

    fn entry(&self, crc32c: Vec<u32>) -> LayerEntry {
        LayerEntry {
            layer: self.layer,
            file: LayerEntry::file_name(self.layer),
            length: self.length(),
            stride: self.record.stride(),
            record: self.record,
            crc32c,
        }
    }

    /// The entry of a file that is there already, every record with its checksum.
    fn finished(&self, dir: &Path) -> Option<LayerEntry> {
        let found: LayerEntry =
            serde_json::from_slice(&std::fs::read(journal(dir, self.layer)).ok()?).ok()?;
        if found.crc32c.len() != self.experts.len() || found != self.entry(found.crc32c.clone()) {
            return None;
        }
        let mut file = File::open(dir.join(&found.file)).ok()?;
        if file.metadata().ok()?.len() != found.length {
            return None;
        }
        let mut record = vec![0; found.stride];
        for &crc in &found.crc32c {
            file.read_exact(&mut record).ok()?;
            if crc32c::crc32c(&record) != crc {
                return None;
            }
        }
        Some(found)
    }

    /// Packs and writes at the same time, a batch of records each.
    fn write_records(
        &self,
        path: &Path,
        file: &mut File,
        threads: usize,
        crc32c: &mut Vec<u32>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), ConvertError> {
        let stride = self.record.stride();
        let batch = (BATCH / stride).clamp(1, self.experts.len());
        std::thread::scope(|scope| {
            let (full, to_write) = sync_channel::<(HugeBuf, usize)>(1);
            let (empty, written) = channel::<HugeBuf>();
            for _ in 0..2 {
                let buffer =
                    HugeBuf::zeroed(batch * stride).map_err(|e| ConvertError::Input(e.to_string()))?;
                // The receiver is held by this function.
                let _ = empty.send(buffer);
            }
            let writer = scope.spawn(move || -> std::io::Result<()> {
                let direct = bypass_cache(file);
                for (buffer, len) in to_write {
                    file.write_all(buffer.get(..len).unwrap_or_default())?;
                    if !direct {
                        // The drive writes while the next batch is packed, instead of all at the end.
                        file.sync_data()?;
                    }
                    // The packing side may have ended early.
                    let _ = empty.send(buffer);
                }
                Ok(())
            });
            let mut result = Ok(());
            let mut batches = self.experts.chunks(batch).peekable();
            self.each_part(batches.peek().copied().unwrap_or_default(), Checkpoint::will_need);
            while let Some(experts) = batches.next() {
                self.each_part(batches.peek().copied().unwrap_or_default(), Checkpoint::will_need);
                // No buffer comes back if writing failed; the writer says why.
                let Ok(mut buffer) = written.recv() else { break };
                let len = experts.len() * stride;
                let mut sums = vec![0; experts.len()];
                let jobs: Vec<_> =
                    experts.iter().zip(buffer.chunks_exact_mut(stride)).zip(&mut sums).collect();
                result = parallel(threads, jobs.into_iter(), |((expert, record), sum)| {
                    self.pack(expert, record)?;
                    *sum = crc32c::crc32c(record);
                    Ok(())
                });
                self.each_part(experts, Checkpoint::let_go);
                if result.is_err() || full.send((buffer, len)).is_err() {
                    break;
                }
                crc32c.extend(sums);
                progress((experts.len() * stride) as u64);
            }
            drop(full);
            let written = match writer.join() {
                Ok(written) => written.map_err(ConvertError::io(path)),
                Err(panic) => std::panic::resume_unwind(panic),
            };
            result.and(written)
        })
    }

    fn each_part(&self, experts: &[Expert<'_>], tell: impl Fn(&Checkpoint, &[u8])) {
        for part in experts.iter().flat_map(|e| &e.matrices).flat_map(Conversion::parts) {
            tell(self.checkpoint, part);
        }
    }

    fn pack(&self, expert: &Expert<'_>, record: &mut [u8]) -> Result<(), ConvertError> {
        let projections = [Projection::Gate, Projection::Up, Projection::Down];
        for (matrix, projection) in expert.matrices.iter().zip(projections) {
            matrix.check_finite()?;
            if let Some(out) = self.record.matrix_mut(record, projection) {
                matrix.write(0, out)?;
            }
        }
        Ok(self.record.pack_biases(&expert.source, record)?)
    }
}

/// Makes writes go past the page cache, where the system can; whole records from aligned memory suit it.
fn bypass_cache(file: &File) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
        fcntl_getfl(file).and_then(|flags| fcntl_setfl(file, flags | OFlags::DIRECT)).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = file;
        false
    }
}

/// Where a finished layer's entry is kept until the manifest is written.
fn journal(dir: &Path, layer: usize) -> std::path::PathBuf {
    dir.join(format!("layer-{layer:03}.json"))
}

/// Removes what only an interrupted conversion needs.
pub(crate) fn remove_journals(dir: &Path, entries: &[LayerEntry]) {
    for entry in entries {
        // The sidecar stands without this; a leftover does no harm.
        let _ = std::fs::remove_file(journal(dir, entry.layer));
    }
}
