//! The engine with a test double for the model.

mod double;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use double::Double;
use mach_engine::{
    CacheHints, Engine, EngineConfig, EngineError, Event, Events, FinishReason, GenerateRequest,
    Generator as _, OutputControl, Preset, SamplingParams, StartError, TextTokenizer, TokenLogprob,
};

const VOCAB: usize = 16384;

fn tokenizer() -> Arc<TextTokenizer> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tokenizer.json");
    Arc::new(TextTokenizer::new(tokenizers::Tokenizer::from_file(path).unwrap(), VOCAB).unwrap())
}

fn engine(change: impl FnOnce(&mut Double, &mut EngineConfig)) -> Engine {
    let mut double = Double::new(VOCAB, 2000);
    let mut config = EngineConfig::default();
    change(&mut double, &mut config);
    Engine::start(Box::new(double), tokenizer(), config).unwrap()
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

#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    text: String,
    logprobs: Vec<TokenLogprob>,
    finish: Option<(FinishReason, usize)>,
}

fn collect(mut events: Events, choices: usize) -> Result<Vec<Answer>, EngineError> {
    let mut answers = vec![Answer::default(); choices];
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Text { choice, text, logprobs } => {
                answers[choice as usize].text.push_str(&text);
                answers[choice as usize].logprobs.extend(logprobs);
            }
            Event::Finished { choice, reason, tokens, .. } => {
                answers[choice as usize].finish = Some((reason, tokens));
            }
            Event::Embedding(_) => {}
            Event::Failed(error) => return Err(error),
        }
    }
    Ok(answers)
}

fn answer(engine: &Engine, request: GenerateRequest) -> Answer {
    let choices = request.choices as usize;
    collect(engine.submit(request).unwrap(), choices).unwrap().remove(0)
}

#[test]
fn the_answer_does_not_depend_on_chunks_or_batch() {
    let prompt: Vec<u32> = (0..333).map(|i| i * 37 % 16000).collect();
    let mut seen = Vec::new();
    for (chunk, sequences) in [(512, 1), (512, 4), (7, 4), (1, 2)] {
        let engine = engine(|_, c| (c.prefill_chunk, c.max_batch) = (chunk, sequences));
        let mut r = request(prompt.clone(), 20);
        r.choices = 3;
        seen.push(collect(engine.submit(r).unwrap(), 3).unwrap());
    }
    assert!(seen.windows(2).all(|w| w[0] == w[1]));
    assert_ne!(seen[0][0].text, seen[0][1].text, "choices differ");
    let alone = answer(&engine(|_, _| ()), request(prompt, 20));
    assert_eq!(alone, seen[0][0], "choice 0 is what n = 1 gives");
}

#[test]
fn prompts_are_taken_in_chunks_and_choices_run_together() {
    let mut inside = None;
    let engine = engine(|d, c| {
        c.prefill_chunk = 50;
        inside = Some(Arc::clone(&d.seen));
    });
    let mut r = request(vec![5; 170], 5);
    r.choices = 3;
    collect(engine.submit(r).unwrap(), 3).unwrap();
    let inside = inside.unwrap();
    assert_eq!(inside.longest_segment.load(Ordering::SeqCst), 50);
    assert_eq!(inside.most_segments.load(Ordering::SeqCst), 3);
}

#[test]
fn stop_tokens_end_the_answer_and_are_counted_not_shown() {
    let tokens = tokenizer().encode("one two three", false).unwrap();
    let end = 16370;
    let script: Vec<u32> = [vec![0; 2], tokens.clone(), vec![end]].concat();
    let engine = engine(|d, _| d.script = script[1..].to_vec());
    let mut r = request(vec![1, 2], 50);
    r.stop_token_ids = vec![end];
    r.logprobs = Some(2);
    let a = answer(&engine, r);
    assert_eq!(a.text, "one two three");
    assert_eq!(a.finish, Some((FinishReason::Stop, tokens.len() + 1)));
    assert_eq!(a.logprobs.iter().map(|l| l.id).collect::<Vec<_>>(), tokens);
    assert!(a.logprobs.iter().all(|l| l.top.len() == 2 && l.top[0].0 == l.id && l.logprob > -1e-6));
}

#[test]
fn stop_strings_are_cut_off() {
    let tokens = tokenizer().encode("one two three four", false).unwrap();
    let script: Vec<u32> = [vec![0], tokens].concat();
    let engine = engine(|d, _| d.script = script.clone());
    let mut r = request(vec![1, 2], 50);
    r.stop = vec!["o thr".into()];
    let a = answer(&engine, r);
    assert_eq!((a.text.as_str(), a.finish.unwrap().0), ("one tw", FinishReason::Stop));
}

