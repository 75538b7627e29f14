//! What became of each expert, counted while the engine computes and read by other threads without waiting.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::eviction::ExpertKey;

/// Counts of one expert. One thread writes, so that counting is a load and a store.
#[derive(Debug, Default)]
struct Uses {
    resident: AtomicBool,
    hits: AtomicU32,
    misses: AtomicU32,
    transient_hits: AtomicU32,
    transient_reads: AtomicU32,
}

/// What is counted of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Decoding found it in the bank, or on its way there.
    Hit,
    /// Decoding had to read it.
    Miss,
    /// A prompt or a proposed row found it in the bank.
    TransientHit,
    /// A prompt or a proposed row took it through the arena.
    TransientRead,
}

/// One layer, an entry an expert. Counts stop at the largest `u32`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerUses {
    /// Layer of the model.
    pub layer: usize,
    /// Whether the expert is in the bank.
    pub resident: Vec<bool>,
    /// Times that decoding found it there.
    pub hits: Vec<u32>,
    /// Times that decoding had to read it.
    pub misses: Vec<u32>,
    /// Times that prompts and proposed rows found it there.
    pub transient_hits: Vec<u32>,
    /// Times that they took it through the arena.
    pub transient_reads: Vec<u32>,
}

/// Counts of all experts of a model; without any, nothing is counted.
#[derive(Debug, Default)]
pub struct ExpertUses {
    /// Which layers have experts.
    layers: Vec<bool>,
    experts: usize,
    /// `[layers, experts]`.
    uses: Vec<Uses>,
}

impl ExpertUses {
    /// Nothing used yet. `layers` says of each layer of the model whether it has experts.
    pub fn new(layers: Vec<bool>, experts: usize) -> Self {
        let mut uses = Vec::new();
        uses.resize_with(layers.len() * experts, Uses::default);
        ExpertUses { layers, experts, uses }
    }

    /// Experts of each layer that has any.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// The counts as they are now, one entry a layer that has experts.
    pub fn layers(&self) -> Vec<LayerUses> {
        let with_experts = self.layers.iter().enumerate().filter(|&(_, &has)| has);
        let layer = |(layer, _)| {
            let uses = self.uses.get(layer * self.experts..(layer + 1) * self.experts).unwrap_or_default();
            let counts = |of: fn(&Uses) -> &AtomicU32| -> Vec<u32> {
                uses.iter().map(|uses| of(uses).load(Ordering::Relaxed)).collect()
            };
            LayerUses {
                layer,
                resident: uses.iter().map(|uses| uses.resident.load(Ordering::Relaxed)).collect(),
                hits: counts(|uses| &uses.hits),
                misses: counts(|uses| &uses.misses),
                transient_hits: counts(|uses| &uses.transient_hits),
                transient_reads: counts(|uses| &uses.transient_reads),
            }
        };
        with_experts.map(layer).collect()
    }

    fn of(&self, key: ExpertKey) -> Option<&Uses> {
        if key.expert >= self.experts {
            return None;
        }
        self.uses.get(key.layer * self.experts + key.expert)
    }

    pub(crate) fn count(&self, key: ExpertKey, what: Use) {
        let Some(uses) = self.of(key) else { return };
        let count = match what {
            Use::Hit => &uses.hits,
            Use::Miss => &uses.misses,
            Use::TransientHit => &uses.transient_hits,
            Use::TransientRead => &uses.transient_reads,
        };
        count.store(count.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }

    pub(crate) fn resident(&self, key: ExpertKey, resident: bool) {
        if let Some(uses) = self.of(key) {
            uses.resident.store(resident, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_expert_has_its_own_counts() {
        let uses = ExpertUses::new(vec![false, true, true], 3);
        let key = |layer, expert| ExpertKey { layer, expert };
        uses.count(key(1, 2), Use::Hit);
        uses.count(key(1, 2), Use::Hit);
        uses.count(key(2, 0), Use::Miss);
        uses.count(key(2, 1), Use::TransientHit);
        uses.count(key(2, 2), Use::TransientRead);
        uses.resident(key(2, 0), true);
        // None of these is an expert of the model.
        uses.count(key(1, 3), Use::Hit);
        uses.count(key(3, 0), Use::Hit);
        let layers = uses.layers();
        assert_eq!(layers.iter().map(|l| l.layer).collect::<Vec<_>>(), [1, 2]);
        assert_eq!((layers[0].hits.as_slice(), layers[1].hits.as_slice()), (&[0, 0, 2][..], &[0, 0, 0][..]));
        assert_eq!(layers[1].misses, [1, 0, 0]);
        assert_eq!(layers[1].transient_hits, [0, 1, 0]);
        assert_eq!(layers[1].transient_reads, [0, 0, 1]);
        assert_eq!(layers[1].resident, [true, false, false]);
        assert!(ExpertUses::default().layers().is_empty());
        ExpertUses::default().count(key(0, 0), Use::Hit);
    }
}
