//! Hit rates of the eviction policies on a trace, beside the best that any policy could reach.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use mach_experts::{EvictionPolicy, ExpertKey, Place, Residency};
use serde::Serialize;

use super::Trace;

/// Hit rates at one size of the bank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Slots of the bank.
    pub slots: usize,
    /// Share of all experts that fit.
    pub share: f64,
    /// Share of the experts that decoding asked for and found, by policy; `belady` looks into the future.
    pub hit_rates: Vec<(&'static str, f64)>,
}

/// Misses of every policy at every bank size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replay {
    /// Decoded tokens in the trace.
    pub decoded: usize,
    /// Experts that decoding asked for.
    pub asked: u64,
    /// Whether routing is random, so that the table says nothing about policies.
    pub random_routing: bool,
    /// One row a size.
    pub rows: Vec<Row>,
}

/// Name of the optimum.
const BELADY: &str = "belady";

/// Sizes worth a look: from one token's experts to all.
pub fn bank_sizes(trace: &Trace) -> Vec<usize> {
    let layers: HashSet<usize> = trace.passes.iter().flat_map(|p| p.layers.iter().map(|l| l.0)).collect();
    let (all, least) = (layers.len() * trace.header.experts, layers.len() * trace.header.top_k);
    let eighths = [1, 2, 3, 4, 6, 8, 12, 16].into_iter().map(|n| all * n / 16);
    let mut sizes: Vec<usize> = eighths.chain([least]).filter(|&n| n >= least && n > 0).collect();
    sizes.sort_unstable();
    sizes.dedup();
    sizes
}

/// Replays the trace at each size. Prompts fill empty slots and evict nothing, as they do in a running server.
pub fn replay(trace: &Trace, sizes: &[usize]) -> Replay {
    let layers: HashSet<usize> = trace.passes.iter().flat_map(|p| p.layers.iter().map(|l| l.0)).collect();
    let all = (layers.len() * trace.header.experts).max(1);
    let decoding = || trace.passes.iter().filter(|p| !p.prompt);
    let asked: u64 = decoding().flat_map(|p| &p.layers).map(|(_, e)| e.len() as u64).sum();
    let rate = |hits: u64| if asked == 0 { 0.0 } else { hits as f64 / asked as f64 };
    let rows = sizes.iter().map(|&slots| {
        let share = slots / layers.len().max(1);
        let policies = EvictionPolicy::ALL.into_iter().map(|p| policy(trace, slots, share, p));
        let mut hit_rates: Vec<_> = policies.map(|(name, hits)| (name, rate(hits))).collect();
        hit_rates.push((BELADY, rate(belady(trace, slots, share))));
        Row { slots, share: slots as f64 / all as f64, hit_rates }
    });
    Replay {
        decoded: decoding().map(|p| p.rows).sum(),
        asked,
        random_routing: trace.header.random_routing,
        rows: rows.collect(),
    }
}

fn policy(trace: &Trace, slots: usize, share: usize, policy: EvictionPolicy) -> (&'static str, u64) {
    let mut bank =
        Residency::new(slots, trace.header.layers, policy.build(trace.header.layers, trace.header.experts));
    for pass in &trace.passes {
        for (layer, experts) in &pass.layers {
            if pass.prompt {
                for &expert in experts {
                    bank.adopt(ExpertKey { layer: *layer, expert }, share);
                }
                continue;
            }
            // A pass that no bank of this size could hold goes through the arena.
            let Ok(places) = bank.request(*layer, experts) else { continue };
            for place in places {
                if let Place::Miss(slot) = place {
                    bank.landed(slot);
                }
            }
            bank.release(*layer, experts);
        }
    }
    (bank.policy(), bank.layers().iter().map(|l| l.hits).sum())
}