#[test]
fn max_tokens_and_the_context_bound_the_answer() {
    let engine = engine(|_, c| c.max_context = Some(30));
    assert_eq!(answer(&engine, request(vec![1; 10], 5)).finish, Some((FinishReason::Length, 5)));
    assert_eq!(answer(&engine, request(vec![1; 10], 25)).finish, Some((FinishReason::Length, 20)));
    let mut open = request(vec![1; 10], 1);
    open.max_tokens = None;
    assert_eq!(answer(&engine, open).finish, Some((FinishReason::Length, 20)));
    assert_eq!(
        engine.submit(request(vec![1; 30], 1)).unwrap_err(),
        EngineError::ContextLength { prompt: 30, context: 30 }
    );
    assert_eq!(answer(&engine, request(vec![1; 10], 31)).finish, Some((FinishReason::Length, 20)));
    assert_eq!(answer(&engine, request(vec![1; 10], 0)).finish, Some((FinishReason::Length, 0)));
    assert!(engine.submit(request(vec![1; 30], 0)).is_err());
    assert_eq!(engine.submit(request(vec![], 1)).unwrap_err(), EngineError::EmptyPrompt);
    assert_eq!(
        engine.submit(request(vec![99_999], 1)).unwrap_err(),
        EngineError::Token { id: 99_999, vocab: VOCAB }
    );
}

#[test]
fn memory_bounds_the_context() {
    assert_eq!(engine(|_, c| c.state_budget = Some(12_345)).context(), 123);
    let double = Double::new(VOCAB, 2000);
    let config = EngineConfig { state_budget: Some(100), ..EngineConfig::default() };
    assert!(matches!(
        Engine::start(Box::new(double), tokenizer(), config),
        Err(StartError::Memory { need: 200, budget: 100 })
    ));
}

#[test]
fn a_full_queue_refuses_and_forgets_the_cancelled() {
    let mut inside = None;
    let engine = engine(|d, c| {
        d.pace = Duration::from_millis(2);
        (c.queue_capacity, c.max_batch) = (2, 1);
        inside = Some(Arc::clone(&d.seen));
    });
    let running = engine.submit(request(vec![1], 1000)).unwrap();
    while engine.waiting() > 0 {
        std::thread::yield_now();
    }
    let waiting = [engine.submit(request(vec![1], 2)).unwrap(), engine.submit(request(vec![1], 2)).unwrap()];
    assert!(matches!(
        engine.submit(request(vec![1], 2)).unwrap_err(),
        EngineError::QueueFull { waiting: 2, retry_after: 1.. }
    ));
    drop(waiting);
    let last = engine.submit(request(vec![1], 2)).unwrap();
    drop(running);
    assert_eq!(collect(last, 1).unwrap()[0].finish, Some((FinishReason::Length, 2)));
    assert!(inside.unwrap().passes.load(Ordering::SeqCst) < 900, "nobody waited for those who left");
}

#[test]
fn dropping_the_events_cancels_within_a_step() {
    let mut inside = None;
    let engine = engine(|d, c| {
        d.pace = Duration::from_millis(1);
        c.max_batch = 1;
        inside = Some(Arc::clone(&d.seen));
    });
    let mut events = engine.submit(request(vec![1], 1000)).unwrap();
    events.blocking_recv().unwrap();
    drop(events);
    answer(&engine, request(vec![1], 1));
    assert!(inside.unwrap().passes.load(Ordering::SeqCst) < 900);
}

#[test]
fn a_panic_or_a_failure_ends_one_request_only() {
    let engine = engine(|d, _| (d.panic_on, d.fail_on) = (Some(666), Some(667)));
    for bad in [666, 667] {
        let error = collect(engine.submit(request(vec![1, bad], 5)).unwrap(), 1).unwrap_err();
        assert!(matches!(error, EngineError::Model(_)), "{error}");
        assert_eq!(answer(&engine, request(vec![1], 3)).finish, Some((FinishReason::Length, 3)));
    }
    assert!(engine.running());
}

#[test]
fn closing_finishes_what_was_accepted_and_aborting_does_not() {
    let engine = engine(|d, _| d.pace = Duration::from_millis(1));
    let first = engine.submit(request(vec![1], 20)).unwrap();
    let second = engine.submit(request(vec![1], 20)).unwrap();
    engine.close();
    assert_eq!(engine.submit(request(vec![1], 1)).unwrap_err(), EngineError::ShuttingDown);
    for events in [first, second] {
        assert_eq!(collect(events, 1).unwrap()[0].finish, Some((FinishReason::Length, 20)));
    }
    engine.join();
    assert!(!engine.running());

    let engine = self::engine(|d, _| d.pace = Duration::from_millis(1));
    let events = [1000, 1000].map(|n| engine.submit(request(vec![1], n)).unwrap());
    engine.abort();
    for events in events {
        assert_eq!(collect(events, 1).unwrap_err(), EngineError::ShuttingDown);
    }
}

