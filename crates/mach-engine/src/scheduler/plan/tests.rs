use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { chunk: 64, interleave: 16, batch: 4, continuous: true, budget: None };

/// Ten bytes a token.
fn bytes(tokens: usize) -> usize {
    10 * tokens
}

fn view<'a>(active: &'a [Active], paused: &'a [Paused], pending: &'a [Pending]) -> View<'a> {
    View { limits: LIMITS, active, paused, pending, queued: false, bytes: &bytes }
}

fn decoding(request: u64) -> Active {
    Active { request, tokens: 50, unseen: 1, limit: 500, decoding: true, ..Active::default() }
}

fn reading(request: u64, unseen: usize) -> Active {
    Active { request, tokens: unseen, unseen, limit: unseen + 100, ..Active::default() }
}

fn waiting(request: u64) -> Pending {
    Pending { request, tokens: 20, limit: 100, ..Pending::default() }
}

fn shares(step: Step) -> Vec<Share> {
    match step {
        Step::Run(Pass::Batch(shares)) => shares,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_to_do_is_slept_through_and_the_queue_wakes() {
    assert_eq!(plan(&view(&[], &[], &[])), Step::Sleep);
    assert_eq!(plan(&View { queued: true, ..view(&[], &[], &[]) }), Step::Take);
}

#[test]
fn a_lone_sequence_goes_by_cycles_unless_others_wait_for_its_prompt() {
    assert_eq!(plan(&view(&[decoding(1)], &[], &[])), Step::Run(Pass::Cycle));
    let sibling = Pending { started: true, ..waiting(1) };
    assert_eq!(shares(plan(&view(&[decoding(1)], &[], &[sibling]))).len(), 1);
    assert_eq!(shares(plan(&view(&[reading(1, 9)], &[], &[])))[0].rows, 9);
}

#[test]
fn prompts_share_what_decoding_sequences_wait_for() {
    let rows = |active: &[Active]| -> Vec<usize> {
        shares(plan(&view(active, &[], &[]))).iter().map(|share| share.rows).collect()
    };
    assert_eq!(rows(&[reading(1, 100), reading(2, 100)]), [64, 0]);
    assert_eq!(rows(&[decoding(1), reading(2, 10), reading(3, 100)]), [1, 10, 6]);
    let found = shares(plan(&view(&[decoding(1), reading(2, 10)], &[], &[])));
    assert_eq!(found[0], Share { rows: 1, purpose: Purpose::Decode, chooses: true });
    assert_eq!(found[1], Share { rows: 10, purpose: Purpose::Prompt, chooses: true });
    let warm = Active { warm: true, ..reading(1, 10) };
    assert!(!shares(plan(&view(&[warm], &[], &[])))[0].chooses, "a warmed prompt has no answer");
}

#[test]
fn a_suspect_runs_alone_and_takes_its_whole_chunk() {
    let active = [decoding(1), Active { suspect: true, ..reading(2, 100) }, decoding(3)];
    let rows: Vec<usize> = shares(plan(&view(&active, &[], &[]))).iter().map(|share| share.rows).collect();
    assert_eq!(rows, [0, 64, 0]);
}

#[test]
fn choices_start_where_fewest_are_at_work() {
    let more = Pending { started: true, prompt_read: true, ..waiting(1) };
    assert_eq!(plan(&view(&[decoding(1)], &[], &[more, waiting(2)])), Step::Start(1));
    let unread = Pending { started: true, ..waiting(1) };
    assert!(matches!(plan(&view(&[reading(1, 9)], &[], &[unread])), Step::Run(_)));
}

#[test]
fn nobody_overtakes_who_waits_for_memory_or_the_drive() {
    let limits = Limits { budget: Some(4_000), ..LIMITS };
    let big = Pending { tokens: 300, limit: 400, ..waiting(2) };
    let of = |pending: &[Pending]| plan(&View { limits, ..view(&[decoding(1)], &[], pending) });
    assert_eq!(of(&[waiting(2)]), Step::Run(Pass::Cycle), "306 tokens of each would be too much");
    assert_eq!(of(&[big, waiting(3)]), Step::Run(Pass::Cycle));
    let slow = Pending { reading: true, ..waiting(2) };
    assert_eq!(plan(&view(&[decoding(1)], &[], &[slow, waiting(3)])), Step::Run(Pass::Cycle));
    let queued = plan(&View { queued: true, ..view(&[decoding(1)], &[], &[slow]) });
    assert_eq!(queued, Step::Run(Pass::Cycle), "the queue waits behind it");
}

#[test]
fn without_continuous_batching_one_request_runs_at_a_time() {
    let limits = Limits { continuous: false, ..LIMITS };
    assert_eq!(
        plan(&View { limits, queued: true, ..view(&[decoding(1)], &[], &[]) }),
        Step::Run(Pass::Cycle)
    );
}

#[test]
fn the_youngest_gives_way_and_comes_back_first() {
    let limits = Limits { budget: Some(1_000), ..LIMITS };
    let active = [decoding(3), decoding(1), Active { choice: 1, ..decoding(3) }];
    assert_eq!(plan(&View { limits, ..view(&active, &[], &[]) }), Step::Pause(2));
    let paused = [Paused { tokens: 50, limit: 60 }];
    assert_eq!(plan(&View { limits, ..view(&[], &paused, &[waiting(9)]) }), Step::Resume);
    let small = [Active { limit: 40, tokens: 30, ..decoding(1) }];
    assert_eq!(plan(&View { limits, ..view(&small, &paused, &[waiting(9)]) }), Step::Resume);
    assert_eq!(
        plan(&View { limits, ..view(&[decoding(1)], &paused, &[waiting(9)]) }),
        Step::Run(Pass::Cycle)
    );
}

prop_compose! {
    fn any_active()(request in 1u64..6, choice in 0u32..3, tokens in 1usize..400, part in 0usize..400,
                    room in 1usize..300, state in 0u8..8) -> Active {
        let decoding = state & 1 == 1;
        let unseen = if decoding { 1 } else { 1 + part % tokens };
        Active { request, choice, tokens, unseen, limit: tokens + room, decoding,
                 warm: !decoding && state & 2 == 2, suspect: state == 7 }
    }
}

prop_compose! {
    fn any_pending()(request in 1u64..6, tokens in 1usize..400, room in 1usize..300, state in 0u8..8) -> Pending {
        let started = state & 1 == 1;
        Pending { request, started, prompt_read: started && state & 2 == 2, reading: !started && state & 4 == 4,
                  tokens, limit: tokens + room }
    }
}

prop_compose! {
    fn any_limits()(chunk in 0usize..300, interleave in 0usize..300, batch in 1usize..6, continuous: bool,
                    budget in prop::option::of(0usize..20_000)) -> Limits {
        Limits { chunk, interleave, batch, continuous, budget }
    }
}

proptest! {
    /// Whatever waits: the step can be taken, and a pass keeps its promises.
    #[test]
    fn every_step_can_be_taken(
        active in prop::collection::vec(any_active(), 0..6),
        pending in prop::collection::vec(any_pending(), 0..4),
        paused in prop::collection::vec((1usize..400, 1usize..300), 0..3),
        limits in any_limits(),
        queued: bool,
    ) {
        let paused: Vec<Paused> =
            paused.into_iter().map(|(tokens, room)| Paused { tokens, limit: tokens + room }).collect();
        let view =
            View { limits, active: &active, paused: &paused, pending: &pending, queued, bytes: &bytes };
        let needed: usize = active.iter().map(|s| bytes(s.tokens + 1)).sum();
        let over = limits.budget.is_some_and(|budget| needed > budget);
        let soon = |tokens: usize, limit: usize| bytes((tokens + AHEAD).min(limit));
        let held: usize = active.iter().map(|s| soon(s.tokens, s.limit)).sum();
        let with_one_more =
            |tokens, limit| limits.budget.is_none_or(|budget| held + soon(tokens, limit) <= budget);
        match plan(&view) {
            Step::Pause(index) => {
                prop_assert!(over && active.len() > 1);
                let age = |s: &Active| (s.request, s.choice);
                prop_assert!(active.iter().all(|s| age(s) <= age(&active[index])));
            }
            Step::Resume => {
                let back = &paused[0];
                if !active.is_empty() {
                    prop_assert!(active.len() < limits.batch && with_one_more(back.tokens, back.limit));
                }
            }
            Step::Take => {
                prop_assert!(queued && paused.is_empty() && pending.iter().all(|p| p.started));
                prop_assert!(active.is_empty() || limits.continuous && active.len() < limits.batch);
            }
            Step::Start(index) => {
                let next = pending[index];
                prop_assert!(!next.started || next.prompt_read);
                if !active.is_empty() {
                    prop_assert!(!next.reading);
                    prop_assert!(paused.is_empty() && active.len() < limits.batch);
                    prop_assert!(with_one_more(next.tokens, next.limit));
                }
            }
            Step::Run(Pass::Cycle) => prop_assert!(active.len() == 1 && active[0].decoding),
            Step::Run(Pass::Batch(shares)) => {
                prop_assert_eq!(shares.len(), active.len());
                prop_assert!(active.len() == 1 || !over);
                let suspect = active.iter().position(|s| s.suspect);
                let prompts: usize =
                    shares.iter().zip(&active).filter(|(_, s)| s.unseen > 1).map(|(share, _)| share.rows).sum();
                prop_assert!(prompts <= limits.chunk.max(1));
                let decoding = active.iter().filter(|s| s.decoding).count();
                if decoding > 0 && suspect.is_none() {
                    prop_assert!(prompts <= limits.interleave.min(limits.chunk.saturating_sub(decoding)).max(1));
                }
                for (index, (share, s)) in shares.iter().zip(&active).enumerate() {
                    prop_assert!(share.rows <= s.unseen);
                    if suspect.is_some_and(|only| only != index) {
                        prop_assert_eq!(share.rows, 0);
                    } else if s.decoding {
                        prop_assert_eq!((share.rows, share.purpose, share.chooses), (1, Purpose::Decode, true));
                    } else {
                        prop_assert_eq!(share.purpose, Purpose::Prompt);
                        prop_assert_eq!(share.chooses, share.rows == s.unseen && !s.warm);
                    }
                }
                // Something always goes on.
                prop_assert!(shares.iter().any(|share| share.rows > 0));
            }
            Step::Sleep => {
                prop_assert!(active.is_empty() && paused.is_empty());
                prop_assert!(!queued || !pending.is_empty());
                prop_assert!(pending.iter().all(|p| p.started && !p.prompt_read));
            }
        }
    }
}

mod simulation;
