//! Experts that are likely to be wanted, read into empty slots of the bank while the drive has nothing better to do.
//!
//! Nothing is evicted for them, nothing waits for them. One that the pass asks for while it is on its way becomes a read of
//! the pass. They are compared with their checksums when they are first used, by the threads that would compute
//! anyway; one that cannot be read or is damaged is forgotten, and read again as any other when it is needed.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::eviction::ExpertKey;

/// Reads in flight: few, because a read of the pass may have to wait for them.
pub(crate) const IN_FLIGHT: usize = 4;

/// What is wanted and what is under way.
#[derive(Debug, Default)]
pub(crate) struct Background {
    wanted: VecDeque<ExpertKey>,
    /// On their way; true for those that the pass waits for by now.
    coming: HashMap<ExpertKey, bool>,
    /// Arrived and not yet compared with their checksums.
    unchecked: HashSet<ExpertKey>,
    /// Prompts are read; the drive is theirs.
    paused: bool,
    /// Experts that arrived.
    pub(crate) reads: u64,
    /// Experts that could not be read, or were damaged.
    pub(crate) failures: u64,
}

impl Background {
    /// Whether anything is left to be read.
    pub(crate) fn idle(&self) -> bool {
        self.paused || self.wanted.is_empty()
    }

    /// What is to be read, in this order, in the place of what was.
    pub(crate) fn want(&mut self, wanted: VecDeque<ExpertKey>) {
        self.wanted = wanted;
    }

    /// The next to be read.
    pub(crate) fn next_wanted(&mut self) -> Option<ExpertKey> {
        self.wanted.pop_front()
    }

    /// A read was ordered.
    pub(crate) fn started(&mut self, key: ExpertKey) {
        self.coming.insert(key, false);
    }

    /// Reads under way.
    pub(crate) fn under_way(&self) -> usize {
        self.coming.len()
    }

    /// Experts that are still to be brought, those on their way included.
    pub(crate) fn left(&self) -> usize {
        self.wanted.len() + self.coming.len()
    }

    /// Holds back reads while prompts are computed.
    pub(crate) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// The pass needs an expert. True if it is on its way, and is the pass's from now on.
    pub(crate) fn claim(&mut self, key: ExpertKey) -> bool {
        self.coming.get_mut(&key).map(|claimed| *claimed = true).is_some()
    }

    /// Whether an expert is on its way.
    pub(crate) fn is_coming(&self, key: ExpertKey) -> bool {
        self.coming.contains_key(&key)
    }

    /// An expert was brought into the bank by other means.
    pub(crate) fn replaced(&mut self, key: ExpertKey) {
        self.unchecked.remove(&key);
    }

    /// Whether a resident expert must be compared with its checksum before it is used.
    pub(crate) fn unchecked(&self, key: ExpertKey) -> bool {
        self.unchecked.contains(&key)
    }

    /// An expert has been compared with its checksum. True if it was read by this.
    pub(crate) fn checked(&mut self, key: ExpertKey, good: bool) -> bool {
        let mine = self.unchecked.remove(&key);
        if mine && !good {
            self.reads -= 1;
            self.failures += 1;
        }
        mine
    }

    /// A read of the bank has ended. `None` if it is none of these; else whether the pass waits for it.
    pub(crate) fn landed(&mut self, key: ExpertKey, good: bool) -> Option<bool> {
        let claimed = self.coming.remove(&key)?;
        if good {
            self.reads += 1;
            self.unchecked.insert(key);
        } else {
            self.failures += 1;
        }
        Some(claimed)
    }
}
