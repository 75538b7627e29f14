use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::eviction::EvictionPolicy;

const LAYERS: usize = 3;
const EXPERTS: usize = 6;

/// What a read comes to: the choices of the test decide, in the order of the reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Good,
    /// It fails, and its memory comes back.
    Fails,
    /// It fails, and its memory is gone.
    Lost,
    /// It arrives with other bytes than its checksum's.
    Damaged,
}

fn fates() -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        20 => Just(Fate::Good),
        1 => Just(Fate::Fails),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Damaged),
    ];
    prop::collection::vec(fate, 64)
}

/// A drive without files, and memory without bytes: which expert each slot holds, and whether it is sound.
struct Drive {
    flight: VecDeque<Order>,
    bank: Vec<Option<(ExpertKey, bool)>>,
    arena: Vec<Option<(ExpertKey, bool)>>,
    fates: Vec<Fate>,
    reads: usize,
}

impl Drive {
    fn slot(&mut self, home: Home) -> &mut Option<(ExpertKey, bool)> {
        match home {
            Home::Bank(index) => &mut self.bank[index],
            Home::Arena(index) => &mut self.arena[index],
        }
    }

    /// A slot is written to by one read at a time.
    fn submit(&mut self, orders: Vec<Order>) {
        for order in orders {
            assert!(self.flight.iter().all(|other| other.home != order.home), "{order:?} is written twice");
            *self.slot(order.home) = None;
            self.flight.push_back(order);
        }
    }

    fn land(&mut self, traffic: &mut Traffic) -> Option<(Ended, Fate)> {
        let Order { key, home } = self.flight.pop_front()?;
        let fate = self.fates[self.reads % self.fates.len()];
        self.reads += 1;
        let arrives = matches!(fate, Fate::Good | Fate::Damaged);
        *self.slot(home) = arrives.then_some((key, fate == Fate::Good));
        Some((traffic.landed(home, arrives, fate == Fate::Lost), fate))
    }
}

/// Computes a layer; returns the experts handed out, or nothing if it failed.
fn layer(
    traffic: &mut Traffic,
    drive: &mut Drive,
    index: usize,
    demands: &[Demand],
    step: usize,
) -> Option<Vec<usize>> {
    let mut counters = Counters::new(LAYERS);
    let orders = traffic.begin(index, demands, Some(index + 1), &mut counters);
    drive.submit(orders);
    drive.submit(traffic.refill());
    let mut seen = Vec::new();
    loop {
        let unchecked = traffic.unchecked();
        let found: Vec<_> = unchecked
            .iter()
            .map(|&(key, home)| {
                let held = drive.slot(home).expect("what has landed is there");
                assert_eq!(held.0, key, "the slot holds the expert that it is for");
                (key, held.1)
            })
            .collect();
        traffic.checked(&found).ok()?;
        drive.submit(traffic.refill());
        let batch = traffic.hand_out(step);
        for &expert in &batch {
            let key = ExpertKey { layer: index, expert };
            let home = traffic.home(key).expect("an expert that is handed out has a home");
            assert_eq!(*drive.slot(home), Some((key, true)), "only sound experts are handed out");
        }
        seen.extend(&batch);
        if batch.is_empty() {
            if traffic.exhausted() {
                break;
            }
            let (ended, fate) = drive.land(traffic)?;
            if ended.asked && matches!(fate, Fate::Fails | Fate::Lost) {
                return None;
            }
        }
        for (from, to) in traffic.done(&batch) {
            let moved = drive.slot(from).take();
            *drive.slot(to) = moved;
        }
        drive.submit(traffic.refill());
    }
    traffic.end();
    Some(seen)
}

fn abandon(traffic: &mut Traffic, drive: &mut Drive) {
    traffic.stop();
    while drive.land(traffic).is_some() {}
    traffic.clear();
    traffic.end();
}

