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
