//! The slots of a bank against a plain model of them, over random requests, arrivals, failures and releases.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mach_experts::{EvictionPolicy, ExpertKey, ExpertUses, Place, Residency};
use proptest::prelude::*;

const LAYERS: usize = 3;
const EXPERTS: usize = 6;

#[derive(Debug, Clone)]
enum Step {
    Request(usize, Vec<usize>),
    /// The oldest read on its way arrives.
    Land,
    /// It fails, its slot given up or not.
    Fail(bool),
    /// The oldest request ends.
    Release,
}

fn step() -> impl Strategy<Value = Step> {
    let experts = prop::collection::btree_set(0..EXPERTS, 1..4).prop_map(|s| s.into_iter().collect());
    prop_oneof![
        4 => (0..LAYERS, experts).prop_map(|(l, e)| Step::Request(l, e)),
        6 => Just(Step::Land),
        1 => prop::bool::weighted(0.1).prop_map(Step::Fail),
        4 => Just(Step::Release),
    ]
}

/// What is in each slot, kept in the most obvious way.
#[derive(Default)]
struct Model {
    resident: HashMap<ExpertKey, usize>,
    coming: Vec<(ExpertKey, usize)>,
    lost: HashSet<usize>,
    pinned: HashMap<ExpertKey, u32>,
    requests: Vec<(usize, Vec<usize>)>,
    hits: u64,
    misses: u64,
    evictions: u64,
}

proptest! {
    #[test]
    fn map_and_slots_agree(
        slots in 1usize..10,
        policy in 0usize..3,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let policy = EvictionPolicy::ALL[policy];
        let uses = Arc::new(ExpertUses::new(vec![true; LAYERS], EXPERTS));
        let mut bank =
            Residency::new(slots, LAYERS, policy.build(LAYERS, EXPERTS)).counted(Arc::clone(&uses));
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Request(layer, experts) => {
                    let before = bank.layers().to_vec();
                    let key = |expert| ExpertKey { layer, expert };
                    let known = |m: &Model, k: &ExpertKey| {
                        m.resident.contains_key(k) || m.coming.iter().any(|(c, _)| c == k)
                    };
                    let wanted = experts.iter().filter(|&&e| !known(&model, &key(e))).count();
                    let kept = model.resident.keys().filter(|k| {
                        model.pinned.get(k).is_some_and(|&n| n > 0)
                            || (k.layer == layer && experts.contains(&k.expert))
                    }).count();
                    let free = slots - model.lost.len() - model.coming.len() - kept;
                    match bank.request(layer, &experts) {
                        Err(full) => {
                            prop_assert!(wanted > free, "refused although {free} slots can be given");
                            prop_assert_eq!((full.wanted, full.free, full.slots), (wanted, free, slots));
                            prop_assert_eq!(before, bank.layers().to_vec());
                        }
                        Ok(places) => {
                            prop_assert!(wanted <= free);
                            prop_assert_eq!(places.len(), experts.len());
                            for (&e, place) in experts.iter().zip(places) {
                                let k = key(e);
                                match place {
                                    Place::Hit(slot) => {
                                        prop_assert_eq!(model.resident.get(&k), Some(&slot));
                                        model.hits += 1;
                                    }
                                    Place::Coming(slot) => {
                                        prop_assert!(model.coming.contains(&(k, slot)));
                                        model.hits += 1;
                                    }
                                    Place::Miss(slot) => {
                                        prop_assert!(slot < slots && !model.lost.contains(&slot));
                                        prop_assert!(model.coming.iter().all(|(_, s)| *s != slot));
                                        let old = model.resident.iter().find(|(_, s)| **s == slot).map(|(k, _)| *k);
                                        if let Some(old) = old {
                                            prop_assert_eq!(model.pinned.get(&old).copied().unwrap_or(0), 0,
                                                "evicted a pinned expert");
                                            let used = model.resident.len() + model.coming.len() + model.lost.len();
                                            prop_assert_eq!(used, slots, "evicted while slots are empty");
                                            model.resident.remove(&old);
                                            model.evictions += 1;
                                        }
                                        model.coming.push((k, slot));
                                        model.misses += 1;
                                    }
                                }
                                *model.pinned.entry(k).or_default() += 1;
                            }
                            model.requests.push((layer, experts));
                        }
                    }
                }
                Step::Land => if !model.coming.is_empty() {
                    let (k, slot) = model.coming.remove(0);
                    bank.landed(slot);
                    model.resident.insert(k, slot);
                }
                Step::Fail(lost) => if !model.coming.is_empty() {
                    let (k, slot) = model.coming.remove(0);
                    bank.failed(slot, lost);
                    model.pinned.remove(&k);
                    // The requests that wanted it have nothing of it to release.
                    for (layer, experts) in &mut model.requests {
                        experts.retain(|&e| (ExpertKey { layer: *layer, expert: e }) != k);
                    }
                    if lost {
                        model.lost.insert(slot);
                    }
                }
                Step::Release => if !model.requests.is_empty() {
                    let (layer, experts) = model.requests.remove(0);
                    bank.release(layer, &experts);
                    for e in experts {
                        if let Some(n) = model.pinned.get_mut(&ExpertKey { layer, expert: e }) {
                            *n -= 1;
                        }
                    }
                }
            }
            for layer in 0..LAYERS {
                for expert in 0..EXPERTS {
                    let k = ExpertKey { layer, expert };
                    prop_assert_eq!(bank.resident(k), model.resident.get(&k).copied());
                }
                let count = model.resident.keys().filter(|k| k.layer == layer).count();
                prop_assert_eq!(bank.layers()[layer].resident, count);
            }
            for (counts, of_layer) in uses.layers().iter().zip(bank.layers()) {
                for expert in 0..EXPERTS {
                    let k = ExpertKey { layer: counts.layer, expert };
                    prop_assert_eq!(counts.resident[expert], model.resident.contains_key(&k));
                }
                let sum = |counts: &[u32]| counts.iter().map(|&n| u64::from(n)).sum::<u64>();
                prop_assert_eq!((sum(&counts.hits), sum(&counts.misses)), (of_layer.hits, of_layer.misses));
            }
            let sum = |f: fn(&mach_experts::LayerStats) -> u64| bank.layers().iter().map(f).sum::<u64>();
            prop_assert_eq!(sum(|s| s.hits), model.hits);
            prop_assert_eq!(sum(|s| s.misses), model.misses);
            prop_assert_eq!(sum(|s| s.evictions), model.evictions);
            prop_assert!(model.resident.len() + model.coming.len() + model.lost.len() <= slots);
        }
    }
}

#[test]
fn the_least_recently_used_leaves_first() {
    let mut bank = Residency::new(3, 1, EvictionPolicy::Lru.build(1, 8));
    let mut ask = |expert: usize| {
        let place = bank.request(0, &[expert]).unwrap()[0];
        if let Place::Miss(slot) = place {
            bank.landed(slot);
        }
        bank.release(0, &[expert]);
        matches!(place, Place::Hit(_))
    };
    let hits: Vec<bool> = [0, 1, 2, 0, 3, 1, 0, 2].into_iter().map(&mut ask).collect();
    assert_eq!(hits, [false, false, false, true, false, false, true, false]);
}

#[test]
fn an_expert_named_twice_is_brought_in_once() {
    let mut bank = Residency::new(4, 1, EvictionPolicy::Lru.build(1, 8));
    let places = bank.request(0, &[5, 5]).unwrap();
    assert_eq!(places, [Place::Miss(0), Place::Coming(0)]);
}
