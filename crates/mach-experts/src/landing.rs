//! Reads on their way: submitted, landed, compared with their checksums, put into the order that is wanted.

use mach_io::Slot;

use crate::arena::Use;
use crate::eviction::ExpertKey;
use crate::fetch::Arrival;
use crate::streaming::{ARENA, Checksums, StreamingBank, StreamingError};

impl StreamingBank {
    /// Submits reads into the free slots of the arena: what this layer needs, then what the next one will.
    pub(crate) fn refill(&mut self) {
        let mut reads = Vec::new();
        loop {
            let (key, wanted) = match self.pass.todo.front() {
                Some(&expert) => (ExpertKey { layer: self.pass.layer, expert }, true),
                None => match self.ahead.front() {
                    Some(&key) => (key, false),
                    None => break,
                },
            };
            if !wanted && (self.residency.resident(key).is_some() || self.arena.find(key).is_some()) {
                self.ahead.pop_front();
                continue;
            }
            let Some((index, slot)) = self.arena.start(key) else { break };
            if wanted {
                self.pass.todo.pop_front();
                self.pass.outstanding += 1;
            } else {
                self.ahead.pop_front();
            }
            reads.push((key, slot, ARENA | index as u64));
        }
        self.submit(reads);
        if self.pass.outstanding == 0 && self.ahead.is_empty() && !self.background.idle() {
            self.refill_background();
        }
    }

    pub(crate) fn submit(&mut self, reads: Vec<(ExpertKey, Slot, u64)>) {
        if !reads.is_empty() {
            for (key, ..) in &reads {
                self.counters.submitted(key.layer);
            }
            self.files.submit(reads);
        }
    }

    /// The read that brings an expert into a slot of the bank, whose memory it takes.
    pub(crate) fn read_into(&mut self, key: ExpertKey, index: usize) -> Option<(ExpertKey, Slot, u64)> {
        let slot = self.slots.get_mut(index)?.take()?;
        *self.coming.get_mut(index)? = Some(key);
        Some((key, slot, index as u64))
    }

    pub(crate) fn in_arena(&self, key: ExpertKey) -> bool {
        self.arena.find(key).is_some()
    }

    pub(crate) fn experts(&self) -> usize {
        self.files.experts()
    }

    /// Puts what a read brought into its place.
    pub(crate) fn land(&mut self, arrival: Arrival) -> Result<(), StreamingError> {
        let Arrival { tag, bytes, took, slot, result } = arrival;
        let index = (tag & !ARENA) as usize;
        let bank = tag & ARENA == 0;
        let key = if bank {
            self.coming.get_mut(index).and_then(Option::take)
        } else {
            match self.arena.usage(index) {
                Use::Coming(key) => Some(key),
                _ => None,
            }
        };
        let lost = slot.is_none();
        let good = result.is_ok();
        if let Some(key) = key {
            self.counters.arrived(key.layer, good.then_some((bytes, took)));
        }
        if bank {
            if let Some(place) = self.slots.get_mut(index) {
                *place = slot;
            }
            if good { self.residency.landed(index) } else { self.residency.failed(index, lost) }
        } else {
            self.arena.put(index, slot);
            let mine = |k: &ExpertKey| self.pass.outstanding > 0 && k.layer == self.pass.layer;
            self.arena.set(
                index,
                match key {
                    Some(key) if good && mine(&key) => Use::Taken(key),
                    Some(key) if good => Use::Here(key),
                    _ => Use::Free,
                },
            );
        }
        let unasked = key.filter(|_| bank).and_then(|key| Some((key, self.background.landed(key, good)?)));
        if let Some((key, claimed)) = unasked {
            if claimed && key.layer == self.pass.layer && self.pass.outstanding > 0 {
                self.pass.outstanding -= 1;
                match good {
                    true => self.pass.landed.push(key.expert),
                    // The pass reads it itself.
                    false => self.pass.todo.push_back(key.expert),
                }
            }
            return Ok(());
        }
        // What was read ahead and failed is read again when it is needed.
        let Some(key) = key.filter(|k| k.layer == self.pass.layer && self.pass.outstanding > 0) else {
            return Ok(());
        };
        self.pass.outstanding -= 1;
        if good {
            self.pass.landed.push(key.expert);
        }
        result.map_err(|source| StreamingError::Expert { layer: key.layer, expert: key.expert, source })
    }

    /// Compares what has landed with its checksums and puts it into the order that is wanted.
    pub(crate) fn settle(&mut self, sums: Checksums<'_>) -> Result<(), StreamingError> {
        if self.pass.landed.is_empty() {
            return Ok(());
        }
        let (layer, mut landed) = (self.pass.layer, std::mem::take(&mut self.pass.landed));
        let keys = landed.iter().map(|&expert| ExpertKey { layer, expert });
        let (mut records, mut expected) = (Vec::new(), Vec::new());
        for key in keys.clone() {
            if let (Some((len, sum)), Some(slot)) = (self.files.expected(key), self.slot(key)) {
                records.push(slot.get(..len).unwrap_or_default());
                expected.push((key, sum));
            }
        }
        let found = sums(&records);
        drop(records);
        let matches = expected.iter().zip(&found).map(|((key, sum), found)| (*key, sum == found));
        for (key, good) in matches.collect::<Vec<_>>() {
            // What was read before it was asked for and is damaged is read again.
            if self.background.checked(key, good) && !good {
                self.residency.discard(key);
                landed.retain(|&expert| expert != key.expert);
                self.pass.todo.push_back(key.expert);
            }
        }
        let keys = landed.iter().map(|&expert| ExpertKey { layer, expert });
        // Files without checksums have nothing to compare.
        keys.clone().for_each(|key| self.background.replaced(key));
        let asked = |key: &ExpertKey| landed.contains(&key.expert);
        let bad = expected.into_iter().zip(found).find(|((key, sum), found)| sum != found && asked(key));
        if let Some(((key, _), _)) = bad {
            // Nothing of this batch is trusted: all of it is read again when it is needed again.
            for key in keys {
                self.residency.discard(key);
                if let Some((index, _)) = self.arena.find(key) {
                    self.arena.set(index, Use::Free);
                }
            }
            let source = self.files.damaged(key);
            return Err(StreamingError::Expert { layer, expert: key.expert, source });
        }
        for key in keys {
            self.reorder(key);
            self.pass.ready.push_back(key.expert);
        }
        Ok(())
    }

    /// Puts a record that has been read into the order that is wanted.
    fn reorder(&mut self, key: ExpertKey) {
        let (Some(stored), Some(record)) = (self.files.stored(key.layer), self.record(key.layer).copied())
        else {
            return;
        };
        if stored == record {
            return;
        }
        let slot = match self.residency.resident(key) {
            Some(slot) => self.slots.get_mut(slot).and_then(Option::as_mut),
            None => self.arena.find(key).and_then(|(index, _)| self.arena.get_mut(index)),
        };
        if let Some(slot) = slot {
            self.scratch.clear();
            self.scratch.extend_from_slice(slot);
            record.repack(&stored, &self.scratch, slot);
        }
    }
}
