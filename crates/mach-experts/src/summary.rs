//! What streaming has done, as a snapshot that other threads read while the engine computes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mach_io::{LatencyHistogram, ReadStats};
use serde::Serialize;

use crate::fetch::ExpertFiles;
use crate::residency::{LayerStats, Residency};
use crate::streaming::BankOptions;
use crate::uses::ExpertUses;

/// Least time between two snapshots inside a pass.
const EVERY: Duration = Duration::from_millis(50);

/// Uses of a layer's experts by passes that leave the bank as it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Transient {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

/// What the bank itself does not count.
#[derive(Debug)]
pub(crate) struct Counters {
    transient: Vec<Transient>,
    stall: Vec<Duration>,
    reads: Vec<LayerReads>,
    nowhere: Transient,
    /// Reads before experts were asked for, and those that failed.
    pub(crate) background: (u64, u64),
}

/// Reads of a layer's experts.
#[derive(Debug, Clone, Default)]
struct LayerReads {
    reads: u64,
    failures: u64,
    bytes: u64,
    under_way: usize,
    high_water: usize,
    latency: LatencyHistogram,
}

impl Counters {
    pub(crate) fn new(layers: usize) -> Self {
        let (transient, stall) = (vec![Transient::default(); layers], vec![Duration::ZERO; layers]);
        let reads = vec![LayerReads::default(); layers];
        Counters { transient, stall, reads, nowhere: Transient::default(), background: (0, 0) }
    }

    pub(crate) fn transient(&mut self, layer: usize) -> &mut Transient {
        self.transient.get_mut(layer).unwrap_or(&mut self.nowhere)
    }

    pub(crate) fn submitted(&mut self, layer: usize) {
        if let Some(reads) = self.reads.get_mut(layer) {
            reads.under_way += 1;
            reads.high_water = reads.high_water.max(reads.under_way);
        }
    }

    /// A read has ended; bytes and time if it ended well.
    pub(crate) fn arrived(&mut self, layer: usize, good: Option<(usize, Duration)>) {
        let Some(reads) = self.reads.get_mut(layer) else { return };
        reads.under_way = reads.under_way.saturating_sub(1);
        match good {
            Some((bytes, took)) => {
                reads.reads += 1;
                reads.bytes += bytes as u64;
                reads.latency.record(took);
            }
            None => reads.failures += 1,
        }
    }

    pub(crate) fn stalled(&mut self, layer: usize, time: Duration) {
        if let Some(stall) = self.stall.get_mut(layer) {
            *stall += time;
        }
    }
}

/// Reads, of one layer or of all.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ReadSummary {
    /// Reads that ended well.
    pub reads: u64,
    /// Reads that failed.
    pub read_failures: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Most reads that were at the drive at one time.
    pub reads_in_flight_high_water: usize,
    /// Median time of a read.
    pub read_latency_p50_ms: Option<f64>,
    /// Time that one read in a hundred exceeded.
    pub read_latency_p99_ms: Option<f64>,
}

impl ReadSummary {
    fn new(reads: u64, failures: u64, bytes: u64, high_water: usize, latency: &LatencyHistogram) -> Self {
        let ms = |q| latency.quantile(q).map(|d| d.as_secs_f64() * 1e3);
        ReadSummary {
            reads,
            read_failures: failures,
            bytes_read: bytes,
            reads_in_flight_high_water: high_water,
            read_latency_p50_ms: ms(0.5),
            read_latency_p99_ms: ms(0.99),
        }
    }

    fn total(stats: &ReadStats) -> Self {
        Self::new(stats.reads, stats.failures, stats.bytes, stats.in_flight_high_water, &stats.latency)
    }

    /// `depth`: most reads at the drive; what was submitted beyond it waits.
    fn layer(reads: &LayerReads, depth: usize) -> Self {
        Self::new(reads.reads, reads.failures, reads.bytes, reads.high_water.min(depth), &reads.latency)
    }
}

/// Counts of one layer, or of all.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LayerSummary {
    /// The layer; absent for the total.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<usize>,
    /// Experts in the bank.
    pub resident_slots: usize,
    /// Experts that decoding found in the bank.
    pub hits: u64,
    /// Experts that decoding had to read.
    pub misses: u64,
    /// Experts that made room for others.
    pub evictions: u64,
    /// Hits among hits and misses; absent before the first.
    pub hit_rate: Option<f64>,
    /// Experts that prompts and proposed rows found in the bank.
    pub transient_hits: u64,
    /// Experts that they read through the arena.
    pub transient_reads: u64,
    /// Seconds that computing waited for reads.
    pub stall_seconds: f64,
    /// Reads of this layer.
    #[serde(flatten)]
    pub reads: ReadSummary,
}

/// How the drive is read.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DirectPread {
    /// Whether reads bypass the page cache.
    pub active: bool,
    /// `uring`, `pread`, or `slices` (out of safetensors, through the page cache).
    pub mode: &'static str,
    /// Most reads at the drive at one time.
    pub depth: usize,
    /// KiB of a read.
    pub read_kib: usize,
}

