//! Which expert goes where: bookkeeping without memory and without reads.
//!
//! For each layer of a pass [`Traffic::begin`] says what is there and orders what is not; [`Traffic::landed`] takes note of what
//! came, [`Traffic::checked`] of what its checksum says, and only then is an expert handed out. Every call that may free
//! a slot is followed by [`Traffic::refill`], which orders more.

use std::collections::VecDeque;

use crate::arena::{Arena, Use};
use crate::background::{Background, IN_FLIGHT};
use crate::eviction::ExpertKey;
use crate::heat::HotExperts;
use crate::residency::{BankFull, Place, Reserved, Residency};
use crate::summary::Counters;
use crate::uses;

/// A layer that uses this share of its experts makes the next one be read before its router has spoken: what is read in
/// vain is then less than what the drive would wait.
const AHEAD: f64 = 0.85;

/// As much of a layer's experts must be expected to be used before anything is known of a pass's routing, which may be
/// less even than expected.
const CERTAIN: f64 = 0.98;

/// An expert that a pass needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// Which of the layer.
    pub expert: usize,
    /// Whether it may take a slot of the bank from another: true for the tokens that are truly decoded, false for prompts and
    /// for rows that are only proposed.
    pub banked: bool,
    /// Whether using it from the bank counts as a use for eviction.
    pub counts: bool,
}

/// A slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    Bank(usize),
    Arena(usize),
}

/// A read to be submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) key: ExpertKey,
    pub(crate) home: Home,
}

/// What a read that has ended was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// What was read, wanted by now or not.
    pub(crate) key: Option<ExpertKey>,
    /// Whether the layer that computes needs it; if the read failed, so has the layer.
    pub(crate) asked: bool,
}

/// The layer that computes now.
#[derive(Debug, Default)]
struct Pass {
    layer: usize,
    /// There and not handed out.
    ready: VecDeque<usize>,
    /// There, but not yet compared with their checksums.
    landed: Vec<usize>,
    /// Being read.
    outstanding: usize,
    /// To be read into the arena as soon as it has room.
    todo: VecDeque<usize>,
    /// Pinned in the bank.
    pinned: Vec<usize>,
}

impl Pass {
    /// An expert that the layer needs is in the bank.
    fn there(&mut self, key: ExpertKey, background: &Background) {
        if background.unchecked(key) {
            self.landed.push(key.expert);
        } else {
            self.ready.push_back(key.expert);
        }
    }
}

/// Experts on their way between drive, arena and bank.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) residency: Residency,
    /// What is read before it is asked for.
    pub(crate) background: Background,
    arena: Arena,
    /// The expert on its way to each slot of the bank.
    coming: Vec<Option<ExpertKey>>,
    pass: Pass,
    /// Experts of the next layer, to be read when the arena has room to spare.
    ahead: VecDeque<ExpertKey>,
    /// Whether each layer of the model has experts.
    layers: Vec<bool>,
    /// Experts of each such layer.
    experts: usize,
    /// Experts of a layer that a token uses.
    top_k: usize,
    /// Slots of the bank that one layer may fill with what prompts brought.
    share: usize,
}

impl Traffic {
    pub(crate) fn new(
        residency: Residency,
        arena: usize,
        layers: Vec<bool>,
        experts: usize,
        top_k: usize,
    ) -> Self {
        let with_experts = layers.iter().filter(|&&has| has).count();
        Traffic {
            share: residency.slots() / with_experts.max(1),
            coming: vec![None; residency.slots()],
            residency,
            background: Background::default(),
            arena: Arena::new(arena),
            pass: Pass::default(),
            ahead: VecDeque::new(),
            layers,
            experts,
            top_k,
        }
    }

    /// Whether there is such an expert.
    pub(crate) fn known(&self, key: ExpertKey) -> bool {
        self.layers.get(key.layer) == Some(&true) && key.expert < self.experts
    }

    /// The layer that computes now.
    pub(crate) fn layer(&self) -> usize {
        self.pass.layer
    }

    /// Whether `layer` is the last with experts.
    pub(crate) fn is_last(&self, layer: usize) -> bool {
        self.layers.iter().rposition(|&has| has) == Some(layer)
    }

