//! Where experts are read from: records of a sidecar, or slices of a checkpoint's own tensors.

use std::time::Duration;

use mach_io::{Read, ReadStats, Reader, Slot};
use mach_quant::Order;

use crate::eviction::ExpertKey;
use crate::record::RecordLayout;
use crate::sidecar::{Sidecar, SidecarError};
use crate::slices::SlicePool;

/// The files that experts stream from.
// A process has one of these.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum ExpertFiles {
    /// One record an expert, read past the page cache and compared with its checksum.
    Records {
        /// The opened sidecar, which knows where each record lies.
        sidecar: Sidecar,
        /// A reader of its files.
        reader: Reader,
    },
    /// Slices of safetensors, laid out after each read; there are no checksums to compare with.
    Slices(SlicePool),
}

/// An expert that has been read, or could not be.
pub(crate) struct Arrival {
    pub(crate) tag: u64,
    pub(crate) bytes: usize,
    pub(crate) took: Duration,
    /// The memory, unless it must be given up.
    pub(crate) slot: Option<Slot>,
    pub(crate) result: Result<(), SidecarError>,
}

impl ExpertFiles {
    /// Layers of the model up to the last one with experts.
    pub(crate) fn layers(&self) -> usize {
        match self {
            Self::Records { sidecar, .. } => sidecar.manifest().layers.last().map_or(0, |e| e.layer + 1),
            Self::Slices(pool) => pool.source().layers(),
        }
    }

    /// Layers with experts.
    pub(crate) fn moe_layers(&self) -> usize {
        (0..self.layers()).filter(|&l| self.stored(l).is_some()).count()
    }

    /// Experts of each such layer.
    pub(crate) fn experts(&self) -> usize {
        match self {
            Self::Records { sidecar, .. } => sidecar.manifest().num_experts,
            Self::Slices(pool) => pool.source().experts(),
        }
    }

    /// How the experts of a layer lie when they have been read.
    pub(crate) fn stored(&self, layer: usize) -> Option<RecordLayout> {
        match self {
            Self::Records { sidecar, .. } => sidecar.record(layer),
            Self::Slices(pool) => pool.source().record(layer),
        }
    }

    /// Bytes that a slot needs for any record, before and after it is put into `order`.
    pub(crate) fn slot_bytes(&self, order: Order) -> usize {
        let records = (0..self.layers()).filter_map(|l| self.stored(l));
        records.map(|r| r.stride().max(r.in_order(order).stride())).max().unwrap_or(0)
    }

    /// Whether records are compared with checksums after direct reads.
    pub(crate) fn direct(&self) -> bool {
        matches!(self, Self::Records { reader, .. } if reader.caching() == mach_io::Caching::Direct)
    }

    pub(crate) fn submit(&mut self, reads: Vec<(ExpertKey, Slot, u64)>) {
        match self {
            Self::Records { sidecar, reader } => {
                let reads = reads.into_iter().filter_map(|(key, slot, tag)| {
                    let at = sidecar.location(key.layer, key.expert)?;
                    Some(Read { file: at.file, offset: at.offset, len: at.len, slot, tag })
                });
                reader.submit(reads);
            }
            Self::Slices(pool) => pool.submit(reads),
        }
    }

    /// The next read that ended; `None` if there is none, or, with `wait`, if none is under way.
    pub(crate) fn next(&mut self, wait: bool) -> Option<Arrival> {
        match self {
            Self::Records { reader, .. } => {
                let done = if wait { reader.wait_any() } else { reader.poll() }?;
                let (slot, result) = match done.result {
                    Ok(slot) => (Some(slot), Ok(())),
                    Err(failure) => (failure.slot, Err(failure.error.into())),
                };
                Some(Arrival { tag: done.tag, bytes: done.len, took: done.took, slot, result })
            }
            Self::Slices(pool) => pool.next(wait),
        }
    }

    pub(crate) fn register(&mut self, regions: &[mach_io::SlotRegion]) {
        if let Self::Records { reader, .. } = self {
            reader.register(regions);
        }
    }

    pub(crate) fn pending(&self) -> usize {
        match self {
            Self::Records { reader, .. } => reader.pending(),
            Self::Slices(pool) => pool.pending(),
        }
    }

    /// Length and checksum that a record must have; `None` where nothing says.
    pub(crate) fn expected(&self, key: ExpertKey) -> Option<(usize, u32)> {
        match self {
            Self::Records { sidecar, .. } => {
                sidecar.location(key.layer, key.expert).map(|at| (at.len, at.crc32c))
            }
            Self::Slices(_) => None,
        }
    }

    /// The error for a record that does not have its checksum.
    pub(crate) fn damaged(&self, key: ExpertKey) -> SidecarError {
        match self {
            Self::Records { sidecar, .. } => sidecar.damaged(key.layer, key.expert),
            Self::Slices(_) => {
                SidecarError::Invalid { file: "safetensors".into(), reason: "no checksum".to_owned() }
            }
        }
    }

    pub(crate) fn stats(&self) -> &ReadStats {
        match self {
            Self::Records { reader, .. } => reader.stats(),
            Self::Slices(pool) => pool.stats(),
        }
    }

    /// How reads are submitted, and how many at most at one time.
    pub(crate) fn mode(&self) -> (&'static str, usize) {
        match self {
            Self::Records { reader, .. } => (reader.submission(), reader.depth()),
            Self::Slices(pool) => ("slices", pool.threads()),
        }
    }
}
