//! Memory cut into equal pieces that move by value.
//!
//! A read that the kernel completes later must own its destination: a borrow could end (or be forgotten) while the
//! kernel still writes. So a [`Slot`] is handed to the reader and comes back with the completion, like a `Box<[u8]>` whose
//! pieces happen to lie side by side in one allocation.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::HugeBuf;

/// The allocation that slots are cut from, kept alive by each of them.
#[derive(Clone)]
pub struct SlotRegion {
    memory: Arc<HugeBuf>,
    base: *mut u8,
    len: usize,
    slot_len: usize,
}

// SAFETY: a region hands out no access to its bytes; it only knows where they are.
unsafe impl Send for SlotRegion {}
// SAFETY: as above.
unsafe impl Sync for SlotRegion {}

/// Exclusive ownership of one piece of a [`SlotRegion`].
pub struct Slot {
    region: SlotRegion,
    data: *mut u8,
}

// SAFETY: a slot is the only way to its bytes, like a Box<[u8]>.
unsafe impl Send for Slot {}
// SAFETY: shared access is read-only.
unsafe impl Sync for Slot {}

impl HugeBuf {
    /// Cuts the memory into slots of `slot_len` bytes; what remains at the end is unused.
    pub fn into_slots(mut self, slot_len: usize) -> Vec<Slot> {
        let count = self.len().checked_div(slot_len).unwrap_or(0);
        let (base, len) = (self.as_mut_ptr(), count * slot_len);
        // From here on nothing borrows the HugeBuf's bytes: the Arc only keeps the mapping alive.
        let region = SlotRegion { memory: Arc::new(self), base, len, slot_len };
        (0..count)
            .map(|i| {
                // SAFETY: i * slot_len < len, inside the mapping.
                let data = unsafe { base.add(i * slot_len) };
                Slot { region: region.clone(), data }
            })
            .collect()
    }
}

impl SlotRegion {
    /// First byte and length, for registering with the kernel.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn span(&self) -> (*mut u8, usize) {
        (self.base, self.len)
    }

    /// Bytes in all slots together.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no slots.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of a slot.
    pub fn slot_len(&self) -> usize {
        self.slot_len
    }

    /// Makes the system provide all pages now instead of at their first use, in small steps, while others use the memory;
    /// ends early when `stop` is set.
    pub fn populate(&self, stop: &std::sync::atomic::AtomicBool) {
        const STEP: usize = 16 << 20;
        for from in (0..self.len).step_by(STEP) {
            if stop.load(std::sync::atomic::Ordering::Relaxed)
                || !self.memory.populate(from, STEP.min(self.len - from))
            {
                return;
            }
        }
    }

    /// Bytes that the kernel backs with huge pages right now; `None` where it does not tell.
    pub fn huge_bytes(&self) -> Option<usize> {
        self.memory.huge_bytes()
    }
}

impl Slot {
    /// The allocation that this slot is a piece of.
    pub fn region(&self) -> &SlotRegion {
        &self.region
    }

    /// Address of the first byte, for the kernel to write to while a read owns the slot.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn address(&mut self) -> *mut u8 {
        self.data
    }
}

impl Deref for Slot {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the piece is mapped while the region lives, initialised by the kernel with zeros, and no other slot
        // overlaps it.
        unsafe { std::slice::from_raw_parts(self.data, self.region.slot_len) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.region.slot_len) }
    }
}

impl fmt::Debug for SlotRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotRegion").field("len", &self.len).field("slot_len", &self.slot_len).finish()
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("address", &self.data).field("len", &self.region.slot_len).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_disjoint_and_outlive_each_other() {
        let mut slots = HugeBuf::zeroed(3 * 4096 + 5).unwrap().into_slots(4096);
        assert_eq!(slots.len(), 3);
        for (i, slot) in slots.iter_mut().enumerate() {
            slot.fill(i as u8 + 1);
        }
        let last = slots.pop().unwrap();
        drop(slots);
        assert!(last.iter().all(|&b| b == 3));
        assert!(HugeBuf::zeroed(100).unwrap().into_slots(0).is_empty());
    }
}