proptest! {
    /// Whatever is asked for and however reads end: of a layer that does not fail, every expert is handed out exactly once,
    /// sound, from the slot that is its own; no slot is written twice at a time; a layer that fails harms no later one.
    #[test]
    fn every_demanded_expert_is_handed_out_once(
        layers in prop::collection::vec(
            (0..LAYERS, prop::collection::btree_map(0..EXPERTS, any::<(bool, bool)>(), 1..=EXPERTS), 0usize..40, 1usize..9),
            1..14,
        ),
        bank in 0usize..10,
        arena in 1usize..5,
        policy in 0usize..3,
        fates in fates(),
        hot in prop::collection::vec(prop::collection::vec(0u16..EXPERTS as u16, 0..4), LAYERS),
    ) {
        let eviction = EvictionPolicy::ALL[policy].build(LAYERS, EXPERTS);
        let residency = Residency::new(bank, LAYERS, eviction);
        // The middle layer is dense.
        let known = vec![true, false, true];
        let mut traffic = Traffic::new(residency, arena, known, EXPERTS, 2);
        let slots = |n| vec![None; n];
        let mut drive = Drive { flight: VecDeque::new(), bank: slots(bank), arena: slots(arena), fates, reads: 0 };
        traffic.bring(&HotExperts { layers: hot });
        for (index, wanted, prompt, step) in layers.into_iter().filter(|(index, ..)| *index != 1) {
            if traffic.begin_pass(prompt) {
                drive.submit(traffic.refill());
            }
            let demand = |(&expert, &(banked, counts)): (&usize, &(bool, bool))| Demand { expert, banked, counts };
            let demands: Vec<Demand> = wanted.iter().map(demand).collect();
            match layer(&mut traffic, &mut drive, index, &demands, step) {
                Some(mut seen) => {
                    seen.sort_unstable();
                    prop_assert_eq!(seen, wanted.keys().copied().collect::<Vec<_>>());
                }
                None => abandon(&mut traffic, &mut drive),
            }
            // Each expert of the bank has one slot, and the slot holds it.
            let mut held = HashSet::new();
            for (slot, content) in drive.bank.clone().into_iter().enumerate() {
                let Some((key, _)) = content else { continue };
                if traffic.residency.resident(key) == Some(slot) {
                    prop_assert!(held.insert(key));
                }
            }
        }
    }
}

/// An expert that comes in the background is not read ahead as well: two copies of it could not be told apart later, and the
/// failure of one of them gave away the memory of the other.
#[test]
fn an_expert_is_on_its_way_once() {
    let residency = Residency::new(3, 1, EvictionPolicy::Lru.build(1, EXPERTS));
    let mut traffic = Traffic::new(residency, EXPERTS, vec![true], EXPERTS, 2);
    traffic.bring(&HotExperts { layers: vec![vec![2]] });
    let key = |expert| ExpertKey { layer: 0, expert };
    assert_eq!(traffic.refill(), [Order { key: key(2), home: Home::Bank(0) }]);
    assert!(traffic.begin_pass(100), "so long a prompt uses every expert");
    let ahead: Vec<ExpertKey> = traffic.refill().iter().map(|order| order.key).collect();
    assert_eq!(ahead, [0, 1, 3, 4, 5].map(key));
    // The layer claims it; as it fails, the layer reads it itself.
    let demand = Demand { expert: 2, banked: false, counts: false };
    assert_eq!(traffic.begin(0, &[demand], None, &mut Counters::new(1)), []);
    assert!(!traffic.landed(Home::Bank(0), false, false).asked);
    for index in 0..5 {
        traffic.landed(Home::Arena(index), true, false);
    }
    assert_eq!(traffic.refill().iter().map(|order| order.key).collect::<Vec<_>>(), [key(2)]);
}

fn key(layer: usize, expert: usize) -> ExpertKey {
    ExpertKey { layer, expert }
}

/// A demand that brings nothing into the bank.
fn transient(expert: usize) -> Demand {
    Demand { expert, banked: false, counts: false }
}

