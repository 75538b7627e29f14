//! What the cache did and holds.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

/// Durations of the last restores, for percentiles.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recent(VecDeque<Duration>);

impl Recent {
    const MOST: usize = 1024;

    pub(crate) fn push(&mut self, took: Duration) {
        if self.0.len() == Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back(took);
    }

    pub(crate) fn summary(&self) -> Durations {
        let mut sorted: Vec<_> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let at = |share: f64| {
            let last = sorted.len().checked_sub(1)?;
            sorted.get((last as f64 * share).round() as usize).map(Duration::as_secs_f64)
        };
        Durations { count: sorted.len(), p50_seconds: at(0.5), p99_seconds: at(0.99) }
    }
}

/// Percentiles of recent durations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Durations {
    /// How many they are of.
    pub count: usize,
    /// Half took no longer.
    pub p50_seconds: Option<f64>,
    /// 99 of 100 took no longer.
    pub p99_seconds: Option<f64>,
}

/// Snapshots in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStats {
    /// Snapshots held.
    pub entries: usize,
    /// Of them warmed and system prefixes.
    pub anchors: usize,
    /// Bytes, shared pages counted once.
    pub bytes: usize,
    /// Most bytes.
    pub max_bytes: usize,
    /// Most snapshots.
    pub max_entries: usize,
    /// Given up for lack of bytes.
    pub evicted_for_bytes: u64,
    /// Given up for lack of entries.
    pub evicted_for_entries: u64,
}

/// Snapshots on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DiskStats {
    /// Directory that was configured.
    pub directory: String,
    /// Whether anything can be saved there.
    pub writable: bool,
    /// Segment files of this model.
    pub files: usize,
    /// Bytes of those files.
    pub bytes: u64,
    /// Most bytes of those files.
    pub budget_bytes: u64,
    /// Bytes of segments of other models and builds in the same directory, at the start. They count for no budget.
    pub other_namespaces_bytes: u64,
    /// Segments saved.
    pub saved: u64,
    /// Bytes saved.
    pub saved_bytes: u64,
    /// Saves that failed (disk full, read-only, gone).
    pub save_failures: u64,
    /// Saves that wait.
    pub pending: usize,
    /// Saves given up because too many waited.
    pub dropped: u64,
    /// Damaged files that were set aside.
    pub quarantined: u64,
    /// Segments deleted to stay within the budget.
    pub evicted_for_budget: u64,
}

/// What the cache did and holds, in memory and on disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PrefixStats {
    /// Prompts looked up.
    pub lookups: u64,
    /// Less than a block was left to compute.
    pub hits: u64,
    /// A part was reused.
    pub partial_hits: u64,
    /// Nothing was reused.
    pub misses: u64,
    /// Reused from memory.
    pub l1_hits: u64,
    /// Reused from disk.
    pub l2_hits: u64,
    /// Prompt tokens that were not computed again.
    pub tokens_saved: u64,
    /// Time that lookups took, restoring aside.
    pub lookup: Durations,
    /// Time that restores from memory took.
    pub l1_restore: Durations,
    /// Time that restores from disk took.
    pub l2_restore: Durations,
    /// In memory.
    pub l1: MemoryStats,
    /// On disk, if there is a directory.
    pub l2: Option<DiskStats>,
    /// Answers whose exact tokens are remembered; none if they are not.
    pub remembered_turns: Option<usize>,
}
