//! L1: snapshots in memory. Pages that snapshots share are counted once.

use std::collections::HashMap;
use std::sync::Arc;

use crate::chain::{Chain, Hash};
use crate::image::Image;
use crate::index::{Index, Reach};
use crate::score::{Hits, value};
use crate::sessions::{SessionTurn, Sessions};
use crate::snapshot::Kind;
use crate::stats::MemoryStats;

/// A snapshot and what it is of.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) key: Hash,
    pub(crate) root: Hash,
    /// The tokens of the sequence; those of the snapshot come first.
    pub(crate) tokens: Arc<[u32]>,
    pub(crate) image: Arc<Image>,
    /// Where in a conversation it was taken.
    pub(crate) kind: Kind,
    /// The request that it was taken of.
    pub(crate) turn: Option<SessionTurn>,
}

impl Stored {
    /// The tokens of the snapshot.
    pub(crate) fn tokens(&self) -> &[u32] {
        self.tokens.get(..self.image.position()).unwrap_or_default()
    }
}

#[derive(Debug)]
struct Entry {
    stored: Stored,
    reach: Reach,
    hits: Hits,
    pages: Vec<(usize, usize)>,
}

/// Snapshots by key, with what is needed to choose which leaves.
#[derive(Debug)]
pub(crate) struct Memory {
    block: usize,
    max_bytes: usize,
    max_entries: usize,
    entries: HashMap<Hash, Entry>,
    index: Index,
    /// How many snapshots hold a page.
    pages: HashMap<usize, u32>,
    bytes: usize,
    evicted_for_bytes: u64,
    evicted_for_entries: u64,
    pub(crate) sessions: Sessions,
}

impl Memory {
    pub(crate) fn new(block: usize, max_bytes: usize, max_entries: usize) -> Self {
        Memory {
            block,
            max_bytes,
            max_entries,
            entries: HashMap::new(),
            index: Index::default(),
            pages: HashMap::new(),
            bytes: 0,
            evicted_for_bytes: 0,
            evicted_for_entries: 0,
            sessions: Sessions::default(),
        }
    }

    pub(crate) fn stats(&self) -> MemoryStats {
        MemoryStats {
            entries: self.entries.len(),
            anchors: self.entries.values().filter(|e| e.stored.kind.anchor()).count(),
            bytes: self.bytes,
            max_bytes: self.max_bytes,
            max_entries: self.max_entries,
            evicted_for_bytes: self.evicted_for_bytes,
            evicted_for_entries: self.evicted_for_entries,
        }
    }

    pub(crate) fn get(&self, key: &Hash) -> Option<&Stored> {
        self.entries.get(key).map(|entry| &entry.stored)
    }

    /// All snapshots.
    pub(crate) fn all(&self) -> Vec<Stored> {
        self.entries.values().map(|entry| entry.stored.clone()).collect()
    }

    /// The snapshot that reaches furthest into the prompt.
    pub(crate) fn longest(&self, chain: &Chain, prompt: &[u32]) -> Option<(Hash, usize)> {
        self.index.longest(chain, |key| {
            let entry = self.entries.get(key)?;
            entry.reach.furthest(entry.stored.tokens(), prompt)
        })
    }

    pub(crate) fn hit(&mut self, key: &Hash, now: u64) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.hits.hit(now);
        }
    }

    /// Pins a snapshot; false if it is not there.
    pub(crate) fn warm(&mut self, key: &Hash) -> bool {
        let entry = self.entries.get_mut(key);
        entry.map(|entry| entry.stored.kind = Kind::Warmed).is_some()
    }

    /// Takes a snapshot in and gives up what no longer fits, the least valuable first. Returns what was given up; the new
    /// one too if it is larger than everything.
    pub(crate) fn insert(&mut self, stored: Stored, chain: &Chain, now: u64) -> Vec<Stored> {
        if let Some(old) = self.entries.get_mut(&stored.key) {
            let kind = old.stored.kind.max(stored.kind);
            old.stored.kind = kind;
            old.stored.turn = stored.turn.or(old.stored.turn);
            old.hits.hit(now);
            let better = old.stored.image.logits.is_none() && stored.image.logits.is_some();
            if !better {
                return Vec::new();
            }
            self.remove(&stored.key);
            return self.insert(Stored { kind, ..stored }, chain, now);
        }
        let reach = Reach {
            end: stored.image.position(),
            cut: stored.image.can_be_cut(),
            logits: stored.image.logits.is_some(),
        };
        let pages = stored.image.pages();
        for &(page, bytes) in &pages {
            let holders = self.pages.entry(page).or_insert(0);
            self.bytes += if *holders == 0 { bytes } else { 0 };
            *holders += 1;
        }
        self.bytes += stored.image.own_bytes();
        self.index.insert(chain, &reach, stored.key);
        let key = stored.key;
        self.entries.insert(key, Entry { stored, reach, hits: Hits::new(now), pages });
        self.evict(key, now)
    }

    fn evict(&mut self, newest: Hash, now: u64) -> Vec<Stored> {
        let mut gone = Vec::new();
        while self.bytes > self.max_bytes || self.entries.len() > self.max_entries {
            let current = self.sessions.current();
            let anchor = |stored: &Stored| {
                let end = stored.kind > Kind::Stride && stored.turn.as_ref().is_some_and(&current);
                end || stored.kind.anchor()
            };
            let worth = |entry: &Entry| {
                value(entry.hits.at(now), entry.reach.end, self.freed_by(entry), anchor(&entry.stored))
            };
            let others = self.entries.iter().filter(|(key, _)| **key != newest);
            let least = others.min_by(|a, b| worth(a.1).total_cmp(&worth(b.1))).map(|(key, _)| *key);
            drop(current);
            if self.bytes > self.max_bytes {
                self.evicted_for_bytes += 1;
            } else {
                self.evicted_for_entries += 1;
            }
            let last = least.is_none();
            gone.extend(self.remove(&least.unwrap_or(newest)));
            if last {
                break;
            }
        }
        gone
    }

    /// Bytes that giving an entry up frees.
    fn freed_by(&self, entry: &Entry) -> usize {
        let alone = |page: &usize| self.pages.get(page).is_none_or(|&holders| holders <= 1);
        let pages: usize = entry.pages.iter().filter(|(page, _)| alone(page)).map(|(_, bytes)| bytes).sum();
        pages + entry.stored.image.own_bytes()
    }

    pub(crate) fn remove(&mut self, key: &Hash) -> Option<Stored> {
        let entry = self.entries.remove(key)?;
        let chain = Chain::new(&entry.stored.root, entry.stored.tokens(), self.block);
        self.index.remove(&chain, &entry.reach, key);
        for &(page, bytes) in &entry.pages {
            if let Some(holders) = self.pages.get_mut(&page) {
                *holders -= 1;
                if *holders == 0 {
                    self.pages.remove(&page);
                    self.bytes -= bytes;
                }
            }
        }
        self.bytes -= entry.stored.image.own_bytes();
        Some(entry.stored)
    }
}