#[test]
fn a_prompt_is_read_once_for_all_choices() {
    let mut inside = None;
    let engine = engine(|d, c| {
        (c.prefill_chunk, c.max_batch) = (10, 2);
        inside = Some(Arc::clone(&d.seen));
    });
    let mut r = request(vec![5; 100], 2);
    r.choices = 6;
    collect(engine.submit(r).unwrap(), 6).unwrap();
    // Ten passes for the prompt, then one token each for six choices, two at a time.
    assert!(inside.unwrap().passes.load(Ordering::SeqCst) <= 10 + 6);
}

#[test]
fn a_prompt_that_is_warmed_ends_however_many_choices_it_asks_for() {
    let engine = engine(|_, c| c.prefix = Some(mach_prefix::PrefixConfig::default()));
    let r = GenerateRequest { warm: true, choices: 3, ..request(vec![5; 100], 2) };
    let answers = collect(engine.submit(r).unwrap(), 3).unwrap();
    assert_eq!(answers[0].finish, Some((FinishReason::Stop, 0)));
    assert!(answers[1..].iter().all(|a| a.finish.is_none()), "nothing is chosen");
}

#[test]
fn bringing_a_state_up_is_part_of_the_time_to_the_first_token() {
    let pause = Duration::from_millis(60);
    let engine = engine(|d, c| {
        d.start_pace = pause;
        c.prefix = Some(mach_prefix::PrefixConfig::default());
    });
    let mut events = engine.submit(request(vec![1, 2, 3], 2)).unwrap();
    while let Some(event) = events.blocking_recv() {
        if let Event::Finished { timings, .. } = event {
            assert!(timings.prefill >= pause, "{timings:?}");
            return;
        }
    }
    panic!("no end");
}

#[test]
fn a_long_answer_that_is_cut_off_is_not_lost() {
    let prompt: Vec<u32> = (0..40).collect();
    let start = || {
        engine(|d, c| {
            d.pace = Duration::from_millis(1);
            c.prefix = Some(mach_prefix::PrefixConfig { block: 16, stride: 64, ..Default::default() });
        })
    };
    let whole = start();
    let mut events = whole.submit(request(prompt.clone(), 400)).unwrap();
    let mut answer = Vec::new();
    while let Some(event) = events.blocking_recv() {
        if let Event::Finished { ids, .. } = event {
            answer = ids.unwrap();
        }
    }
    // End of the prompt, six times on the way, end of the answer.
    assert_eq!(whole.prefix().unwrap().stats().l1.entries, 8);

    let cut = start();
    let mut events = cut.submit(request(prompt.clone(), 400)).unwrap();
    let mut seen = 0;
    while seen < 100 {
        assert!(matches!(events.blocking_recv(), Some(Event::Text { .. })));
        seen += 1;
    }
    drop(events);
    while cut.busy() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let longer = [prompt.clone(), answer].concat();
    let mut events = cut.submit(request(longer, 2)).unwrap();
    while let Some(event) = events.blocking_recv() {
        if let Event::Finished { cached, .. } = event {
            assert!(cached >= prompt.len() + 99, "{cached}");
            return;
        }
    }
    panic!("no end");
}

#[test]
fn a_prefix_on_disk_is_read_while_others_decode() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        engine(|d, c| {
            d.pace = Duration::from_millis(1);
            let directory = Some(dir.path().to_owned());
            c.prefix = Some(mach_prefix::PrefixConfig { block: 16, directory, ..Default::default() });
        })
    };
    let prompt: Vec<u32> = (0..100).collect();
    let first = start();
    answer(&first, request(prompt.clone(), 2));
    first.close();
    first.join();

    let second = start();
    let mut others = second.submit(request(vec![7], 400)).unwrap();
    assert!(matches!(others.blocking_recv(), Some(Event::Text { .. })));
    let mut events = second.submit(request([prompt.clone(), vec![5]].concat(), 2)).unwrap();
    loop {
        match events.blocking_recv() {
            Some(Event::Finished { cached, .. }) => {
                assert_eq!(cached, prompt.len());
                break;
            }
            Some(Event::Text { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    // Brought into memory by a thread of its own, and found there.
    let stats = second.prefix().unwrap().stats();
    assert_eq!((stats.l1_hits, stats.l2_hits, stats.l2_restore.count), (1, 0, 1));
}