    /// Begins a pass with `rows` rows of prompt. If so many rows must use nearly all experts of a layer, the first layer
    /// is expected at once. True if there is something to order.
    pub(crate) fn begin_pass(&mut self, rows: usize) -> bool {
        self.background.pause(rows > 0);
        let untouched = (1.0 - self.top_k as f64 / self.experts.max(1) as f64).max(0.0);
        let certain = 1.0 - untouched.powf(rows as f64) >= CERTAIN;
        let first = self.layers.iter().position(|&has| has);
        first.is_some_and(|first| certain && self.expect(first))
    }

    /// All experts of a layer that is to come are to be read, as far as the arena has room. False if it has none.
    pub(crate) fn expect(&mut self, layer: usize) -> bool {
        let has = self.layers.get(layer) == Some(&true);
        if has {
            self.ahead = (0..self.experts).map(|expert| ExpertKey { layer, expert }).collect();
        }
        has
    }

    /// Begins a layer; returns the reads that the bank needs.
    pub(crate) fn begin(
        &mut self,
        layer: usize,
        demands: &[Demand],
        next: Option<usize>,
        counters: &mut Counters,
    ) -> Vec<Order> {
        self.ahead.clear();
        self.pass = Pass { layer, ..Pass::default() };
        self.arena.forget(|k| k.layer == layer && demands.iter().any(|d| d.expert == k.expert));
        let key = |expert| ExpertKey { layer, expert };
        let fresh = |d: &&Demand| d.banked && self.arena.find(key(d.expert)).is_none();
        let mut banked: Vec<usize> = demands.iter().filter(fresh).map(|d| d.expert).collect();
        let mut orders = Vec::new();
        match self.residency.request(layer, &banked) {
            Ok(places) => {
                for (&expert, place) in banked.iter().zip(places) {
                    self.pass.pinned.push(expert);
                    match place {
                        Place::Hit(_) => self.pass.there(key(expert), &self.background),
                        Place::Coming(_) => {
                            self.background.claim(key(expert));
                            self.pass.outstanding += 1;
                        }
                        Place::Miss(index) => {
                            self.background.replaced(key(expert));
                            self.pass.outstanding += 1;
                            orders.push(self.order(key(expert), index));
                        }
                    }
                }
            }
            // More than the bank can give at once, or no bank at all: the arena takes them in turn.
            Err(BankFull { .. }) => banked.clear(),
        }
        for demand in demands.iter().filter(|d| !banked.contains(&d.expert)) {
            let key = key(demand.expert);
            let transient = counters.transient(layer);
            if self.residency.pin_resident(key, demand.counts) {
                transient.hits += 1;
                self.residency.uses.count(key, uses::Use::TransientHit);
                self.pass.pinned.push(demand.expert);
                self.pass.there(key, &self.background);
                continue;
            }
            transient.misses += 1;
            self.residency.uses.count(key, uses::Use::TransientRead);
            if self.background.claim(key) {
                self.pass.outstanding += 1;
                continue;
            }
            match self.arena.find(key) {
                Some((index, Use::Here(_) | Use::Taken(_))) => {
                    self.arena.set(index, Use::Taken(key));
                    self.pass.landed.push(demand.expert);
                }
                Some(_) => self.pass.outstanding += 1,
                None => self.pass.todo.push_back(demand.expert),
            }
        }
        if let Some(next) = next.filter(|_| demands.len() as f64 >= AHEAD * self.experts as f64) {
            self.expect(next);
        }
        orders
    }

    /// The read that brings an expert into a slot of the bank.
    fn order(&mut self, key: ExpertKey, index: usize) -> Order {
        if let Some(coming) = self.coming.get_mut(index) {
            *coming = Some(key);
        }
        Order { key, home: Home::Bank(index) }
    }

