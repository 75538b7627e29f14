//! The cache against a model of it, its limits, and what comes back after a restart.

mod common;

use std::time::Duration;

use common::{check, insert, open, tokens};
use mach_prefix::{Kind, Level};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Insert(Vec<u32>, bool),
    Lookup(Vec<u32>),
}

fn prompt() -> impl Strategy<Value = Vec<u32>> {
    // Two letters: prompts share beginnings all the time.
    prop::collection::vec(0u32..2, 1..24)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (prompt(), any::<bool>()).prop_map(|(p, l)| Step::Insert(p, l)),
        prompt().prop_map(Step::Lookup)
    ];
    prop::collection::vec(step, 1..60)
}

/// How far the model says that one can go on.
fn furthest(known: &[(Vec<u32>, bool)], prompt: &[u32], plain: bool, block: usize) -> usize {
    let whole = |(tokens, logits): &(Vec<u32>, bool)| {
        let fits = tokens.len() < prompt.len() || (*logits && tokens.len() == prompt.len());
        if fits && prompt.starts_with(tokens) {
            return tokens.len();
        }
        let same = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let same = same.min(prompt.len() - 1);
        // Shorter beginnings are found from block edges.
        let found = same >= block || (tokens.len() < block && prompt.len() < 2 * block);
        if plain && found { same } else { 0 }
    };
    known.iter().map(whole).max().unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn the_longest_beginning_is_found(steps in steps(), plain in any::<bool>()) {
        let cache = open(None, plain, |_| ());
        let mut known: Vec<(Vec<u32>, bool)> = Vec::new();
        for step in steps {
            match step {
                Step::Insert(tokens, logits) => {
                    insert(&cache, &tokens, plain, logits, Kind::PromptEnd);
                    known.push((tokens, logits));
                }
                Step::Lookup(prompt) => {
                    let restored = cache.lookup(&cache.root(None), &prompt);
                    let found = restored.as_ref().map_or(0, |r| r.image.state.position());
                    let best = furthest(&known, &prompt, plain, 4);
                    if plain {
                        // Beginnings shorter than a block may be missed.
                        prop_assert!(found == best || best < 4, "{found} of {best}");
                    } else {
                        prop_assert_eq!(found, best);
                    }
                    if let Some(restored) = restored {
                        check(&restored, &prompt, plain);
                    }
                }
            }
        }
    }
}

#[test]
fn salts_and_namespaces_do_not_meet() {
    let cache = open(None, false, |_| ());
    let prompt = tokens(1, 50);
    insert(&cache, &prompt[..40], false, false, Kind::PromptEnd);
    assert!(cache.lookup(&cache.root(Some("a")), &prompt).is_none());
    assert!(cache.lookup(&cache.root(None), &prompt).is_some());
    let dir = tempfile::tempdir().unwrap();
    let first = open(Some(dir.path()), false, |_| ());
    let key = insert(&first, &prompt[..40], false, false, Kind::PromptEnd);
    first.save(&key);
    first.close();
    let other = open(Some(dir.path()), false, |c| c.namespace = [1; 32]);
    assert!(other.lookup(&other.root(None), &prompt).is_none());
}

#[test]
fn limits_hold_and_anchors_stay() {
    let bytes = common::image(&tokens(0, 300), false, false).state.bytes();
    let cache = open(None, false, |c| (c.max_bytes, c.max_entries) = (10 * bytes, 6));
    insert(&cache, &tokens(0, 300), false, false, Kind::System);
    for seed in 1..100 {
        insert(&cache, &tokens(seed, 300), false, false, Kind::PromptEnd);
        let l1 = cache.stats().l1;
        assert!(l1.bytes <= l1.max_bytes && l1.entries <= l1.max_entries, "{l1:?}");
    }
    assert!(cache.lookup(&cache.root(None), &tokens(0, 301)).is_some(), "the anchor");
    assert!(cache.lookup(&cache.root(None), &tokens(99, 301)).is_some(), "the newest");
    assert!(cache.stats().l1.evicted_for_entries > 50);
    let tiny = open(None, false, |c| c.max_bytes = 10);
    insert(&tiny, &tokens(0, 300), false, false, Kind::Warmed);
    assert_eq!((tiny.stats().l1.entries, tiny.stats().l1.bytes), (0, 0));
}

