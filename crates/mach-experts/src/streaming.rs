//! A bank with fewer slots than experts, and an arena for what only one layer of one pass needs, both filled from the
//! drive as experts are asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mach_io::{HugeBuf, MemoryError, ReadStats, Slot};
use mach_quant::Order;

use crate::arena::{Arena, Use};
use crate::background::Background;
use crate::eviction::{EvictionPolicy, ExpertKey};
use crate::fetch::ExpertFiles;
use crate::record::{ExpertView, RecordLayout};
use crate::residency::{BankFull, LayerStats, Place, Residency};
use crate::sidecar::SidecarError;
use crate::summary::{Counters, StreamingStats};

/// Tags of reads into the arena; those into the bank are slot numbers.
pub(crate) const ARENA: u64 = 1 << 32;

/// A layer that uses this share of its experts makes the next one be read before its router has spoken: what is read in
/// vain is then less than what the drive would wait.
const AHEAD: f64 = 0.85;

/// As much of a layer's experts must be expected to be used before anything is known of a pass's routing, which may be
/// less even than expected.
const CERTAIN: f64 = 0.98;

/// Why a streaming bank cannot be made or cannot serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamingError {
    /// Fewer slots than one token uses.
    #[error(
        "an expert bank of {slots} slots is too small: one token uses {needed}, which take {bytes} bytes; \
         0 reads every expert when it is needed"
    )]
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
    #[error("expert {expert} of layer {layer}: {source}")]
    Expert {
        /// Layer of the model.
        layer: usize,
        /// Expert of the layer.
        expert: usize,
        /// What happened, with the file.
        source: SidecarError,
    },
    /// A router named an expert that the files do not hold.
    #[error("the files hold no expert {expert} of layer {layer}")]
    Unknown {
        /// Layer of the model.
        layer: usize,
        /// Expert of the layer.
        expert: usize,
    },
    /// Reads that failed have taken all memory that experts could be read into.
    #[error("no memory is left that experts could be read into: failing reads have taken it")]
    NoSlot,
}

/// Computes the CRC32C of each of several records; whoever has threads may use them.
pub type Checksums<'a> = &'a mut dyn FnMut(&[&[u8]]) -> Vec<u32>;

/// [`Checksums`] on the calling thread.
pub fn checksums(records: &[&[u8]]) -> Vec<u32> {
    records.iter().map(|record| crc32c::crc32c(record)).collect()
}

/// An expert that a pass needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Which of the layer.
    pub expert: usize,
    /// Whether it may take a slot of the bank from another: true for the tokens that are truly decoded, false for prompts and
    /// for rows that are only proposed.
    pub banked: bool,
    /// Whether using it from the bank counts as a use for eviction.
    pub counts: bool,
}

/// Sizes and policies of a [`StreamingBank`].
#[derive(Debug, Clone, Copy)]
pub struct BankOptions {
    /// Slots of the bank: 0, or at least one token's experts.
    pub bank_slots: usize,
    /// Slots of the arena, at least 1.
    pub arena_slots: usize,
    /// Experts that a token uses in each layer.
    pub top_k: usize,
    /// Order that the kernels want.
    pub order: Order,
    /// Which expert leaves a full bank.
    pub eviction: EvictionPolicy,
    /// Bytes a second of random reads that a probe found.
    pub probed_bandwidth: Option<f64>,
}

/// The layer that computes now.
#[derive(Debug, Default)]
pub(crate) struct Pass {
    pub(crate) layer: usize,
    /// There and not handed out.
    pub(crate) ready: VecDeque<usize>,
    /// There, but not yet compared with their checksums.
    pub(crate) landed: Vec<usize>,
    /// Being read.
    pub(crate) outstanding: usize,
    /// To be read into the arena as soon as it has room.
    pub(crate) todo: VecDeque<usize>,
    /// Pinned in the bank.
    pub(crate) pinned: Vec<usize>,
    /// What went wrong with a read that ended while something else was done.
    pub(crate) failed: Option<StreamingError>,
}

impl Pass {
    /// An expert that the layer needs is in the bank.
    fn there(&mut self, key: ExpertKey, background: &Background) {
        if background.unchecked(key) {
            self.landed.push(key.expert);
        } else {
            self.ready.push_back(key.expert);
        }
    }
}

