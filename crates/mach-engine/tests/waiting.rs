//! What waits: requests for their turn, and answers for their readers.

// Other test binaries use more of it.
#[allow(dead_code)]
mod double;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use double::{Double, Seen};
use mach_engine::{
    CacheHints, Engine, EngineConfig, EngineError, Event, GenerateRequest, Generator as _, OutputControl,
    Preset, SamplingParams, TextTokenizer, Unread,
};

const VOCAB: usize = 16384;

fn engine(change: impl FnOnce(&mut Double, &mut EngineConfig)) -> (Engine, Arc<Seen>) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
    let tokenizer = TextTokenizer::new(tokenizers::Tokenizer::from_file(path).unwrap(), VOCAB).unwrap();
    let (mut double, mut config) = (Double::new(VOCAB, 2000), EngineConfig::default());
    change(&mut double, &mut config);
    let seen = Arc::clone(&double.seen);
    (Engine::start(Box::new(double), Arc::new(tokenizer), config).unwrap(), seen)
}

fn request(max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: vec![1],
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

fn until(what: &str, mut look: impl FnMut() -> bool) {
    let start = Instant::now();
    while !look() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn the_parts_of_a_request_take_one_place_together() {
    let (engine, _) = engine(|d, c| {
        d.pace = Duration::from_millis(1);
        (c.queue_capacity, c.max_batch) = (2, 1);
    });
    let running = engine.submit(request(1900)).unwrap();
    until("it runs", || engine.waiting() == 0);
    let many = engine.submit_all((0..128).map(|_| request(1)).collect()).unwrap();
    assert_eq!((many.len(), engine.waiting()), (128, 1));
    let one = engine.submit(request(1)).unwrap();
    let refused = engine.submit_all(vec![request(1), request(1)]).unwrap_err();
    assert!(matches!(refused, EngineError::QueueFull { waiting: 2, .. }), "{refused:?}");
    // One part that cannot be answered refuses all of them.
    drop(one);
    let mut bad = request(1);
    bad.prompt = vec![99_999];
    assert!(matches!(engine.submit_all(vec![request(1), bad]), Err(EngineError::Token { .. })));
    assert_eq!(engine.waiting(), 1);
    drop(running);
    for (mut events, _) in many {
        let mut ended = false;
        while let Some(event) = events.blocking_recv() {
            assert!(!matches!(event, Event::Failed(_)), "{event:?}");
            ended |= matches!(event, Event::Finished { .. });
        }
        assert!(ended);
    }
}

#[test]
fn the_parts_of_a_request_wait_for_each_other_without_being_late() {
    let (engine, _) = engine(|d, c| {
        d.pace = Duration::from_millis(5);
        (c.max_batch, c.queue_timeout) = (1, Some(Duration::from_millis(100)));
    });
    // Twenty parts of 50 ms.
    let many = engine.submit_all((0..20).map(|_| request(10)).collect()).unwrap();
    let mut other = engine.submit(request(1)).unwrap();
    let Some(Event::Failed(error)) = other.blocking_recv() else { panic!("another request is late") };
    assert!(matches!(error, EngineError::QueueTimeout { .. }), "{error}");
    for (mut events, _) in many {
        while let Some(event) = events.blocking_recv() {
            assert!(!matches!(event, Event::Failed(_)), "{event:?}");
        }
    }
}

#[test]
fn an_answer_that_nobody_reads_is_given_up() {
    let unread = Arc::new(Unread::new(1 << 20));
    let (engine, seen) = engine(|_, c| c.unread = Arc::clone(&unread));
    let mut events = engine.submit(GenerateRequest { logprobs: Some(20), ..request(1990) }).unwrap();
    until("it starts", || engine.busy());
    until("it is given up", || !engine.busy());
    let passes = seen.passes.load(Ordering::SeqCst);
    assert!(passes < 1000, "{passes} passes for an answer that nobody reads");
    assert!(unread.held() <= 66 << 10, "{}", unread.held());
    let mut last = None;
    while let Some(event) = events.blocking_recv() {
        last = Some(event);
    }
    assert_eq!((last, unread.held()), (Some(Event::Failed(EngineError::Unread)), 0));
    // Who reads gets all of it.
    let mut events = engine.submit(GenerateRequest { logprobs: Some(20), ..request(1990) }).unwrap();
    let mut tokens = 0;
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Text { logprobs, .. } => tokens += logprobs.len(),
            Event::Finished { .. } => break,
            Event::Embedding(_) => {}
            Event::Failed(error) => panic!("{error}"),
        }
    }
    assert_eq!(tokens, 1990);
}