/// Hits if the expert whose next use is farthest away always leaves (Belady 1966).
fn belady(trace: &Trace, slots: usize, share: usize) -> u64 {
    let mut uses: HashMap<ExpertKey, VecDeque<usize>> = HashMap::new();
    let decoded = trace.passes.iter().filter(|p| !p.prompt).flat_map(|p| &p.layers);
    for (time, (layer, experts)) in decoded.enumerate() {
        for &expert in experts {
            uses.entry(ExpertKey { layer: *layer, expert }).or_default().push_back(time);
        }
    }
    let next = |uses: &HashMap<ExpertKey, VecDeque<usize>>, key: &ExpertKey| {
        uses.get(key).and_then(|u| u.front()).copied().unwrap_or(usize::MAX)
    };
    let mut here: HashMap<ExpertKey, usize> = HashMap::new();
    let mut order: BTreeSet<(usize, ExpertKey)> = BTreeSet::new();
    let mut by_layer: HashMap<usize, usize> = HashMap::new();
    let mut hits = 0;
    for pass in &trace.passes {
        for (layer, experts) in &pass.layers {
            let keys: Vec<ExpertKey> =
                experts.iter().map(|&expert| ExpertKey { layer: *layer, expert }).collect();
            if pass.prompt {
                for key in keys {
                    let count = by_layer.entry(*layer).or_default();
                    if here.len() < slots && *count < share && !here.contains_key(&key) {
                        *count += 1;
                        let at = next(&uses, &key);
                        here.insert(key, at);
                        order.insert((at, key));
                    }
                }
                continue;
            }
            for key in &keys {
                uses.get_mut(key).and_then(VecDeque::pop_front);
                // Those of this layer are in use: they leave the order until all have been seen.
                if let Some(at) = here.remove(key) {
                    order.remove(&(at, *key));
                    hits += 1;
                }
            }
            while here.len() + keys.len() > slots
                && let Some((_, victim)) = order.pop_last()
            {
                here.remove(&victim);
                *by_layer.entry(victim.layer).or_default() -= 1;
            }
            for key in keys {
                let at = next(&uses, &key);
                here.insert(key, at);
                order.insert((at, key));
            }
            by_layer.insert(*layer, here.keys().filter(|k| k.layer == *layer).count());
        }
    }
    hits
}

#[cfg(test)]
mod tests {
    use super::super::{Pass, Trace, tests::header};
    use super::*;

    fn decode(experts: &[usize]) -> Pass {
        Pass { rows: 1, prompt: false, layers: vec![(0, experts.to_vec())] }
    }

    #[test]
    fn the_optimum_of_a_known_string() {
        // 1 2 3 4 1 2 5 1 2 3 4 5 with three slots: LRU meets 2 and MIN meets 5 of 12 (the textbook example).
        let passes = [1, 2, 3, 4, 1, 2, 5, 1, 2, 3, 4, 5].map(|e| decode(&[e])).to_vec();
        let trace = Trace { header: header(1, 6), passes };
        let found = replay(&trace, &[3]);
        let rate = |name| found.rows[0].hit_rates.iter().find(|r| r.0 == name).unwrap().1 * 12.0;
        assert_eq!((rate("lru").round(), rate(BELADY).round()), (2.0, 5.0));
        assert_eq!((found.asked, found.decoded), (12, 12));
    }

    #[test]
    fn no_policy_beats_the_optimum_and_a_full_bank_misses_once() {
        let mut x = 7usize;
        let mut random = |n: usize| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % n
        };
        let mut passes = Vec::new();
        for i in 0..300 {
            let layers = (0..3)
                .map(|layer| {
                    // Skewed, as real routing is.
                    let set: BTreeSet<usize> = (0..2).map(|_| random(16).min(random(16))).collect();
                    (layer, set.into_iter().collect())
                })
                .collect();
            passes.push(Pass { rows: 1, prompt: i % 50 == 0, layers });
        }
        let trace = Trace { header: header(3, 16), passes };
        let sizes = bank_sizes(&trace);
        assert_eq!((sizes[0], *sizes.last().unwrap()), (6, 48));
        let found = replay(&trace, &sizes);
        let mut last = 0.0;
        for row in &found.rows {
            let best = row.hit_rates.last().unwrap().1;
            assert!(row.hit_rates.iter().all(|r| r.1 <= best), "{row:?}");
            assert!(best >= last, "more slots never hurt the optimum");
            last = best;
        }
        let full = &found.rows.last().unwrap().hit_rates;
        assert!(full.iter().all(|r| r.1 == full[0].1 && r.1 > 0.9));
    }
}
