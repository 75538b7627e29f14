//! Which expert is in which slot: bookkeeping without memory.

use std::collections::HashMap;
use std::sync::Arc;

use crate::eviction::{Eviction, ExpertKey};
use crate::uses::{ExpertUses, Use};

/// Why experts cannot be brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the expert bank is full: {wanted} slots are needed, {free} of {slots} can be given")]
pub struct BankFull {
    /// Slots that the request needs beyond those it hits.
    pub wanted: usize,
    /// Slots that are empty or hold experts that are not in use.
    pub free: usize,
    /// Slots in all.
    pub slots: usize,
}

/// Where a requested expert is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// There, in this slot.
    Hit(usize),
    /// On its way since an earlier request.
    Coming(usize),
    /// To be read into this slot, which is now its own.
    Miss(usize),
}

/// What [`Residency::reserve`] has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// An empty slot, which is now the expert's own.
    Slot(usize),
    /// The expert is there or on its way.
    Known,
    /// No slot is empty.
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Loading(ExpertKey),
    Resident(ExpertKey),
    /// Given up after a failure.
    Lost,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    state: State,
    /// Requests that have not released it.
    pins: u32,
    last_used: u64,
}

/// Counts of one layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerStats {
    /// Experts of the layer that are resident now.
    pub resident: usize,
    /// Requests met from the bank.
    pub hits: u64,
    /// Requests that had to read.
    pub misses: u64,
    /// Experts of the layer that made room.
    pub evictions: u64,
}

/// The map between experts and slots. A slot never holds two experts, an expert is never in two slots, a pinned expert
/// is never evicted.
#[derive(Debug)]
pub struct Residency {
    entries: Vec<Entry>,
    map: HashMap<ExpertKey, usize>,
    policy: Box<dyn Eviction>,
    clock: u64,
    layers: Vec<LayerStats>,
    /// The same by expert.
    pub(crate) uses: Arc<ExpertUses>,
}

impl Residency {
    /// `slots` empty slots for a model of so many layers.
    pub fn new(slots: usize, layers: usize, policy: Box<dyn Eviction>) -> Self {
        Residency {
            entries: vec![Entry { state: State::Empty, pins: 0, last_used: 0 }; slots],
            map: HashMap::with_capacity(slots),
            policy,
            clock: 0,
            layers: vec![LayerStats::default(); layers],
            uses: Arc::default(),
        }
    }

    /// Counts by expert as well.
    pub fn counted(self, uses: Arc<ExpertUses>) -> Self {
        Residency { uses, ..self }
    }

    /// Slots, whatever they hold.
    pub fn slots(&self) -> usize {
        self.entries.len()
    }