/// A conversation that goes on is not pushed out by others with instructions of their own that come in between.
#[test]
fn the_end_of_a_conversation_that_goes_on_stays() {
    let bytes = common::image(&tokens(0, 300), false, false).state.bytes();
    let run = |told: bool| {
        let cache = open(None, false, |c| (c.max_bytes, c.max_entries) = (1000 * bytes, 5));
        let root = cache.root(None);
        let keep = |seed: u32, length: usize, session: u8, kind: Kind| {
            let tokens = tokens(seed, length);
            let image = common::image(&tokens, false, false);
            let turn = told.then(|| cache.turn([session; 32]));
            cache.insert_of(mach_prefix::Snapshot { root, tokens: tokens.into(), image, kind }, turn);
        };
        let mut found = 0;
        for round in 0..6 {
            let length = 400 + 10 * round as usize;
            keep(0, length, 0, Kind::PromptEnd);
            for other in 0..3 {
                let seed = 1 + round * 3 + other;
                keep(seed, 300, seed as u8, Kind::System);
                keep(seed, 350, seed as u8, Kind::PromptEnd);
            }
            let mut prompt = tokens(0, length);
            prompt.extend([1, 2, 3]);
            found += u32::from(cache.lookup(&root, &prompt).is_some());
        }
        found
    };
    assert_eq!(run(true), 6);
    // The first time there is room for everything.
    assert!(run(false) <= 1);
}

#[test]
fn as_many_snapshots_as_are_allowed_stay() {
    let cache = open(None, false, |c| c.max_entries = 3);
    for seed in 0..3 {
        insert(&cache, &tokens(seed, 300), false, false, Kind::PromptEnd);
    }
    assert_eq!((cache.stats().l1.entries, cache.stats().l1.evicted_for_entries), (3, 0));
    insert(&cache, &tokens(3, 300), false, false, Kind::PromptEnd);
    assert_eq!((cache.stats().l1.entries, cache.stats().l1.evicted_for_entries), (3, 1));
    // Bytes up to the last one.
    let bytes = cache.stats().l1.bytes / 3;
    let cache = open(None, false, |c| c.max_bytes = 2 * bytes);
    insert(&cache, &tokens(1, 300), false, false, Kind::PromptEnd);
    insert(&cache, &tokens(2, 300), false, false, Kind::PromptEnd);
    assert_eq!((cache.stats().l1.entries, cache.stats().l1.bytes), (2, 2 * bytes));
}

#[test]
fn the_disk_is_read_for_much_more_than_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    for (further, level) in [(63, Level::L1), (64, Level::L2)] {
        let long = tokens(further, 301 + further as usize);
        let cache = open(Some(dir.path()), false, |_| ());
        let key = insert(&cache, &long[..300 + further as usize], false, false, Kind::PromptEnd);
        cache.save(&key);
        cache.close();
        let again = open(Some(dir.path()), false, |_| ());
        insert(&again, &long[..300], false, false, Kind::PromptEnd);
        assert_eq!(again.reads_disk(&again.root(None), &long), level == Level::L2);
        let found = again.lookup(&again.root(None), &long).unwrap();
        let position = if level == Level::L2 { 300 + further as usize } else { 300 };
        assert_eq!((found.level, found.image.position()), (level, position), "{further} tokens further");
    }
}

#[test]
fn shared_pages_count_once() {
    let cache = open(None, true, |_| ());
    let long = mach_prefix::Image { hot: None, ..common::image(&tokens(3, 1000), true, false) };
    let root = cache.root(None);
    for position in [1000, 768, 512] {
        let image = long.cut(position).unwrap();
        let tokens = tokens(3, 1000).into();
        cache.insert(mach_prefix::Snapshot { root, tokens, image, kind: Kind::Stride });
    }
    assert_eq!(cache.stats().l1.bytes, long.state.bytes());
}

#[test]
fn a_restart_brings_back_what_was_saved() {
    for plain in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let cache = open(Some(dir.path()), plain, |_| ());
        for seed in 0..20 {
            let key =
                insert(&cache, &tokens(seed, 300 + seed as usize), plain, seed % 2 == 0, Kind::PromptEnd);
            cache.save(&key);
            cache.wait_saved(Duration::from_secs(10));
        }
        // Not saved yet: the stop does it.
        insert(&cache, &tokens(50, 900), plain, false, Kind::TurnEnd);
        cache.close();
        let again = open(Some(dir.path()), plain, |_| ());
        for (seed, len) in (0..20).map(|s| (s, 300 + s as usize)).chain([(50, 900)]) {
            let mut prompt = tokens(seed, len);
            prompt.push(7);
            let restored = again.lookup(&again.root(None), &prompt).expect("saved");
            assert_eq!((restored.level, restored.image.state.position()), (Level::L2, len));
            assert_eq!(restored.image.hot.as_deref(), Some(&common::hot(&prompt[..len])));
            check(&restored, &prompt, plain);
            let restored = again.lookup(&again.root(None), &prompt).expect("in memory now");
            assert_eq!(restored.level, Level::L1);
            check(&restored, &prompt, plain);
        }
        let stats = again.stats();
        assert_eq!((stats.l1_hits, stats.l2_hits, stats.misses), (21, 21, 0));
    }
}

