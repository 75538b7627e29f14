//! Which expert leaves a full bank. Policies only order the candidates; among equals the least recently used goes first.

use std::fmt::Debug;
use std::str::FromStr;

/// A routed expert of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExpertKey {
    /// Layer of the model.
    pub layer: usize,
    /// Expert of the layer.
    pub expert: usize,
}

/// Orders the experts of a bank.
///
/// ```
/// use mach_experts::{EvictionPolicy, ExpertKey};
/// let mut policy = "lfu".parse::<EvictionPolicy>()?.build(2, 8);
/// policy.reached(0);
/// policy.used(ExpertKey { layer: 0, expert: 1 });
/// assert_eq!(policy.name(), "lfu");
/// # Ok::<(), String>(())
/// ```
pub trait Eviction: Send + Debug {
    /// Name on the command line and in statistics.
    fn name(&self) -> &'static str;
    /// A pass reaches `layer` and asks for experts of it.
    fn reached(&mut self, layer: usize);
    /// An expert is asked for, whether it is there or not.
    fn used(&mut self, key: ExpertKey);
    /// The higher, the sooner it leaves.
    fn score(&self, key: ExpertKey) -> f64;
}

/// The policies by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EvictionPolicy {
    /// Least recently used.
    Lru,
    /// Least frequently used, old uses counting less.
    Lfu,
    /// Longest expected time to the next use, from how often an expert is used and how far ahead its layer is. The default: on the
    /// demo's routing it finds more than `lru`, or within half a percent as much.
    #[default]
    Lookahead,
}

impl EvictionPolicy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Lru, Self::Lfu, Self::Lookahead];

    /// The policy for a model of so many layers and experts a layer.
    pub fn build(self, layers: usize, experts: usize) -> Box<dyn Eviction> {
        match self {
            Self::Lru => Box::new(Lru),
            Self::Lfu => Box::new(Lfu(Popularity::new(layers, experts))),
            Self::Lookahead => {
                Box::new(Lookahead { popularity: Popularity::new(layers, experts), layers, at: 0 })
            }
        }
    }
}

impl FromStr for EvictionPolicy {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "lru" => Ok(Self::Lru),
            "lfu" => Ok(Self::Lfu),
            "lookahead" => Ok(Self::Lookahead),
            other => Err(format!("unknown eviction policy `{other}`; known: lru, lfu, lookahead")),
        }
    }
}

#[derive(Debug)]
struct Lru;

impl Eviction for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn reached(&mut self, _: usize) {}

    fn used(&mut self, _: ExpertKey) {}

    fn score(&self, _: ExpertKey) -> f64 {
        0.0
    }
}

/// How often experts are used, an old use counting less than a new one.
#[derive(Debug)]
struct Popularity {
    experts: usize,
    /// Uses of each expert, in units of the first pass.
    uses: Vec<f64>,
    /// Passes over each layer, likewise.
    passes: Vec<f64>,
    /// What a use counts now: growing weights are decay without touching old counts.
    weight: Vec<f64>,
}

impl Popularity {
    /// Passes after which a use counts half.
    const HALF_LIFE: f64 = 128.0;
    /// Weights are brought back to 1 before they overflow.
    const LIMIT: f64 = 1e100;

    fn new(layers: usize, experts: usize) -> Self {
        let (uses, passes) = (vec![0.0; layers * experts], vec![0.0; layers]);
        Popularity { experts, uses, passes, weight: vec![1.0; layers] }
    }

    fn reached(&mut self, layer: usize) {
        let (Some(weight), Some(passes)) = (self.weight.get_mut(layer), self.passes.get_mut(layer)) else {
            return;
        };
        *weight *= (1.0 / Self::HALF_LIFE).exp2();
        if *weight > Self::LIMIT {
            *passes /= *weight;
            let range = layer * self.experts..(layer + 1) * self.experts;
            self.uses.get_mut(range).unwrap_or_default().iter_mut().for_each(|u| *u /= *weight);
            *weight = 1.0;
        }
        *passes += *weight;
    }

    fn used(&mut self, key: ExpertKey) {
        if let (Some(uses), Some(weight)) =
            (self.uses.get_mut(key.layer * self.experts + key.expert), self.weight.get(key.layer))
        {
            *uses += weight;
        }
    }

    /// Share of the passes over its layer that use the expert.
    fn share(&self, key: ExpertKey) -> f64 {
        let uses = self.uses.get(key.layer * self.experts + key.expert).copied().unwrap_or(0.0);
        let passes = self.passes.get(key.layer).copied().unwrap_or(0.0);
        if passes > 0.0 { (uses / passes).min(1.0) } else { 0.0 }
    }
}

