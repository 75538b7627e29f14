//! Experts that are likely to be wanted, read into empty slots of the bank while the drive has nothing better to do.
//!
//! Nothing is evicted for them, nothing waits for them. One that the pass asks for while it is on its way becomes a read of
//! the pass. They are compared with their checksums when they are first used, by the threads that would compute
//! anyway; one that cannot be read or is damaged is forgotten, and read again as any other when it is needed.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::eviction::ExpertKey;
use crate::heat::HotExperts;
use crate::residency::Reserved;
use crate::streaming::StreamingBank;

/// Reads in flight: few, because a read of the pass may have to wait for them.
const IN_FLIGHT: usize = 4;

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

    /// Holds back reads while prompts are computed.
    pub(crate) fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// The pass needs an expert. True if it is on its way, and is the pass's from now on.
    pub(crate) fn claim(&mut self, key: ExpertKey) -> bool {
        self.coming.get_mut(&key).map(|claimed| *claimed = true).is_some()
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

impl StreamingBank {
    /// Has experts read into empty slots when the drive has nothing else to do, the hottest of all layers first. Replaces what
    /// was wanted before.
    pub fn bring(&mut self, hot: &HotExperts) {
        let longest = hot.layers.iter().map(Vec::len).max().unwrap_or(0);
        let experts = self.experts();
        let keys = (0..longest).flat_map(|rank| {
            let at = move |(layer, list): (usize, &Vec<u16>)| {
                let expert = usize::from(*list.get(rank)?);
                (expert < experts).then_some(ExpertKey { layer, expert })
            };
            hot.layers.iter().enumerate().filter_map(at)
        });
        let wanted = keys.filter(|key| self.record(key.layer).is_some()).take(self.slots()).collect();
        self.background.wanted = wanted;
    }

    /// Experts that are still to be brought, those on their way included.
    pub fn to_bring(&self) -> usize {
        self.background.wanted.len() + self.background.coming.len()
    }

    /// Submits some of them, if the pass waits for nothing.
    pub(crate) fn refill_background(&mut self) {
        let mut reads = Vec::new();
        while self.background.coming.len() < IN_FLIGHT {
            let Some(key) = self.background.wanted.pop_front() else { break };
            if self.in_arena(key) {
                continue;
            }
            match self.residency.reserve(key) {
                Reserved::Slot(index) => {
                    let Some(read) = self.read_into(key, index) else { continue };
                    self.background.coming.insert(key, false);
                    reads.push(read);
                }
                Reserved::Known => {}
                // What has filled the bank since is worth more.
                Reserved::Full => self.background.wanted.clear(),
            }
        }
        if !reads.is_empty() {
            self.submit(reads);
        }
    }
}