    /// Reads for the free slots of the arena: what this layer needs, then what the next one will; and if the drive has
    /// nothing else to do, what is likely to be wanted, for empty slots of the bank.
    pub(crate) fn refill(&mut self) -> Vec<Order> {
        let mut orders = Vec::new();
        loop {
            let (key, wanted) = match self.pass.todo.front() {
                Some(&expert) => (ExpertKey { layer: self.pass.layer, expert }, true),
                None => match self.ahead.front() {
                    Some(&key) => (key, false),
                    None => break,
                },
            };
            // An expert is on its way once: the layer claims what comes in the background.
            let here = self.residency.resident(key).is_some() || self.arena.find(key).is_some();
            if !wanted && (here || self.background.is_coming(key)) {
                self.ahead.pop_front();
                continue;
            }
            let index = match self.arena.start(key) {
                Some(index) => index,
                // What was read ahead makes room for what is needed now, and is read again after it.
                None if wanted => {
                    let Some((index, later)) = self.arena.reclaim(key) else { break };
                    self.ahead.push_back(later);
                    index
                }
                None => break,
            };
            if wanted {
                self.pass.todo.pop_front();
                self.pass.outstanding += 1;
            } else {
                self.ahead.pop_front();
            }
            orders.push(Order { key, home: Home::Arena(index) });
        }
        // What waits for room in the arena must not come into the bank meanwhile: there would be two copies of it.
        let busy = self.pass.outstanding > 0 || !self.pass.todo.is_empty() || !self.ahead.is_empty();
        if !busy && !self.background.idle() {
            self.refill_background(&mut orders);
        }
        orders
    }

    /// Some of what is likely to be wanted.
    fn refill_background(&mut self, orders: &mut Vec<Order>) {
        while self.background.under_way() < IN_FLIGHT {
            let Some(key) = self.background.next_wanted() else { break };
            if self.arena.find(key).is_some() {
                continue;
            }
            match self.residency.reserve(key) {
                Reserved::Slot(index) => {
                    self.background.started(key);
                    orders.push(self.order(key, index));
                }
                Reserved::Known => {}
                // What has filled the bank since is worth more.
                Reserved::Full => self.background.want(VecDeque::new()),
            }
        }
    }

    /// A read has ended.
    pub(crate) fn landed(&mut self, home: Home, good: bool, lost: bool) -> Ended {
        let waits = |pass: &Pass, key: &ExpertKey| key.layer == pass.layer && pass.outstanding > 0;
        let key = match home {
            Home::Bank(index) => {
                let key = self.coming.get_mut(index).and_then(Option::take);
                if good {
                    self.residency.landed(index);
                } else {
                    self.residency.failed(index, lost);
                }
                if let Some(key) = key
                    && let Some(claimed) = self.background.landed(key, good)
                {
                    if claimed && waits(&self.pass, &key) {
                        self.pass.outstanding -= 1;
                        match good {
                            true => self.pass.landed.push(key.expert),
                            // The pass reads it itself.
                            false => self.pass.todo.push_back(key.expert),
                        }
                    }
                    return Ended { key: Some(key), asked: false };
                }
                key
            }
            Home::Arena(index) => {
                let (key, stale) = match self.arena.usage(index) {
                    Use::Coming(key) => (Some(key), None),
                    Use::Stale(key) => (None, Some(key)),
                    _ => (None, None),
                };
                let usage = match key {
                    _ if lost => Use::Lost,
                    Some(key) if good && waits(&self.pass, &key) => Use::Taken(key),
                    Some(key) if good => Use::Here(key),
                    _ => Use::Free,
                };
                self.arena.set(index, usage);
                if stale.is_some() {
                    return Ended { key: stale, asked: false };
                }
                key
            }
        };
        // What was read ahead and failed is read again when it is needed.
        let asked = key.is_some_and(|key| waits(&self.pass, &key));
        if let Some(key) = key.filter(|_| asked) {
            self.pass.outstanding -= 1;
            if good {
                self.pass.landed.push(key.expert);
            }
        }
        Ended { key, asked }
    }

    /// What has landed and is not yet compared with its checksum.
    pub(crate) fn unchecked(&self) -> Vec<(ExpertKey, Home)> {
        let key = |&expert: &usize| ExpertKey { layer: self.pass.layer, expert };
        self.pass.landed.iter().map(key).filter_map(|key| Some((key, self.home(key)?))).collect()
    }