/// Experts of all layers sharing fixed slots.
///
/// For each layer of a pass: [`begin`](Self::begin) pins what is there and submits all reads at once; [`ready`](Self::ready)
/// hands out experts as they can be computed, those that are there first; [`done`](Self::done) gives their memory back;
/// [`end`](Self::end) ends the layer. After an error [`abandon`](Self::abandon) makes the bank ready for the next pass.
#[derive(Debug)]
pub struct StreamingBank {
    pub(crate) files: ExpertFiles,
    pub(crate) records: Vec<Option<RecordLayout>>,
    pub(crate) order: Order,
    pub(crate) residency: Residency,
    /// What is read before it is asked for.
    pub(crate) background: Background,
    /// `None` while the drive writes to it, or after it was given up.
    pub(crate) slots: Vec<Option<Slot>>,
    pub(crate) slot_bytes: usize,
    /// The expert on its way to each slot.
    pub(crate) coming: Vec<Option<ExpertKey>>,
    pub(crate) arena: Arena,
    pub(crate) pass: Pass,
    /// Experts of the next layer, to be read when the arena has room to spare.
    pub(crate) ahead: VecDeque<ExpertKey>,
    /// Experts of a layer that a token uses.
    pub(crate) top_k: usize,
    /// Slots of the bank that one layer may fill with what prompts brought.
    pub(crate) share: usize,
    /// For records that must be put into another order.
    pub(crate) scratch: Vec<u8>,
    pub(crate) counters: Counters,
    pub(crate) stats: Arc<StreamingStats>,
    /// Ends the thread that fetches the bank's pages.
    pub(crate) stop: Arc<AtomicBool>,
}

impl Drop for StreamingBank {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl StreamingBank {
    /// Slots that one token uses: its experts of every layer.
    pub fn working_set(files: &ExpertFiles, top_k: usize) -> usize {
        files.moe_layers() * top_k
    }

    /// An empty bank.
    pub fn new(mut files: ExpertFiles, options: BankOptions) -> Result<Self, StreamingError> {
        let (layers, experts) = (files.layers(), files.experts());
        let (slot_bytes, needed) =
            (files.slot_bytes(options.order), Self::working_set(&files, options.top_k));
        // More slots than experts would never be used.
        let slots = options.bank_slots.min(files.moe_layers() * experts);
        if slots > 0 && slots < needed {
            return Err(StreamingError::TooSmall { slots, needed, bytes: needed * slot_bytes });
        }
        let records = (0..layers).map(|l| Some(files.stored(l)?.in_order(options.order))).collect::<Vec<_>>();
        for layer in 0..layers {
            let (Some(stored), Some(Some(record))) = (files.stored(layer), records.get(layer)) else {
                continue;
            };
            if let Err(error) = record.check_usable(&stored) {
                let file = format!("expert_sidecar/layer {layer}").into();
                let source = SidecarError::Invalid { file, reason: error.to_string() };
                return Err(StreamingError::Expert { layer, expert: 0, source });
            }
        }
        let memory = HugeBuf::zeroed(slots * slot_bytes)?.into_slots(slot_bytes);
        let arena = HugeBuf::zeroed(options.arena_slots.max(1) * slot_bytes)?.into_slots(slot_bytes);
        // Registering touches every page: the arena is used all the time, the bank fills as experts are needed.
        let regions: Vec<_> = arena.first().map(|slot| slot.region().clone()).into_iter().collect();
        files.register(&regions);
        let stop = Arc::new(AtomicBool::new(false));
        if let Some(region) = memory.first().map(|slot| slot.region().clone()) {
            // New pages cost more than the reads that fill them: they are had meanwhile, so that the start does not wait.
            let stop = Arc::clone(&stop);
            let thread = std::thread::Builder::new().name("mach-pages".into());
            if let Err(error) = thread.spawn(move || region.populate(&stop)) {
                tracing::debug!(%error, "pages of the bank come as they are used");
            }
        }
        let residency = Residency::new(slots, layers, options.eviction.build(layers, experts));
        let stats = Arc::new(StreamingStats::new(&files, &residency, slot_bytes, arena.len(), &options));
        Ok(StreamingBank {
            top_k: options.top_k,
            share: slots / files.moe_layers().max(1),
            order: options.order,
            residency,
            coming: vec![None; slots],
            slots: memory.into_iter().map(Some).collect(),
            slot_bytes,
            arena: Arena::new(arena),
            pass: Pass::default(),
            ahead: VecDeque::new(),
            background: Background::default(),
            scratch: Vec::new(),
            counters: Counters::new(layers),
            stats,
            stop,
            records,
            files,
        })
    }

