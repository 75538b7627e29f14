//! What goes into the cache and comes out of it.

use std::sync::Arc;

use serde::Serialize;

use crate::chain::Hash;
use crate::image::Image;

/// Where in a conversation a snapshot was taken; later ones are dearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// In the middle of something long.
    Stride,
    /// Between messages.
    Boundary,
    /// At the end of a prompt.
    PromptEnd,
    /// At the end of an answer.
    TurnEnd,
    /// After the instructions and tools that conversations share.
    System,
    /// Asked for.
    Warmed,
}

impl Kind {
    /// Whether it is to stay while others go.
    pub fn anchor(self) -> bool {
        self >= Kind::System
    }

    /// Whether it is worth saving when it is pushed out of memory.
    pub(crate) fn outlives_memory(self) -> bool {
        self >= Kind::PromptEnd
    }
}

/// A snapshot to be kept.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// From [`PrefixCache::root`](crate::PrefixCache::root).
    pub root: Hash,
    /// Tokens of the sequence; those of the image come first.
    pub tokens: Arc<[u32]>,
    /// What was kept.
    pub image: Image,
    /// Where it was taken.
    pub kind: Kind,
}

/// Where a snapshot came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// In memory.
    L1,
    /// On disk.
    L2,
}

/// The beginning of a prompt, brought back.
#[derive(Debug)]
pub struct Restored {
    /// State after the beginning.
    pub image: Image,
    /// Where it came from.
    pub level: Level,
    /// The snapshot's key.
    pub key: Hash,
}

/// A prefix that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WarmedPrefix {
    /// Key of the snapshot, in hexadecimal.
    pub key: String,
    /// Where its hashes begin: the namespace and the salt. Not shown.
    #[serde(skip)]
    pub root: Hash,
    /// Tokens of the prefix.
    pub tokens: usize,
    /// Bytes in memory and on disk, whichever is more; in memory shared pages count in full.
    pub bytes: u64,
    /// Where it is.
    pub levels: Vec<Level>,
}