#[derive(Debug)]
struct Lfu(Popularity);

impl Eviction for Lfu {
    fn name(&self) -> &'static str {
        "lfu"
    }

    fn reached(&mut self, layer: usize) {
        self.0.reached(layer);
    }

    fn used(&mut self, key: ExpertKey) {
        self.0.used(key);
    }

    fn score(&self, key: ExpertKey) -> f64 {
        -self.0.share(key)
    }
}

#[derive(Debug)]
struct Lookahead {
    popularity: Popularity,
    layers: usize,
    at: usize,
}

impl Eviction for Lookahead {
    fn name(&self) -> &'static str {
        "lookahead"
    }

    fn reached(&mut self, layer: usize) {
        self.at = layer;
        self.popularity.reached(layer);
    }

    fn used(&mut self, key: ExpertKey) {
        self.popularity.used(key);
    }

    /// Layers until the expected next use: layers are visited in a circle, and an expert that a share `p` of the passes
    /// uses is skipped `1 / p - 1` times on average before its turn comes.
    fn score(&self, key: ExpertKey) -> f64 {
        let layers = self.layers.max(1);
        let ahead = match (key.layer + layers - self.at) % layers {
            0 => layers,
            n => n,
        };
        let share = self.popularity.share(key).max(1e-6);
        ahead as f64 + layers as f64 * (1.0 / share - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(layer: usize, expert: usize) -> ExpertKey {
        ExpertKey { layer, expert }
    }

    #[test]
    fn policies_order_as_they_say() {
        let mut lfu = EvictionPolicy::Lfu.build(2, 4);
        let mut ahead = EvictionPolicy::Lookahead.build(2, 4);
        for pass in 0..2000 {
            for policy in [&mut lfu, &mut ahead] {
                for layer in 0..2 {
                    policy.reached(layer);
                    policy.used(key(layer, 0));
                    if pass % 2 == 0 {
                        policy.used(key(layer, 1));
                    }
                    if pass < 100 {
                        policy.used(key(layer, 2));
                    }
                }
            }
        }
        for policy in [&lfu, &ahead] {
            for layer in 0..2 {
                let scores: Vec<f64> = (0..4).map(|e| policy.score(key(layer, e))).collect();
                assert!(scores.is_sorted(), "{} {scores:?}", policy.name());
                assert!(scores[1] < scores[2], "old uses fade");
            }
        }
        // The pass stands at layer 1: layer 0 is next, layer 1 comes after it.
        assert!(ahead.score(key(0, 0)) < ahead.score(key(1, 0)));
        for policy in EvictionPolicy::ALL {
            assert_eq!(policy.build(1, 1).name().parse(), Ok(policy));
        }
        assert!("belady".parse::<EvictionPolicy>().is_err());
    }

    #[test]
    fn a_use_counts_half_after_its_half_life() {
        let mut popularity = Popularity::new(2, 2);
        popularity.reached(1);
        popularity.used(key(1, 0));
        for _ in 0..Popularity::HALF_LIFE as usize {
            popularity.reached(1);
        }
        popularity.used(key(1, 1));
        let share = popularity.share(key(1, 0)) / popularity.share(key(1, 1));
        assert!((share - 0.5).abs() < 1e-9, "{share}");
    }

    #[test]
    fn the_next_use_is_expected_after_so_many_layers() {
        let mut ahead = EvictionPolicy::Lookahead.build(3, 2);
        ahead.reached(0);
        ahead.used(key(0, 0));
        ahead.reached(1);
        ahead.used(key(1, 0));
        // The pass stands at layer 1. An expert of every pass is due when its layer comes.
        assert!((ahead.score(key(0, 0)) - 2.0).abs() < 1e-9);
        assert!((ahead.score(key(1, 0)) - 3.0).abs() < 1e-9);
        // One of every second pass a round later.
        ahead.reached(0);
        let share = 1.0 / (1.0 + (1.0 / Popularity::HALF_LIFE).exp2());
        let expected = 3.0 + 3.0 * (1.0 / share - 1.0);
        assert!((ahead.score(key(0, 0)) - expected).abs() < 1e-9, "{}", ahead.score(key(0, 0)));
    }

    #[test]
    fn weights_never_overflow() {
        let mut popularity = Popularity::new(1, 1);
        for _ in 0..200_000 {
            popularity.reached(0);
            popularity.used(key(0, 0));
        }
        assert_eq!(popularity.share(key(0, 0)), 1.0);
    }
}