    /// Begins a pass with `rows` rows of prompt. If so many rows must use nearly all experts of a layer, the first layer
    /// is read at once.
    pub fn pass(&mut self, rows: usize) {
        self.background.pause(rows > 0);
        let untouched = (1.0 - self.top_k as f64 / self.files.experts().max(1) as f64).max(0.0);
        if 1.0 - untouched.powf(rows as f64) >= CERTAIN
            && let Some(first) = self.records.iter().position(Option::is_some)
        {
            self.expect(first);
        }
    }

    /// Begins a layer: `demands` are distinct experts of it. `next` is the layer after it, to be read ahead if this one
    /// uses nearly all of its experts.
    pub fn begin(
        &mut self,
        layer: usize,
        demands: &[Demand],
        next: Option<usize>,
    ) -> Result<(), StreamingError> {
        let (known, experts) = (self.record(layer).is_some(), self.files.experts());
        if let Some(d) = demands.iter().find(|d| !known || d.expert >= experts) {
            return Err(StreamingError::Unknown { layer, expert: d.expert });
        }
        self.ahead.clear();
        self.pass = Pass { layer, ..Pass::default() };
        self.arena.forget(|k| k.layer == layer && demands.iter().any(|d| d.expert == k.expert));
        let key = |expert| ExpertKey { layer, expert };
        let in_arena = |a: &Arena, e: usize| a.find(key(e)).is_some();
        let mut banked: Vec<usize> = demands
            .iter()
            .filter(|d| d.banked && !in_arena(&self.arena, d.expert))
            .map(|d| d.expert)
            .collect();
        let mut reads = Vec::new();
        match self.residency.request(layer, &banked) {
            Ok(places) => {
                for (&expert, place) in banked.iter().zip(places) {
                    self.pass.pinned.push(expert);
                    match place {
                        Place::Hit(_) => self.pass.there(key(expert), &self.background),
                        Place::Coming(_) => {
                            self.background.claim(key(expert));
                            self.pass.outstanding += 1;
                        }
                        Place::Miss(index) => {
                            self.background.replaced(key(expert));
                            self.pass.outstanding += 1;
                            reads.extend(self.read_into(key(expert), index));
                        }
                    }
                }
            }
            // More than the bank can give at once, or no bank at all: the arena takes them in turn.
            Err(BankFull { .. }) => banked.clear(),
        }
        for demand in demands.iter().filter(|d| !banked.contains(&d.expert)) {
            let key = key(demand.expert);
            let transient = self.counters.transient(layer);
            if self.residency.pin_resident(key, demand.counts) {
                transient.hits += 1;
                self.pass.pinned.push(demand.expert);
                self.pass.there(key, &self.background);
                continue;
            }
            transient.misses += 1;
            if self.background.claim(key) {
                self.pass.outstanding += 1;
                continue;
            }
            match self.arena.find(key) {
                Some((index, Use::Here(_) | Use::Taken(_))) => {
                    self.arena.set(index, Use::Taken(key));
                    self.pass.landed.push(demand.expert);
                }
                Some(_) => self.pass.outstanding += 1,
                None => self.pass.todo.push_back(demand.expert),
            }
        }
        self.submit(reads);
        if let Some(next) = next.filter(|_| demands.len() as f64 >= AHEAD * experts as f64) {
            self.expect(next);
        }
        self.refill();
        Ok(())
    }

    /// Reads all experts of a layer that is to come, as far as the arena has room.
    pub fn expect(&mut self, layer: usize) {
        if self.record(layer).is_some() {
            self.ahead = (0..self.files.experts()).map(|expert| ExpertKey { layer, expert }).collect();
            self.refill();
        }
    }

    /// Takes note of reads that have ended and submits more; costs next to nothing when there are none.
    pub fn pump(&mut self) {
        if self.files.pending() == 0 && self.background.idle() {
            return;
        }
        while let Some(arrival) = self.files.next(false) {
            // Whoever asks next for experts of the layer is told; what was read ahead and failed is read again when it is needed.
            if let Err(error) = self.land(arrival) {
                self.pass.failed.get_or_insert(error);
            }
        }
        self.refill();
    }

    /// Experts that can be computed now, at most `most`, without waiting.
    pub fn there(&mut self, most: usize, sums: Checksums<'_>) -> Result<Vec<usize>, StreamingError> {
        if let Some(error) = self.pass.failed.take() {
            return Err(error);
        }
        self.settle(sums)?;
        let n = most.min(self.pass.ready.len());
        Ok(self.pass.ready.drain(..n).collect())
    }