    /// Name of the policy.
    pub fn policy(&self) -> &'static str {
        self.policy.name()
    }

    /// Counts by layer.
    pub fn layers(&self) -> &[LayerStats] {
        &self.layers
    }

    /// The slot of an expert that is there.
    pub fn resident(&self, key: ExpertKey) -> Option<usize> {
        let slot = *self.map.get(&key)?;
        matches!(self.entries.get(slot)?.state, State::Resident(_)).then_some(slot)
    }

    fn stats(&mut self, layer: usize, change: impl FnOnce(&mut LayerStats)) {
        if let Some(stats) = self.layers.get_mut(layer) {
            change(stats);
        }
    }

    /// An expert is resident from now on.
    fn came(&mut self, key: ExpertKey) {
        self.stats(key.layer, |s| s.resident += 1);
        self.uses.resident(key, true);
    }

    /// An expert is no longer resident.
    fn left(&mut self, key: ExpertKey) {
        self.stats(key.layer, |s| s.resident -= 1);
        self.uses.resident(key, false);
    }

    /// Asks for distinct experts of a layer. All are pinned until [`release`](Self::release); misses evict what the policy
    /// thinks least of. If there are not enough slots nothing changes.
    pub fn request(&mut self, layer: usize, experts: &[usize]) -> Result<Vec<Place>, BankFull> {
        let key = |expert| ExpertKey { layer, expert };
        let found: Vec<Option<usize>> = experts.iter().map(|&e| self.map.get(&key(e)).copied()).collect();
        let wanted = found.iter().filter(|slot| slot.is_none()).count();
        self.policy.reached(layer);
        let victims = self.victims(wanted, &found)?;
        self.clock += 1;
        let mut victims = victims.into_iter();
        let mut places = Vec::with_capacity(experts.len());
        for (&expert, found) in experts.iter().zip(found) {
            let key = key(expert);
            self.policy.used(key);
            // Looked up again, so that an expert named twice is not brought in twice.
            let place = match found.or_else(|| self.map.get(&key).copied()) {
                Some(slot) if self.resident(key).is_some() => Place::Hit(slot),
                Some(slot) => Place::Coming(slot),
                None => match victims.next() {
                    Some(slot) => {
                        self.empty(slot);
                        Place::Miss(slot)
                    }
                    None => continue,
                },
            };
            let (Place::Hit(slot) | Place::Coming(slot) | Place::Miss(slot)) = place;
            if let Some(entry) = self.entries.get_mut(slot) {
                entry.pins += 1;
                entry.last_used = self.clock;
                if matches!(place, Place::Miss(_)) {
                    entry.state = State::Loading(key);
                    self.map.insert(key, slot);
                }
            }
            let miss = matches!(place, Place::Miss(_));
            self.stats(layer, |s| if miss { s.misses += 1 } else { s.hits += 1 });
            self.uses.count(key, if miss { Use::Miss } else { Use::Hit });
            places.push(place);
        }
        Ok(places)
    }

    /// Pins an expert if it is there, and says whether it is. For passes that use the bank and bring nothing into it;
    /// `used` says whether this counts as a use.
    pub fn pin_resident(&mut self, key: ExpertKey, used: bool) -> bool {
        let Some(entry) = self.resident(key).and_then(|slot| self.entries.get_mut(slot)) else {
            return false;
        };
        entry.pins += 1;
        if used {
            entry.last_used = self.clock;
            self.policy.used(key);
        }
        true
    }

    /// An empty slot for an expert that is in memory elsewhere and moves in: only while its layer has fewer than `share`
    /// experts here. Nothing is evicted, nothing pinned.
    pub fn adopt(&mut self, key: ExpertKey, share: usize) -> Option<usize> {
        let here = self.layers.get(key.layer)?.resident;
        if self.map.len() >= self.entries.len() || here >= share || self.map.contains_key(&key) {
            return None;
        }
        let slot = self.entries.iter().position(|e| e.state == State::Empty)?;
        let entry = self.entries.get_mut(slot)?;
        *entry = Entry { state: State::Resident(key), pins: 0, last_used: self.clock };
        self.map.insert(key, slot);
        self.came(key);
        Some(slot)
    }

    /// An empty slot for an expert that is to be read although nobody has asked for it; it counts as used once. Nothing is evicted,
    /// nothing pinned.
    pub fn reserve(&mut self, key: ExpertKey) -> Reserved {
        if self.map.contains_key(&key) {
            return Reserved::Known;
        }
        if self.map.len() >= self.entries.len() {
            return Reserved::Full;
        }
        let Some(slot) = self.entries.iter().position(|e| e.state == State::Empty) else {
            return Reserved::Full;
        };
        if let Some(entry) = self.entries.get_mut(slot) {
            *entry = Entry { state: State::Loading(key), pins: 0, last_used: self.clock };
        }
        self.map.insert(key, slot);
        self.policy.used(key);
        Reserved::Slot(slot)
    }

    /// The slots to give to `wanted` experts, empty ones first; none of those in `keep`.
    fn victims(&self, wanted: usize, keep: &[Option<usize>]) -> Result<Vec<usize>, BankFull> {
        if wanted == 0 {
            return Ok(Vec::new());
        }
        let mut candidates: Vec<(f64, u64, usize)> = Vec::new();
        for (slot, entry) in self.entries.iter().enumerate() {
            match entry.state {
                State::Empty => candidates.push((f64::INFINITY, 0, slot)),
                State::Resident(key) if entry.pins == 0 && !keep.contains(&Some(slot)) => {
                    candidates.push((self.policy.score(key), entry.last_used, slot));
                }
                _ => {}
            }
        }
        if candidates.len() < wanted {
            return Err(BankFull { wanted, free: candidates.len(), slots: self.entries.len() });
        }
        let sooner = |a: &(f64, u64, usize), b: &(f64, u64, usize)| {
            b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2))
        };
        if wanted < candidates.len() {
            candidates.select_nth_unstable_by(wanted, sooner);
            candidates.truncate(wanted);
        }
        candidates.sort_unstable_by(sooner);
        Ok(candidates.into_iter().map(|(_, _, slot)| slot).collect())
    }

    fn empty(&mut self, slot: usize) {
        if let Some(entry) = self.entries.get_mut(slot)
            && let State::Resident(key) = entry.state
        {
            entry.state = State::Empty;
            self.map.remove(&key);
            self.stats(key.layer, |s| s.evictions += 1);
            self.left(key);
        }
    }

    /// The expert of a [`Place::Miss`] has arrived.
    pub fn landed(&mut self, slot: usize) {
        if let Some(entry) = self.entries.get_mut(slot)
            && let State::Loading(key) = entry.state
        {
            entry.state = State::Resident(key);
            self.came(key);
        }
    }

    /// The expert of a [`Place::Miss`] will not arrive. The slot is empty again, or given up if `lost`.
    pub fn failed(&mut self, slot: usize, lost: bool) {
        if let Some(entry) = self.entries.get_mut(slot)
            && let State::Loading(key) = entry.state
        {
            *entry = Entry { state: if lost { State::Lost } else { State::Empty }, pins: 0, last_used: 0 };
            self.map.remove(&key);
        }
    }

    /// An expert that is there turns out to be unusable: its slot is empty again.
    pub fn discard(&mut self, key: ExpertKey) {
        if let Some(slot) = self.resident(key)
            && let Some(entry) = self.entries.get_mut(slot)
        {
            *entry = Entry { state: State::Empty, pins: 0, last_used: 0 };
            self.map.remove(&key);
            self.left(key);
        }
    }

    /// Ends a request's use of experts. One that failed to arrive has nothing to end.
    pub fn release(&mut self, layer: usize, experts: &[usize]) {
        for &expert in experts {
            if let Some(&slot) = self.map.get(&ExpertKey { layer, expert })
                && let Some(entry) = self.entries.get_mut(slot)
            {
                entry.pins = entry.pins.saturating_sub(1);
            }
        }
    }
}