    /// What checksums say of the experts of [`unchecked`](Self::unchecked), those that nothing is known of left out. Returns
    /// the experts that can be handed out from now on, or the one for whose sake nothing of this batch is trusted.
    pub(crate) fn checked(&mut self, found: &[(ExpertKey, bool)]) -> Result<Vec<ExpertKey>, ExpertKey> {
        let (layer, mut landed) = (self.pass.layer, std::mem::take(&mut self.pass.landed));
        for &(key, good) in found {
            // What was read before it was asked for and is damaged is read again. It is in the bank: a mark on what has left it
            // since says nothing of a copy in the arena.
            let early = self.residency.resident(key).is_some() && self.background.checked(key, good);
            if early && !good {
                self.residency.discard(key);
                landed.retain(|&expert| expert != key.expert);
                self.pass.todo.push_back(key.expert);
            }
        }
        let keys: Vec<ExpertKey> = landed.iter().map(|&expert| ExpertKey { layer, expert }).collect();
        // Files without checksums have nothing to compare.
        keys.iter().for_each(|&key| self.background.replaced(key));
        if let Some(&(bad, _)) = found.iter().find(|(key, good)| !good && keys.contains(key)) {
            // All of it is read again when it is needed again.
            for key in keys {
                self.residency.discard(key);
                if let Some((index, _)) = self.arena.find(key) {
                    self.arena.set(index, Use::Free);
                }
            }
            return Err(bad);
        }
        self.pass.ready.extend(landed);
        Ok(keys)
    }

    /// Hands out at most `most` experts that can be computed.
    pub(crate) fn hand_out(&mut self, most: usize) -> Vec<usize> {
        let n = most.min(self.pass.ready.len());
        self.pass.ready.drain(..n).collect()
    }

    /// Whether everything was handed out and nothing is to come.
    pub(crate) fn exhausted(&self) -> bool {
        self.pass.ready.is_empty() && self.pass.outstanding == 0 && self.pass.todo.is_empty()
    }

    /// Experts have been computed. Returns the slots whose memory is to be exchanged: what a prompt brought fills a bank that
    /// has room, so that decoding does not begin with an empty one.
    pub(crate) fn done(&mut self, experts: &[usize]) -> Vec<(Home, Home)> {
        let mut moves = Vec::new();
        for &expert in experts {
            let key = ExpertKey { layer: self.pass.layer, expert };
            let Some((index, _)) = self.arena.find(key) else { continue };
            if let Some(slot) = self.residency.adopt(key, self.share) {
                moves.push((Home::Arena(index), Home::Bank(slot)));
                self.background.replaced(key);
            }
            self.arena.set(index, Use::Free);
        }
        moves
    }

    /// Ends the layer; returns which.
    pub(crate) fn end(&mut self) -> usize {
        let Pass { layer, pinned, .. } = std::mem::take(&mut self.pass);
        self.residency.release(layer, &pinned);
        layer
    }

    /// Orders nothing more for this pass.
    pub(crate) fn stop(&mut self) {
        self.ahead.clear();
        self.pass.todo.clear();
    }

    /// After every read has ended: what has landed and was not compared with its checksum is not there, and the arena is
    /// empty.
    pub(crate) fn clear(&mut self) {
        let layer = self.pass.layer;
        for expert in std::mem::take(&mut self.pass.landed) {
            let key = ExpertKey { layer, expert };
            self.residency.discard(key);
            self.background.replaced(key);
        }
        self.arena.forget(|_| false);
    }

    /// Experts that are likely to be wanted, the hottest of all layers first. Replaces what was wanted before.
    pub(crate) fn bring(&mut self, hot: &HotExperts) {
        let longest = hot.layers.iter().map(Vec::len).max().unwrap_or(0);
        let keys = (0..longest).flat_map(|rank| {
            let at = move |(layer, list): (usize, &Vec<u16>)| {
                Some(ExpertKey { layer, expert: usize::from(*list.get(rank)?) })
            };
            hot.layers.iter().enumerate().filter_map(at)
        });
        let wanted = keys.filter(|&key| self.known(key)).take(self.residency.slots()).collect();
        self.background.want(wanted);
    }

    /// Where an expert is that is there.
    pub(crate) fn home(&self, key: ExpertKey) -> Option<Home> {
        match self.residency.resident(key) {
            Some(slot) => Some(Home::Bank(slot)),
            None => match self.arena.find(key)? {
                (index, Use::Here(_) | Use::Taken(_)) => Some(Home::Arena(index)),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests;
