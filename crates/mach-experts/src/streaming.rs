//! A bank with fewer slots than experts, filled from the sidecar as experts are asked for.

use mach_io::{HugeBuf, MemoryError, Read, ReadStats, Reader, Slot};
use mach_quant::Order;

use crate::eviction::{EvictionPolicy, ExpertKey};
use crate::record::ExpertView;
use crate::residency::{BankFull, LayerStats, Place, Residency};
use crate::sidecar::{Sidecar, SidecarError};

/// Why a streaming bank cannot be made or cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamingError {
    /// Fewer slots than one token uses.
    #[error("{slots} slots for experts are too few: one token uses {needed}, which take {bytes} bytes")]
    TooSmall {
        /// Slots asked for.
        slots: usize,
        /// Slots needed.
        needed: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// No memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// All slots are in use.
    #[error(transparent)]
    Full(#[from] BankFull),
    /// A record could not be read, or is damaged.
    #[error(transparent)]
    Sidecar(#[from] SidecarError),
}

/// An expert that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landed {
    /// Which.
    pub key: ExpertKey,
}

/// The bank: fixed slots, experts of all layers sharing them.
///
/// For each layer of a pass: [`begin`](Self::begin) pins the experts that the router chose and submits all misses at
/// once; the hits can compute while [`next`](Self::next) hands over the misses as they land; [`end`](Self::end) unpins.
#[derive(Debug)]
pub struct StreamingBank {
    sidecar: Sidecar,
    reader: Reader,
    residency: Residency,
    /// `None` while the drive writes to it, or after it was given up.
    slots: Vec<Option<Slot>>,
    /// The expert on its way to each slot.
    coming: Vec<Option<ExpertKey>>,
}

impl StreamingBank {
    /// Slots that one token uses: its experts of every layer.
    pub fn working_set(sidecar: &Sidecar, top_k: usize) -> usize {
        sidecar.manifest().layers.len() * top_k
    }

    /// A bank of `slots` slots, empty. `top_k` experts are used by a token in each layer.
    pub fn new(
        sidecar: Sidecar,
        reader: Reader,
        slots: usize,
        top_k: usize,
        order: Order,
        policy: EvictionPolicy,
    ) -> Result<Self, StreamingError> {
        for (entry, file) in sidecar.manifest().layers.iter().zip(sidecar.files()) {
            if entry.record().in_order(order) != entry.record() {
                return Err(SidecarError::Invalid {
                    file: file.clone(),
                    reason: format!("records that lie in another order than {order:?} cannot be streamed"),
                }
                .into());
            }
        }
        let (stride, needed) = (sidecar.max_stride(), Self::working_set(&sidecar, top_k));
        if slots < needed {
            return Err(StreamingError::TooSmall { slots, needed, bytes: needed * stride });
        }
        let experts = sidecar.manifest().num_experts;
        let layers = sidecar.manifest().layers.last().map_or(0, |e| e.layer + 1);
        // More slots than experts would never be used.
        let slots = slots.min(sidecar.manifest().layers.len() * experts);
        let memory = HugeBuf::zeroed(slots * stride)?.into_slots(stride);
        Ok(StreamingBank {
            residency: Residency::new(slots, layers, policy.build(layers, experts)),
            coming: vec![None; memory.len()],
            slots: memory.into_iter().map(Some).collect(),
            sidecar,
            reader,
        })
    }

    /// Pins distinct experts of a layer and submits the reads of those that are not there. Gives the experts that are; the
    /// others come from [`next`](Self::next). After an error nothing is pinned.
    pub fn begin(&mut self, layer: usize, experts: &[usize]) -> Result<Vec<usize>, StreamingError> {
        let missing = experts.iter().find(|&&e| self.sidecar.location(layer, e).is_none());
        if let Some(expert) = missing {
            let reason = format!("no expert {expert} of layer {layer}");
            return Err(SidecarError::Invalid { file: "expert_sidecar".into(), reason }.into());
        }
        let places = self.residency.request(layer, experts)?;
        let (mut hits, mut reads) = (Vec::new(), Vec::new());
        for (&expert, place) in experts.iter().zip(places) {
            match place {
                Place::Hit(_) => hits.push(expert),
                Place::Coming(_) => {}
                Place::Miss(index) => {
                    let location = self.sidecar.location(layer, expert);
                    let slot = self.slots.get_mut(index).and_then(Option::take);
                    if let (Some(at), Some(slot), Some(coming)) = (location, slot, self.coming.get_mut(index))
                    {
                        *coming = Some(ExpertKey { layer, expert });
                        let (file, offset, len) = (at.file, at.offset, at.len);
                        reads.push(Read { file, offset, len, slot, tag: index as u64 });
                    }
                }
            }
        }
        self.reader.submit(reads);
        Ok(hits)
    }

    /// The next expert that lands, waiting for it; `None` when none is on its way. After an error that expert is neither
    /// there nor coming; others go on.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Result<Landed, StreamingError>> {
        let done = self.reader.wait_any()?;
        Some(self.take(done))
    }

    /// As [`next`](Self::next), without waiting.
    pub fn poll(&mut self) -> Option<Result<Landed, StreamingError>> {
        let done = self.reader.poll()?;
        Some(self.take(done))
    }

    fn take(&mut self, done: mach_io::Completion) -> Result<Landed, StreamingError> {
        let index = done.tag as usize;
        let key = self.coming.get_mut(index).and_then(Option::take);
        let key = key.unwrap_or(ExpertKey { layer: usize::MAX, expert: usize::MAX });
        let (slot, result) = match done.result {
            Ok(slot) => {
                let result = self.sidecar.check_record(key.layer, key.expert, &slot);
                (Some(slot), result)
            }
            Err(failure) => (failure.slot, Err(failure.error.into())),
        };
        match &result {
            Ok(()) => self.residency.landed(index),
            Err(_) => self.residency.failed(index, slot.is_none()),
        }
        if let Some(place) = self.slots.get_mut(index) {
            *place = slot;
        }
        result?;
        Ok(Landed { key })
    }

    /// The weights of an expert that is there.
    pub fn expert(&self, layer: usize, expert: usize) -> Option<ExpertView<'_>> {
        let slot = self.residency.resident(ExpertKey { layer, expert })?;
        Some(self.sidecar.record(layer)?.view(self.slots.get(slot)?.as_ref()?))
    }

    /// Unpins experts that `begin` has pinned.
    pub fn end(&mut self, layer: usize, experts: &[usize]) {
        self.residency.release(layer, experts);
    }

    /// Hits, misses and evictions by layer.
    pub fn layers(&self) -> &[LayerStats] {
        self.residency.layers()
    }

    /// What the drive has done.
    pub fn reads(&self) -> &ReadStats {
        self.reader.stats()
    }

    /// Slots.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Name of the eviction policy.
    pub fn policy(&self) -> &'static str {
        self.residency.policy()
    }
}
