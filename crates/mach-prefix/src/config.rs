//! Settings.

use std::path::PathBuf;
use std::time::Duration;

use crate::chain::Hash;

/// Sizes, places and rules of a cache.
#[derive(Debug, Clone)]
pub struct PrefixConfig {
    /// Everything that decides what a state means beside its tokens.
    pub namespace: Hash,
    /// Tokens of a block: prefixes are found by the hashes at block edges.
    pub block: usize,
    /// Tokens between snapshots in the middle of something long.
    pub stride: usize,
    /// Most bytes in memory.
    pub max_bytes: usize,
    /// Most snapshots in memory.
    pub max_entries: usize,
    /// Where segments are saved, if at all.
    pub directory: Option<PathBuf>,
    /// Whether the directory waits for [`PrefixCache::open_disk`](crate::PrefixCache::open_disk), because it is not known yet
    /// whose segments may be used.
    pub disk_later: bool,
    /// Most bytes there that are this namespace's.
    pub disk_budget: u64,
    /// Whether a restore brings back the experts that the prefix used most, where they are streamed.
    pub bring_experts: bool,
    /// Whether the tokens of answers are remembered and take the place of those that a message's text has. It saves computing an
    /// answer again whose text is written in other tokens, and makes a prompt depend on what was answered before.
    pub remember_turns: bool,
    /// How long the stop may wait for saves.
    pub close_timeout: Duration,
}

/// Part of the memory of prefixes that those may take beside it which wait to be saved.
const SAVING_PART: usize = 8;

impl PrefixConfig {
    /// Most bytes of snapshots that wait to be saved, one aside.
    pub fn saving_bytes(&self) -> usize {
        if self.directory.is_some() { self.max_bytes / SAVING_PART } else { 0 }
    }
}

impl Default for PrefixConfig {
    fn default() -> Self {
        Self {
            namespace: [0; 32],
            block: 256,
            stride: 2048,
            max_bytes: 1 << 30,
            max_entries: 4096,
            directory: None,
            disk_later: false,
            disk_budget: 16 << 30,
            bring_experts: true,
            remember_turns: false,
            close_timeout: Duration::from_secs(10),
        }
    }
}
