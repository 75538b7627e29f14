//! What the slots of the arena hold: experts for one layer of one pass. Bookkeeping without memory.

use crate::eviction::ExpertKey;

/// What a slot of the arena is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Free,
    /// Being read.
    Coming(ExpertKey),
    /// Being read, but nobody wants it any more.
    Stale(ExpertKey),
    /// Read ahead of its layer.
    Here(ExpertKey),
    /// Wanted by the layer that computes now.
    Taken(ExpertKey),
    /// Its memory was given up after a failure.
    Lost,
}

/// The transient arena: what multi-row passes read without touching the bank.
#[derive(Debug)]
pub(crate) struct Arena {
    uses: Vec<Use>,
}

impl Arena {
    pub(crate) fn new(slots: usize) -> Self {
        Arena { uses: vec![Use::Free; slots] }
    }

    /// Takes a free slot for reading an expert.
    pub(crate) fn start(&mut self, key: ExpertKey) -> Option<usize> {
        let index = self.uses.iter().position(|u| *u == Use::Free)?;
        self.set(index, Use::Coming(key));
        Some(index)
    }

    /// Takes a slot from an expert that was read ahead; returns it and the expert that it held.
    pub(crate) fn reclaim(&mut self, key: ExpertKey) -> Option<(usize, ExpertKey)> {
        let ahead = |(index, u): (usize, &Use)| match *u {
            Use::Here(held) => Some((index, held)),
            _ => None,
        };
        let (index, held) = self.uses.iter().enumerate().find_map(ahead)?;
        self.set(index, Use::Coming(key));
        Some((index, held))
    }

    /// What an expert's slot is for, if it has one.
    pub(crate) fn find(&self, key: ExpertKey) -> Option<(usize, Use)> {
        let mine = |u: &Use| matches!(*u, Use::Coming(k) | Use::Here(k) | Use::Taken(k) if k == key);
        let index = self.uses.iter().position(mine)?;
        Some((index, *self.uses.get(index)?))
    }

    pub(crate) fn usage(&self, index: usize) -> Use {
        self.uses.get(index).copied().unwrap_or(Use::Lost)
    }

    pub(crate) fn set(&mut self, index: usize, usage: Use) {
        if let Some(u) = self.uses.get_mut(index) {
            *u = usage;
        }
    }

    /// Forgets what was read ahead and is not `wanted`.
    pub(crate) fn forget(&mut self, wanted: impl Fn(ExpertKey) -> bool) {
        for usage in &mut self.uses {
            match *usage {
                Use::Here(key) | Use::Taken(key) if !wanted(key) => *usage = Use::Free,
                Use::Coming(key) if !wanted(key) => *usage = Use::Stale(key),
                _ => {}
            }
        }
    }
}