    /// Experts that can be computed now, at most `most`, waiting for one if need be; `None` when all were handed out.
    pub fn ready(&mut self, most: usize, sums: Checksums<'_>) -> Result<Option<Vec<usize>>, StreamingError> {
        if let Some(error) = self.pass.failed.take() {
            return Err(error);
        }
        loop {
            while let Some(arrival) = self.files.next(false) {
                self.land(arrival)?;
            }
            self.refill();
            self.settle(sums)?;
            self.refill();
            if !self.pass.ready.is_empty() {
                let n = most.max(1).min(self.pass.ready.len());
                return Ok(Some(self.pass.ready.drain(..n).collect()));
            }
            if self.pass.outstanding == 0 && self.pass.todo.is_empty() {
                return Ok(None);
            }
            let before = self.files.stats().stall;
            let Some(arrival) = self.files.next(true) else { return Err(StreamingError::NoSlot) };
            let stalled = self.files.stats().stall.saturating_sub(before);
            self.counters.stalled(self.pass.layer, stalled);
            self.land(arrival)?;
        }
    }

    /// Gives back the memory of experts that have been computed.
    pub fn done(&mut self, experts: &[usize]) {
        for &expert in experts {
            let key = ExpertKey { layer: self.pass.layer, expert };
            let Some((index, _)) = self.arena.find(key) else { continue };
            // What a prompt brought fills a bank that has room, so that decoding does not begin with an empty one.
            if let Some(slot) = self.residency.adopt(key, self.share)
                && let Some(place) = self.slots.get_mut(slot)
            {
                self.arena.swap(index, place);
                self.background.replaced(key);
            }
            self.arena.set(index, Use::Free);
        }
        self.refill();
    }

    /// Ends the layer.
    pub fn end(&mut self) {
        let Pass { layer, pinned, .. } = std::mem::take(&mut self.pass);
        self.residency.release(layer, &pinned);
        let last = self.records.iter().rposition(Option::is_some) == Some(layer);
        self.counters.background = (self.background.reads, self.background.failures);
        self.stats.publish(last, &self.files, &self.residency, &self.counters);
    }

    /// Waits for every read and ends the layer, wherever it stands.
    pub fn abandon(&mut self) {
        self.ahead.clear();
        self.pass.todo.clear();
        while let Some(arrival) = self.files.next(true) {
            // The pass has failed already.
            let _ = self.land(arrival);
        }
        // What has landed and was not compared with its checksum is not there.
        let layer = self.pass.layer;
        for expert in std::mem::take(&mut self.pass.landed) {
            self.residency.discard(ExpertKey { layer, expert });
        }
        self.arena.forget(|_| false);
        self.end();
    }

    pub(crate) fn record(&self, layer: usize) -> Option<&RecordLayout> {
        self.records.get(layer)?.as_ref()
    }

    /// The memory of an expert that is there.
    pub(crate) fn slot(&self, key: ExpertKey) -> Option<&Slot> {
        match self.residency.resident(key) {
            Some(slot) => self.slots.get(slot)?.as_ref(),
            None => match self.arena.find(key)? {
                (index, Use::Here(_) | Use::Taken(_)) => self.arena.get(index),
                _ => None,
            },
        }
    }

    /// The weights of an expert that [`ready`](Self::ready) has handed out and [`done`](Self::done) has not taken back, or that is
    /// in the bank.
    pub fn expert(&self, layer: usize, expert: usize) -> Option<ExpertView<'_>> {
        self.record(layer)?.view(self.slot(ExpertKey { layer, expert })?).swiglu()
    }

    /// Hits, misses and evictions of the bank by layer.
    pub fn layers(&self) -> &[LayerStats] {
        self.residency.layers()
    }

    /// What the drive has done.
    pub fn reads(&self) -> &ReadStats {
        self.files.stats()
    }

    /// Time that computing has waited for reads.
    pub fn stall(&self) -> Duration {
        self.files.stats().stall
    }

    /// Bytes of bank and arena on huge pages.
    pub fn huge_bytes(&self) -> Option<usize> {
        let arena = (0..self.arena.len()).find_map(|i| self.arena.get(i));
        let parts = [self.slots.iter().flatten().next(), arena];
        parts.into_iter().flatten().map(|slot| slot.region().huge_bytes()).sum()
    }

    /// Slots of the bank.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Slots of the arena.
    pub fn arena_slots(&self) -> usize {
        self.arena.len()
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Order of the records in memory.
    pub fn order(&self) -> Order {
        self.order
    }

    /// Name of the eviction policy.
    pub fn policy(&self) -> &'static str {
        self.residency.policy()
    }

    /// Where snapshots of the counters are published.
    pub fn stats(&self) -> &Arc<StreamingStats> {
        &self.stats
    }
}
