//! Work that nobody waits for any more ends.

mod double;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use double::{Double, Seen};
use mach_engine::{
    CacheHints, Engine, EngineConfig, Event, Events, GenerateRequest, Generator as _, OutputControl, Preset,
    SamplingParams, TextTokenizer,
};

const VOCAB: usize = 16384;
const PACE: Duration = Duration::from_millis(2);
/// Passes that a request takes if nothing ends it: more than two seconds of them.
const LONG: u32 = 1500;

fn engine(max_batch: usize, change: impl FnOnce(&mut EngineConfig)) -> (Engine, Arc<Seen>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
    let tokenizer = TextTokenizer::new(tokenizers::Tokenizer::from_file(path).unwrap(), VOCAB).unwrap();
    let mut double = Double::new(VOCAB, 2000);
    double.pace = PACE;
    let seen = Arc::clone(&double.seen);
    let mut config = EngineConfig { max_batch, ..EngineConfig::default() };
    change(&mut config);
    (Engine::start(Box::new(double), Arc::new(tokenizer), config).unwrap(), seen)
}

fn request(prompt: Vec<u32>, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt,
        choices: 1,
        max_tokens: Some(max_tokens),
        sampling: SamplingParams { temperature: 1.0, seed: 11, ..SamplingParams::greedy() },
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        logprobs: None,
        preset: Preset::None,
        cache: CacheHints::default(),
        warm: false,
        output: OutputControl::default(),
        policy: None,
    }
}

fn finish(mut events: Events) {
    while let Some(event) = events.blocking_recv() {
        if matches!(event, Event::Finished { .. }) {
            return;
        }
    }
    panic!("it did not finish");
}

fn passes(seen: &Seen) -> usize {
    seen.passes.load(Ordering::SeqCst)
}

/// Waits until the model rests; gives the passes that it ran by then.
fn rest(seen: &Seen) -> usize {
    loop {
        let before = passes(seen);
        std::thread::sleep(25 * PACE);
        if passes(seen) == before {
            return before;
        }
    }
}

#[test]
fn a_client_that_leaves_ends_its_answer() {
    // The last has most of its choices still to begin.
    for (max_batch, choices) in [(1, 1), (4, 1), (4, 3), (1, 60)] {
        let (engine, seen) = engine(max_batch, |_| ());
        let mut events = engine.submit(GenerateRequest { choices, ..request(vec![1], LONG) }).unwrap();
        for _ in 0..5 {
            events.blocking_recv().unwrap();
        }
        drop(events);
        let left = passes(&seen);
        let ran = rest(&seen) - left;
        assert!(ran < 20, "{ran} more passes in batches of {max_batch}");
    }
}

#[test]
fn a_client_that_leaves_ends_its_prompt() {
    let (engine, seen) = engine(4, |c| c.prefill_chunk = 2);
    let events = engine.submit(request(vec![1; 1800], 2)).unwrap();
    while passes(&seen) == 0 {
        std::thread::yield_now();
    }
    drop(events);
    let left = passes(&seen);
    let ran = rest(&seen) - left;
    assert!(ran < 20, "{ran} more passes of the prompt");
}

#[test]
fn whoever_leaves_the_queue_is_never_computed() {
    let (engine, seen) = engine(1, |c| c.prefill_chunk = 2000);
    let running = engine.submit(request(vec![1], LONG)).unwrap();
    while engine.waiting() > 0 || passes(&seen) == 0 {
        std::thread::yield_now();
    }
    // Told by their length, should the model see them.
    let gone: Vec<_> = (0..5).map(|_| engine.submit(request(vec![1; 300], LONG)).unwrap()).collect();
    let stays = engine.submit(request(vec![1; 7], 2)).unwrap();
    assert_eq!(engine.waiting(), 6);
    drop(gone);
    assert_eq!(engine.waiting(), 1);
    let before = passes(&seen);
    drop(running);
    finish(stays);
    let ran = passes(&seen) - before;
    assert!(ran < 20, "{ran} passes before whoever stayed was done");
    assert_eq!(seen.longest_segment.load(Ordering::SeqCst), 7, "nobody else's prompt was read");
}

#[test]
fn whoever_is_paused_and_leaves_does_not_come_back() {
    // Room for the states of two that have only begun.
    let (engine, seen) = engine(2, |c| c.state_budget = Some(100 * 1200));
    let first = engine.submit(request(vec![1; 10], 1000)).unwrap();
    let mut second = engine.submit(request(vec![2; 10], 1000)).unwrap();
    second.blocking_recv().unwrap();
    while engine.stats().preemptions == 0 {
        std::thread::sleep(PACE);
    }
    drop(second);
    let gone = passes(&seen);
    finish(first);
    // One token a pass is left to the first; the other's thousand do not follow.
    let ran = rest(&seen) - gone;
    assert!(ran < 700, "{ran} passes");
}
