//! A bank with fewer slots than experts, and an arena for what only one layer of one pass needs, both filled from the
//! drive as experts are asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mach_io::{HugeBuf, MemoryError, ReadStats};
use mach_quant::Order;

use crate::eviction::{EvictionPolicy, ExpertKey};
use crate::fetch::ExpertFiles;
use crate::fetcher::{Fetcher, Landed};
use crate::heat::HotExperts;
use crate::record::ExpertView;
use crate::residency::{BankFull, LayerStats, Residency};
use crate::sidecar::SidecarError;
use crate::summary::{Counters, StreamingStats};
use crate::traffic::{self, Demand, Ended, Traffic};
use crate::uses::ExpertUses;

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
        /// Bytes of the needed slots.
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

/// Experts of all layers sharing fixed slots.
///
/// For each layer of a pass: [`begin`](Self::begin) pins what is there and submits all reads at once; [`ready`](Self::ready)
/// hands out experts as they can be computed, those that are there first; [`done`](Self::done) gives their memory back;
/// [`end`](Self::end) ends the layer. After an error [`abandon`](Self::abandon) makes the bank ready for the next pass.
#[derive(Debug)]
pub struct StreamingBank {
    /// What goes where.
    traffic: Traffic,
    /// Memory and reads.
    fetcher: Fetcher,
    order: Order,
    slot_bytes: usize,
    counters: Counters,
    stats: Arc<StreamingStats>,
    /// What went wrong with a read that ended while something else was done.
    failed: Option<StreamingError>,
    /// Ends the thread that fetches the bank's pages.
    stop: Arc<AtomicBool>,
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
        let arena = HugeBuf::zeroed(options.arena_slots.max(1) * slot_bytes)?;
        // What the budget announces is held from the start, and the first prompt does not wait for pages.
        arena.populate(0, arena.len());
        let arena = arena.into_slots(slot_bytes);
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
        let known: Vec<bool> = records.iter().map(Option::is_some).collect();
        let uses = Arc::new(ExpertUses::new(known.clone(), experts));
        let residency = Residency::new(slots, layers, options.eviction.build(layers, experts)).counted(uses);
        let stats = Arc::new(StreamingStats::new(&files, &residency, slot_bytes, arena.len(), &options));
        let traffic = Traffic::new(residency, arena.len(), known, experts, options.top_k);
        Ok(StreamingBank {
            traffic,
            order: options.order,
            slot_bytes,
            counters: Counters::new(layers),
            stats,
            failed: None,
            stop,
            fetcher: Fetcher::new(files, records, memory, arena),
        })
    }

    /// Begins a pass with `rows` rows of prompt. If so many rows must use nearly all experts of a layer, the first layer
    /// is read at once.
    pub fn pass(&mut self, rows: usize) {
        if self.traffic.begin_pass(rows) {
            self.refill();
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
        let key = |d: &Demand| ExpertKey { layer, expert: d.expert };
        if let Some(d) = demands.iter().find(|d| !self.traffic.known(key(d))) {
            return Err(StreamingError::Unknown { layer, expert: d.expert });
        }
        self.failed = None;
        let reads = self.traffic.begin(layer, demands, next, &mut self.counters);
        self.submit(reads);
        self.refill();
        Ok(())
    }

    /// Reads all experts of a layer that is to come, as far as the arena has room.
    pub fn expect(&mut self, layer: usize) {
        if self.traffic.expect(layer) {
            self.refill();
        }
    }

    /// Has experts read into empty slots when the drive has nothing else to do, the hottest of all layers first. Replaces what
    /// was wanted before.
    pub fn bring(&mut self, hot: &HotExperts) {
        self.traffic.bring(hot);
    }

    /// Experts that are still to be brought, those on their way included.
    pub fn to_bring(&self) -> usize {
        self.traffic.background.left()
    }

    fn submit(&mut self, reads: Vec<traffic::Order>) {
        reads.iter().for_each(|read| self.counters.submitted(read.key.layer));
        self.fetcher.submit(reads);
    }

    /// Submits what there is room for.
    fn refill(&mut self) {
        let reads = self.traffic.refill();
        self.submit(reads);
    }

    /// Takes note of a read that has ended.
    fn land(&mut self, landed: Landed) -> Result<(), StreamingError> {
        let Landed { home, bytes, took, lost, result } = landed;
        let Ended { key, asked } = self.traffic.landed(home, result.is_ok(), lost);
        let Some(key) = key else { return Ok(()) };
        self.counters.arrived(key.layer, result.is_ok().then_some((bytes, took)));
        match result {
            Err(source) if asked => {
                Err(StreamingError::Expert { layer: key.layer, expert: key.expert, source })
            }
            _ => Ok(()),
        }
    }

    /// Compares what has landed with its checksums and puts it into the order that is wanted.
    fn settle(&mut self, sums: Checksums<'_>) -> Result<(), StreamingError> {
        let landed = self.traffic.unchecked();
        if landed.is_empty() {
            return Ok(());
        }
        let found = self.fetcher.compare(&landed, sums);
        let good = self.traffic.checked(&found).map_err(|key| StreamingError::Expert {
            layer: key.layer,
            expert: key.expert,
            source: self.fetcher.files.damaged(key),
        })?;
        for key in good {
            if let Some(home) = self.traffic.home(key) {
                self.fetcher.reorder(key, home);
            }
        }
        Ok(())
    }

    /// Takes note of reads that have ended and submits more; costs next to nothing when there are none.
    pub fn pump(&mut self) {
        if self.fetcher.files.pending() == 0 && self.traffic.background.idle() {
            return;
        }
        while let Some(landed) = self.fetcher.next(false) {
            // Whoever asks next for experts of the layer is told; what was read ahead and failed is read again when it is needed.
            if let Err(error) = self.land(landed) {
                self.failed.get_or_insert(error);
            }
        }
        self.refill();
    }

    /// Experts that can be computed now, at most `most`, without waiting.
    pub fn there(&mut self, most: usize, sums: Checksums<'_>) -> Result<Vec<usize>, StreamingError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.settle(sums)?;
        Ok(self.traffic.hand_out(most))
    }

    /// Experts that can be computed now, at most `most`, waiting for one if need be; `None` when all were handed out.
    pub fn ready(&mut self, most: usize, sums: Checksums<'_>) -> Result<Option<Vec<usize>>, StreamingError> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        loop {
            while let Some(landed) = self.fetcher.next(false) {
                self.land(landed)?;
            }
            self.refill();
            self.settle(sums)?;
            self.refill();
            let experts = self.traffic.hand_out(most.max(1));
            if !experts.is_empty() {
                return Ok(Some(experts));
            }
            if self.traffic.exhausted() {
                return Ok(None);
            }
            let before = self.stall();
            let Some(landed) = self.fetcher.next(true) else { return Err(StreamingError::NoSlot) };
            let stalled = self.stall().saturating_sub(before);
            self.counters.stalled(self.traffic.layer(), stalled);
            self.land(landed)?;
        }
    }

    /// Gives back the memory of experts that have been computed.
    pub fn done(&mut self, experts: &[usize]) {
        for (from, to) in self.traffic.done(experts) {
            self.fetcher.swap(from, to);
        }
        self.refill();
    }

    /// Ends the layer.
    pub fn end(&mut self) {
        let layer = self.traffic.end();
        let background = &self.traffic.background;
        self.counters.background = (background.reads, background.failures);
        let last = self.traffic.is_last(layer);
        self.stats.publish(last, &self.fetcher.files, &self.traffic.residency, &self.counters);
    }

    /// Waits for every read and ends the layer, wherever it stands.
    pub fn abandon(&mut self) {
        self.traffic.stop();
        while let Some(landed) = self.fetcher.next(true) {
            // The pass has failed already.
            let _ = self.land(landed);
        }
        self.traffic.clear();
        self.end();
    }

    /// The weights of an expert that [`ready`](Self::ready) has handed out and [`done`](Self::done) has not taken back, or that is
    /// in the bank.
    pub fn expert(&self, layer: usize, expert: usize) -> Option<ExpertView<'_>> {
        let home = self.traffic.home(ExpertKey { layer, expert })?;
        self.fetcher.record(layer)?.view(self.fetcher.slot(home)?).gated()
    }

    /// Hits, misses and evictions of the bank by layer.
    pub fn layers(&self) -> &[LayerStats] {
        self.traffic.residency.layers()
    }

    /// What the drive has done.
    pub fn reads(&self) -> &ReadStats {
        self.fetcher.stats()
    }

    /// Time that computing has waited for reads.
    pub fn stall(&self) -> Duration {
        self.fetcher.stats().stall
    }

    /// Bytes of bank and arena on huge pages.
    pub fn huge_bytes(&self) -> Option<usize> {
        self.fetcher.huge_bytes()
    }

    /// Slots of the bank.
    pub fn slots(&self) -> usize {
        self.traffic.residency.slots()
    }

    /// Slots of the arena.
    pub fn arena_slots(&self) -> usize {
        self.fetcher.arena_slots()
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
        self.traffic.residency.policy()
    }

    /// Where snapshots of the counters are published.
    pub fn stats(&self) -> &Arc<StreamingStats> {
        &self.stats
    }
}