#[test]
fn a_warmed_prefix_is_listed_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(Some(dir.path()), false, |_| ());
    let key = insert(&cache, &tokens(1, 100), false, false, Kind::PromptEnd);
    let warmed = cache.warm(&key, Duration::from_secs(10)).expect("warm");
    assert_eq!((warmed.tokens, warmed.levels.as_slice()), (100, &[Level::L1, Level::L2][..]));
    cache.close();
    let again = open(Some(dir.path()), false, |_| ());
    assert_eq!(again.warmed().len(), 1);
    assert_eq!(again.warmed()[0].levels, [Level::L2]);
}

#[test]
fn the_disk_budget_holds() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(Some(dir.path()), false, |c| c.disk_budget = 400_000);
    for seed in 0..60 {
        let key = insert(&cache, &tokens(seed, 300), false, false, Kind::PromptEnd);
        cache.save(&key);
        cache.wait_saved(Duration::from_secs(10));
        let l2 = cache.stats().l2.unwrap();
        assert!(l2.bytes <= 400_000 && l2.save_failures == 0, "{l2:?}");
    }
    assert!(cache.stats().l2.unwrap().evicted_for_budget > 10);
}

#[test]
fn what_is_read_aside_is_in_memory_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(Some(dir.path()), false, |_| ());
    let prompt = tokens(1, 400);
    let key = insert(&cache, &prompt[..300], false, false, Kind::PromptEnd);
    assert!(!cache.reads_disk(&cache.root(None), &prompt));
    cache.save(&key);
    cache.close();
    let again = open(Some(dir.path()), false, |_| ());
    let root = again.root(None);
    assert!(again.reads_disk(&root, &prompt) && !again.reads_disk(&root, &tokens(2, 400)));
    again.preload(&root, &prompt);
    assert!(!again.reads_disk(&root, &prompt));
    let restored = again.lookup(&root, &prompt).expect("a beginning");
    assert_eq!((restored.level, restored.image.position()), (Level::L1, 300));
    check(&restored, &prompt, false);
}

#[test]
fn what_lookups_found_is_counted() {
    let cache = open(None, false, |_| ());
    let known = tokens(1, 300);
    insert(&cache, &known, false, false, Kind::PromptEnd);
    // Less than a block is left to compute; a block; nothing is known.
    for more in [1, 3, 4] {
        let prompt = [&known[..], &tokens(9, more)].concat();
        assert_eq!(cache.lookup(&cache.root(None), &prompt).expect("known").image.position(), 300);
    }
    assert!(cache.lookup(&cache.root(None), &tokens(2, 300)).is_none());
    let stats = cache.stats();
    assert_eq!((stats.lookups, stats.hits, stats.partial_hits, stats.misses), (4, 2, 1, 1));
    assert_eq!((stats.l1_hits, stats.l2_hits, stats.tokens_saved), (3, 0, 900));
}

#[test]
fn what_is_read_for_its_beginning_is_known_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(Some(dir.path()), true, |_| ());
    let saved = tokens(1, 600);
    let key = insert(&cache, &saved, true, false, Kind::PromptEnd);
    cache.save(&key);
    cache.close();
    let again = open(Some(dir.path()), true, |_| ());
    let root = again.root(None);
    let edited = [&saved[..400], &tokens(2, 100)].concat();
    let restored = again.lookup(&root, &edited).expect("a beginning");
    assert_eq!((restored.level, restored.image.position()), (Level::L2, 400));
    check(&restored, &edited, true);
    let longer = [&saved[..], &[7]].concat();
    let restored = again.lookup(&root, &longer).expect("all of it");
    assert_eq!((restored.level, restored.image.position()), (Level::L1, 600));
    check(&restored, &longer, true);
}

#[test]
fn a_stop_saves_the_end_of_a_conversation_and_not_the_turns_before() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(Some(dir.path()), false, |_| ());
    for length in [300, 350, 400] {
        insert(&cache, &tokens(1, length), false, false, Kind::TurnEnd);
    }
    insert(&cache, &tokens(2, 300), false, false, Kind::TurnEnd);
    cache.close();
    let again = open(Some(dir.path()), false, |_| ());
    assert_eq!(again.stats().l2.unwrap().files, 2);
    let prompt = [&tokens(1, 400)[..], &[7]].concat();
    let restored = again.lookup(&again.root(None), &prompt).expect("saved");
    assert_eq!((restored.level, restored.image.position()), (Level::L2, 400));
}