/// While an expert waits for room in the arena it does not come into the bank: the copy that is not compared with its
/// checksum would be taken for the one that is.
#[test]
fn nothing_is_brought_while_the_pass_waits_for_room() {
    let residency = Residency::new(3, 1, EvictionPolicy::Lru.build(1, EXPERTS));
    let mut traffic = Traffic::new(residency, 1, vec![true], EXPERTS, 2);
    assert!(traffic.begin(0, &[transient(0), transient(1)], None, &mut Counters::new(1)).is_empty());
    traffic.bring(&HotExperts { layers: vec![vec![1]] });
    assert_eq!(traffic.refill(), [Order { key: key(0, 0), home: Home::Arena(0) }]);
    traffic.landed(Home::Arena(0), true, false);
    assert_eq!(traffic.checked(&[(key(0, 0), true)]), Ok(vec![key(0, 0)]));
    assert_eq!(traffic.hand_out(1), [0]);
    assert_eq!(traffic.refill(), [], "expert 1 waits for the arena");
    traffic.done(&[0]);
    assert_eq!(traffic.refill(), [Order { key: key(0, 1), home: Home::Arena(0) }]);
}

/// An expert that was brought, never used and evicted is a read of the pass when it comes again through the arena: if that
/// copy is damaged, the layer fails at once and the slot is free.
#[test]
fn a_mark_says_nothing_of_another_copy() {
    let residency = Residency::new(1, 1, EvictionPolicy::Lru.build(1, EXPERTS));
    let mut traffic = Traffic::new(residency, 1, vec![true], EXPERTS, 2);
    traffic.bring(&HotExperts { layers: vec![vec![1]] });
    assert_eq!(traffic.refill(), [Order { key: key(0, 1), home: Home::Bank(0) }]);
    traffic.landed(Home::Bank(0), true, false);
    // Another takes its slot.
    let banked = Demand { expert: 2, banked: true, counts: true };
    let orders = traffic.begin(0, &[banked], None, &mut Counters::new(1));
    assert_eq!(orders, [Order { key: key(0, 2), home: Home::Bank(0) }]);
    traffic.landed(Home::Bank(0), true, false);
    assert_eq!(traffic.checked(&[(key(0, 2), true)]), Ok(vec![key(0, 2)]));
    assert_eq!(traffic.hand_out(1), [2]);
    traffic.end();

    traffic.begin(0, &[transient(1)], None, &mut Counters::new(1));
    assert_eq!(traffic.refill(), [Order { key: key(0, 1), home: Home::Arena(0) }]);
    traffic.landed(Home::Arena(0), true, false);
    let failures = traffic.background.failures;
    assert_eq!(traffic.checked(&[(key(0, 1), false)]), Err(key(0, 1)));
    assert_eq!(traffic.background.failures, failures, "nothing that came in the background has failed");
    assert_eq!(traffic.arena.usage(0), Use::Free);
}

/// An expert that the pass must read itself takes the place of one that was read ahead.
#[test]
fn what_was_read_ahead_makes_room() {
    let residency = Residency::new(1, 2, EvictionPolicy::Lru.build(2, EXPERTS));
    let mut traffic = Traffic::new(residency, 2, vec![true; 2], EXPERTS, 2);
    traffic.bring(&HotExperts { layers: vec![vec![0]] });
    assert_eq!(traffic.refill(), [Order { key: key(0, 0), home: Home::Bank(0) }]);
    traffic.begin(0, &[transient(0)], None, &mut Counters::new(2));
    assert!(traffic.expect(1));
    let ahead = [(0, 0), (1, 1)].map(|(expert, slot)| Order { key: key(1, expert), home: Home::Arena(slot) });
    assert_eq!(traffic.refill(), ahead);
    traffic.landed(Home::Arena(0), true, false);
    traffic.landed(Home::Arena(1), true, false);
    assert!(!traffic.landed(Home::Bank(0), false, false).asked, "the pass reads it itself");
    assert_eq!(traffic.refill(), [Order { key: key(0, 0), home: Home::Arena(0) }]);
    assert!(traffic.landed(Home::Arena(0), true, false).asked);
    assert_eq!(traffic.checked(&[(key(0, 0), true)]), Ok(vec![key(0, 0)]));
    assert_eq!(traffic.hand_out(1), [0]);
    traffic.done(&[0]);
    assert_eq!(traffic.refill().first(), Some(&Order { key: key(1, 2), home: Home::Arena(0) }));
    assert!(traffic.ahead.contains(&key(1, 0)), "what made room is read later");
}
