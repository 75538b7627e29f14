//! Slots that hold experts for one layer of one pass.

use mach_io::Slot;

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
}

/// The transient arena: what multi-row passes read without touching the bank.
#[derive(Debug)]
pub(crate) struct Arena {
    slots: Vec<Option<Slot>>,
    uses: Vec<Use>,
}

impl Arena {
    pub(crate) fn new(slots: Vec<Slot>) -> Self {
        Arena { uses: vec![Use::Free; slots.len()], slots: slots.into_iter().map(Some).collect() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Takes the memory of a free slot for reading an expert.
    pub(crate) fn start(&mut self, key: ExpertKey) -> Option<(usize, Slot)> {
        let found = self.uses.iter().zip(&self.slots).position(|(u, s)| *u == Use::Free && s.is_some());
        let index = found?;
        let slot = self.slots.get_mut(index)?.take()?;
        self.set(index, Use::Coming(key));
        Some((index, slot))
    }

    /// What an expert's slot is for, if it has one.
    pub(crate) fn find(&self, key: ExpertKey) -> Option<(usize, Use)> {
        let mine = |u: &Use| matches!(*u, Use::Coming(k) | Use::Here(k) | Use::Taken(k) if k == key);
        let index = self.uses.iter().position(mine)?;
        Some((index, *self.uses.get(index)?))
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Slot> {
        self.slots.get(index)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, index: usize) -> Option<&mut Slot> {
        self.slots.get_mut(index)?.as_mut()
    }

    pub(crate) fn usage(&self, index: usize) -> Use {
        self.uses.get(index).copied().unwrap_or(Use::Free)
    }

    pub(crate) fn set(&mut self, index: usize, usage: Use) {
        if let Some(u) = self.uses.get_mut(index) {
            *u = usage;
        }
    }

    /// Memory that a read has given back; `None` if it is given up.
    pub(crate) fn put(&mut self, index: usize, slot: Option<Slot>) {
        if let Some(place) = self.slots.get_mut(index) {
            *place = slot;
        }
    }

    /// Exchanges the memory of a slot for other memory of the same size.
    pub(crate) fn swap(&mut self, index: usize, other: &mut Option<Slot>) {
        if let Some(place) = self.slots.get_mut(index) {
            std::mem::swap(place, other);
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