/// A snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StreamingSummary {
    /// Eviction policy.
    pub bank_eviction: &'static str,
    /// Slots of the bank.
    pub bank_slots: usize,
    /// Slots of the arena.
    pub arena_slots: usize,
    /// Bytes of a slot.
    pub slot_bytes: usize,
    /// All layers together.
    pub total: LayerSummary,
    /// Experts of restored prefixes that were read before they were asked for.
    pub background_reads: u64,
    /// Of those reads the ones that failed, which changed nothing.
    pub background_failures: u64,
    /// Seconds during which the drive had work.
    pub busy_seconds: f64,
    /// Bytes a second while it had.
    pub achieved_bandwidth: Option<f64>,
    /// Bytes a second that the probe at the start found.
    pub probed_bandwidth: Option<f64>,
    /// How the drive is read.
    pub direct_pread: DirectPread,
    /// The layers that have experts.
    pub layers: Vec<LayerSummary>,
}

/// Where snapshots are published. The lock is held for the time of a pointer's copy.
#[derive(Debug)]
pub struct StreamingStats {
    current: Mutex<(Arc<StreamingSummary>, Instant)>,
    fixed: StreamingSummary,
    uses: Arc<ExpertUses>,
}

impl StreamingStats {
    pub(crate) fn new(
        files: &ExpertFiles,
        residency: &Residency,
        slot_bytes: usize,
        arena_slots: usize,
        options: &BankOptions,
    ) -> Self {
        let (mode, depth) = files.mode();
        let fixed = StreamingSummary {
            bank_eviction: residency.policy(),
            bank_slots: residency.slots(),
            arena_slots,
            slot_bytes,
            probed_bandwidth: options.probed_bandwidth,
            direct_pread: DirectPread { active: files.direct(), mode, depth, read_kib: slot_bytes >> 10 },
            ..StreamingSummary::default()
        };
        let current = Mutex::new((Arc::default(), Instant::now()));
        let stats = StreamingStats { current, fixed, uses: Arc::clone(&residency.uses) };
        stats.publish(true, files, residency, &Counters::new(files.layers()));
        stats
    }

    /// The latest snapshot.
    pub fn snapshot(&self) -> Arc<StreamingSummary> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// Counts by expert, always those of now.
    pub fn uses(&self) -> &Arc<ExpertUses> {
        &self.uses
    }

    /// Publishes a snapshot; without `now` only if the last one is old.
    pub(crate) fn publish(&self, now: bool, files: &ExpertFiles, residency: &Residency, counters: &Counters) {
        let age = self.current.lock().unwrap_or_else(PoisonError::into_inner).1.elapsed();
        if !now && age < EVERY {
            return;
        }
        let summary = Arc::new(self.summary(files, residency, counters));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = (summary, Instant::now());
    }

    fn summary(&self, files: &ExpertFiles, residency: &Residency, counters: &Counters) -> StreamingSummary {
        let reads = files.stats();
        let layers: Vec<LayerSummary> = residency
            .layers()
            .iter()
            .enumerate()
            .filter(|(layer, _)| files.stored(*layer).is_some())
            .map(|(layer, bank)| {
                let transient = counters.transient.get(layer).copied().unwrap_or_default();
                let stall = counters.stall.get(layer).copied().unwrap_or_default();
                let reads = counters.reads.get(layer).cloned().unwrap_or_default();
                let reads = ReadSummary::layer(&reads, self.fixed.direct_pread.depth);
                line(Some(layer), bank, transient, stall, reads)
            })
            .collect();
        let mut bank = LayerStats::default();
        let mut transient = Transient::default();
        for layer in residency.layers() {
            bank.resident += layer.resident;
            bank.hits += layer.hits;
            bank.misses += layer.misses;
            bank.evictions += layer.evictions;
        }
        for layer in &counters.transient {
            transient.hits += layer.hits;
            transient.misses += layer.misses;
        }
        let busy = reads.busy.as_secs_f64();
        StreamingSummary {
            total: line(None, &bank, transient, reads.stall, ReadSummary::total(reads)),
            background_reads: counters.background.0,
            background_failures: counters.background.1,
            busy_seconds: busy,
            achieved_bandwidth: (busy > 0.0).then(|| reads.bytes as f64 / busy),
            layers,
            ..self.fixed.clone()
        }
    }
}

fn line(
    layer: Option<usize>,
    bank: &LayerStats,
    transient: Transient,
    stall: Duration,
    reads: ReadSummary,
) -> LayerSummary {
    let asked = bank.hits + bank.misses;
    LayerSummary {
        layer,
        resident_slots: bank.resident,
        hits: bank.hits,
        misses: bank.misses,
        evictions: bank.evictions,
        hit_rate: (asked > 0).then(|| bank.hits as f64 / asked as f64),
        transient_hits: transient.hits,
        transient_reads: transient.misses,
        stall_seconds: stall.as_secs_f64(),
        reads,
    }
}
