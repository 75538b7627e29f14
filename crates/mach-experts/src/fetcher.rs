//! Memory of bank and arena, and the reads that fill it. What goes where is decided elsewhere ([`Traffic`](crate::traffic)).

use std::time::Duration;

use mach_io::{ReadStats, Slot};

use crate::eviction::ExpertKey;
use crate::fetch::{Arrival, ExpertFiles};
use crate::record::RecordLayout;
use crate::sidecar::SidecarError;
use crate::streaming::Checksums;
use crate::traffic::{Home, Order};

/// Tags of reads into the arena; those into the bank are slot numbers.
const ARENA: u64 = 1 << 32;

/// A read that has ended; its memory is in its place again.
pub(crate) struct Landed {
    pub(crate) home: Home,
    pub(crate) bytes: usize,
    pub(crate) took: Duration,
    /// Whether the memory had to be given up.
    pub(crate) lost: bool,
    pub(crate) result: Result<(), SidecarError>,
}

/// Files, and the memory that they are read into.
#[derive(Debug)]
pub(crate) struct Fetcher {
    pub(crate) files: ExpertFiles,
    /// How the records of each layer are wanted.
    records: Vec<Option<RecordLayout>>,
    /// `None` while the drive writes to a slot, or after it was given up.
    bank: Vec<Option<Slot>>,
    arena: Vec<Option<Slot>>,
    /// For records that must be put into another order.
    scratch: Vec<u8>,
}

impl Fetcher {
    pub(crate) fn new(
        files: ExpertFiles,
        records: Vec<Option<RecordLayout>>,
        bank: Vec<Slot>,
        arena: Vec<Slot>,
    ) -> Self {
        let slots = |slots: Vec<Slot>| slots.into_iter().map(Some).collect();
        Fetcher { files, records, bank: slots(bank), arena: slots(arena), scratch: Vec::new() }
    }

    pub(crate) fn record(&self, layer: usize) -> Option<&RecordLayout> {
        self.records.get(layer)?.as_ref()
    }

    fn place(&mut self, home: Home) -> Option<&mut Option<Slot>> {
        match home {
            Home::Bank(index) => self.bank.get_mut(index),
            Home::Arena(index) => self.arena.get_mut(index),
        }
    }

    /// The memory of a slot that no read writes to.
    pub(crate) fn slot(&self, home: Home) -> Option<&Slot> {
        match home {
            Home::Bank(index) => self.bank.get(index)?.as_ref(),
            Home::Arena(index) => self.arena.get(index)?.as_ref(),
        }
    }

    /// Submits reads; their memory is the drive's until they end.
    pub(crate) fn submit(&mut self, orders: Vec<Order>) {
        let mut reads = Vec::with_capacity(orders.len());
        for Order { key, home } in orders {
            let tag = match home {
                Home::Bank(index) => index as u64,
                Home::Arena(index) => ARENA | index as u64,
            };
            reads.extend(self.place(home).and_then(Option::take).map(|slot| (key, slot, tag)));
        }
        if !reads.is_empty() {
            self.files.submit(reads);
        }
    }

    /// The next read that ended; `None` if there is none, or, with `wait`, if none is under way.
    pub(crate) fn next(&mut self, wait: bool) -> Option<Landed> {
        let Arrival { tag, bytes, took, slot, result } = self.files.next(wait)?;
        let index = (tag & !ARENA) as usize;
        let home = if tag & ARENA == 0 { Home::Bank(index) } else { Home::Arena(index) };
        let lost = slot.is_none();
        if let Some(place) = self.place(home) {
            *place = slot;
        }
        Some(Landed { home, bytes, took, lost, result })
    }

    /// Exchanges the memory of two slots of the same size.
    pub(crate) fn swap(&mut self, a: Home, b: Home) {
        let first = self.place(a).and_then(Option::take);
        let second = self.place(b).map(|place| std::mem::replace(place, first));
        if let (Some(place), Some(second)) = (self.place(a), second) {
            *place = second;
        }
    }

    /// Compares experts with their checksums. Those that nothing is known of are left out.
    pub(crate) fn compare(
        &self,
        experts: &[(ExpertKey, Home)],
        sums: Checksums<'_>,
    ) -> Vec<(ExpertKey, bool)> {
        let (mut records, mut expected) = (Vec::new(), Vec::new());
        for &(key, home) in experts {
            if let (Some((len, sum)), Some(slot)) = (self.files.expected(key), self.slot(home)) {
                records.push(slot.get(..len).unwrap_or_default());
                expected.push((key, sum));
            }
        }
        let found = sums(&records);
        expected.into_iter().zip(found).map(|((key, sum), found)| (key, sum == found)).collect()
    }

    /// Puts a record that has been read into the order that is wanted.
    pub(crate) fn reorder(&mut self, key: ExpertKey, home: Home) {
        let (Some(stored), Some(record)) = (self.files.stored(key.layer), self.record(key.layer)) else {
            return;
        };
        if stored == *record {
            return;
        }
        let record = *record;
        let mut scratch = std::mem::take(&mut self.scratch);
        if let Some(slot) = self.place(home).and_then(Option::as_mut) {
            scratch.clear();
            scratch.extend_from_slice(slot);
            record.repack(&stored, &scratch, slot);
        }
        self.scratch = scratch;
    }

    pub(crate) fn stats(&self) -> &ReadStats {
        self.files.stats()
    }

    /// Bytes of bank and arena on huge pages.
    pub(crate) fn huge_bytes(&self) -> Option<usize> {
        let parts = [self.bank.iter().flatten().next(), self.arena.iter().flatten().next()];
        parts.into_iter().flatten().map(|slot| slot.region().huge_bytes()).sum()
    }

    pub(crate) fn arena_slots(&self) -> usize {
        self.arena.len()
    }
}
