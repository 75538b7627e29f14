//! Requests that share passes: their answers are those of running alone, and nobody stalls or breaks anybody.

mod double;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use double::{Double, Seen};
use mach_checkpoint::Checkpoint;
use mach_cpu::load;
use mach_engine::{
    CacheHints, DecodeMode, Engine, EngineConfig, EngineError, Event, Events, FinishReason, GenerateRequest,
    Generator as _, OutputControl, Preset, SamplingParams, Speculation, TextTokenizer, TokenLogprob,
};
use mach_models::{ExpertMode, LoadOptions, StreamingOptions};
use mach_prefix::PrefixConfig;
use mach_specdec::policy::{GuardSpec, PolicySpec};
use mach_specdec::{Draft, DraftOptions};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
const VOCAB: usize = 16384;

fn tokenizer() -> Arc<TextTokenizer> {
    let tokenizer = tokenizers::Tokenizer::from_file(format!("{ROOT}demo/tokenizer.json")).unwrap();
    Arc::new(TextTokenizer::new(tokenizer, VOCAB).unwrap())
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
        output: OutputControl::default(),
        warm: false,
        policy: None,
    }
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Answer {
    text: String,
    logprobs: Vec<TokenLogprob>,
    finish: Option<(FinishReason, usize)>,
}

fn take(answers: &mut Vec<Answer>, event: Event) -> Result<(), EngineError> {
    let choice = match &event {
        Event::Text { choice, .. } | Event::Finished { choice, .. } => *choice as usize,
        Event::Embedding(_) => return Ok(()),
        Event::Failed(error) => return Err(error.clone()),
    };
    answers.resize((choice + 1).max(answers.len()), Answer::default());
    match event {
        Event::Text { text, logprobs, .. } => {
            answers[choice].text.push_str(&text);
            answers[choice].logprobs.extend(logprobs);
        }
        Event::Finished { reason, tokens, .. } => answers[choice].finish = Some((reason, tokens)),
        Event::Embedding(_) | Event::Failed(_) => {}
    }
    Ok(())
}

fn collect(mut events: Events) -> Result<Vec<Answer>, EngineError> {
    let mut answers = Vec::new();
    while let Some(event) = events.blocking_recv() {
        take(&mut answers, event)?;
    }
    Ok(answers)
}

fn demo(change: impl FnOnce(&mut EngineConfig), streaming: bool, drafted: bool) -> Engine {
    let checkpoint = Checkpoint::open(format!("{ROOT}demo").as_ref()).unwrap();
    let options = StreamingOptions { bank_slots: 64, arena_slots: 32, ..StreamingOptions::default() };
    let experts = if streaming { ExpertMode::Streaming(options) } else { ExpertMode::Resident };
    let options = LoadOptions { threads: 1, experts, ..LoadOptions::default() };
    let mut model = load(&checkpoint, &options, &mut |_| ()).unwrap();
    let mut config = EngineConfig::default();
    change(&mut config);
    if drafted {
        let dir = format!("{ROOT}demo/draft");
        let draft = model.load_draft(dir.as_ref(), DraftOptions::default()).unwrap();
        config.speculation.draft = Some(Arc::new(draft) as Arc<dyn Draft>);
    }
    Engine::start(model, tokenizer(), config).unwrap()
}

/// Requests of every kind, long and short.
fn requests() -> Vec<GenerateRequest> {
    let chat = |text: &str| {
        let text = format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
        tokenizer().encode(&text, false).unwrap()
    };
    let sampled = SamplingParams {
        temperature: 0.8,
        top_p: 0.9,
        repetition_penalty: 1.1,
        seed: 3,
        ..SamplingParams::greedy()
    };
    let greedy = SamplingParams::greedy();
    let code = chat("Write a binary search in Python");
    let long = chat(&"The sea is blue and deep. ".repeat(40));
    vec![
        GenerateRequest { sampling: greedy.clone(), ..request(code.clone(), 60) },
        GenerateRequest { sampling: sampled.clone(), logprobs: Some(2), ..request(long, 30) },
        GenerateRequest { sampling: sampled.clone(), choices: 3, ..request(code.clone(), 20) },
        GenerateRequest { stop: vec!["return".into()], sampling: greedy, ..request(code, 80) },
        GenerateRequest { sampling: sampled, preset: Preset::Summarization, ..request(chat("Hello"), 40) },
    ]
}

/// Submits each request when the one before has said `gap` things, so that they join and leave at odd times.
fn all_at_odd_times(engine: &Engine, requests: &[GenerateRequest], gap: usize) -> Vec<Vec<Answer>> {
    let mut running: Vec<(Events, Vec<Answer>)> = Vec::new();
    for request in requests {
        running.push((engine.submit(request.clone()).unwrap(), Vec::new()));
        let (events, answers) = running.last_mut().unwrap();
        for _ in 0..gap {
            let Some(event) = events.blocking_recv() else { break };
            take(answers, event).unwrap();
        }
    }
    running
        .into_iter()
        .map(|(mut events, mut answers)| {
            while let Some(event) = events.blocking_recv() {
                take(&mut answers, event).unwrap();
            }
            answers
        })
        .collect()
}

#[test]
fn answers_are_those_of_running_alone() {
    let requests = requests();
    let alone = demo(|c| c.continuous_batching = false, false, false);
    let expected: Vec<_> =
        requests.iter().map(|r| collect(alone.submit(r.clone()).unwrap()).unwrap()).collect();
    assert_eq!(
        alone.stats().batched_passes,
        expected[2][0].finish.map_or(0, |f| f.1 as u64 - 1),
        "n = 3 only"
    );
    let stats = alone.stats();
    assert_eq!(stats.batched_tokens, 3 * stats.batched_passes, "every pass of those brings three");

    let speculating = |policy| Speculation { draft: None, policy, guard: GuardSpec::Off };
    type Change<'a> = Box<dyn Fn(&mut EngineConfig) + 'a>;
    let ways: Vec<(&str, bool, usize, Change<'_>)> = vec![
        ("resident", false, 1, Box::new(|c| (c.max_batch, c.prefill_interleave) = (4, 7))),
        ("drafted", false, 3, Box::new(|c| c.speculation = speculating(PolicySpec::Fixed(16)))),
        ("streamed", true, 2, Box::new(|c| (c.max_batch, c.prefill_chunk) = (3, 50))),
        (
            "cached, drafted",
            false,
            2,
            Box::new(|c| {
                c.speculation = speculating(PolicySpec::CostAware);
                let memory = PrefixConfig { max_bytes: 1 << 28, directory: None, ..PrefixConfig::default() };
                c.prefix = Some(memory);
            }),
        ),
    ];
    for (way, streaming, gap, change) in ways {
        let engine = demo(change, streaming, way.contains("drafted"));
        let answers = all_at_odd_times(&engine, &requests, gap);
        assert_eq!(answers, expected, "{way}");
        assert!(engine.stats().batched_passes > 20, "{way}: {:?}", engine.stats());
        assert_eq!(all_at_odd_times(&engine, &requests, gap + 2), expected, "{way}, again");
    }
}

/// An engine over the double, and what happened inside.
fn double(change: impl FnOnce(&mut Double, &mut EngineConfig)) -> (Engine, Arc<Seen>) {
    let mut double = Double::new(VOCAB, 2000);
    let mut config = EngineConfig::default();
    change(&mut double, &mut config);
    let seen = Arc::clone(&double.seen);
    (Engine::start(Box::new(double), tokenizer(), config).unwrap(), seen)
}

fn slow(d: &mut Double) {
    d.pace = Duration::from_millis(1);
}

/// The first words of an answer that goes on for long.
fn running(engine: &Engine, prompt: Vec<u32>) -> Events {
    let mut events = engine.submit(request(prompt, 1500)).unwrap();
    events.blocking_recv().unwrap();
    events
}

#[test]
fn those_who_run_out_of_memory_give_way_and_say_the_same() {
    // 100 bytes a token: three prompts of 300 fit, three answers of 400 do not.
    let requests: Vec<_> = (1..4).map(|i| request(vec![i; 300], 400)).collect();
    let (alone, _) = double(|_, _| ());
    let expected: Vec<_> =
        requests.iter().map(|r| collect(alone.submit(r.clone()).unwrap()).unwrap()).collect();
    for cached in [false, true] {
        let (engine, seen) = double(|d, c| {
            slow(d);
            c.state_budget = Some(180_000);
            c.prefix = cached.then(|| PrefixConfig {
                directory: None,
                max_bytes: 1 << 20,
                ..PrefixConfig::default()
            });
        });
        let events: Vec<_> = requests.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        let answers: Vec<_> = events.into_iter().map(|e| collect(e).unwrap()).collect();
        assert_eq!(answers, expected);
        let stats = engine.stats();
        assert!(stats.preemptions > 0 && stats.paused == 0, "{stats:?}");
        assert_eq!(seen.most_segments.load(Ordering::SeqCst), 3);
    }
}

#[test]
fn a_prompt_does_not_stall_those_who_decode() {
    let (engine, seen) = double(|d, c| {
        slow(d);
        c.prefill_interleave = 32;
    });
    let events = running(&engine, vec![1]);
    collect(engine.submit(request(vec![2; 900], 1)).unwrap()).unwrap();
    assert_eq!(seen.longest_segment.load(Ordering::SeqCst), 32);
    drop(events);
    // Alone it may take the whole chunk.
    collect(engine.submit(request(vec![3; 900], 1)).unwrap()).unwrap();
    assert_eq!(seen.longest_segment.load(Ordering::SeqCst), 512);
}

#[test]
fn a_request_that_breaks_a_pass_is_the_only_one_to_fail() {
    let good: Vec<_> = (1..4).map(|i| request(vec![i; 20], 60)).collect();
    let (alone, _) = double(|_, _| ());
    let expected: Vec<_> = good.iter().map(|r| collect(alone.submit(r.clone()).unwrap()).unwrap()).collect();
    let (engine, seen) = double(|d, _| {
        slow(d);
        (d.panic_on, d.fail_on) = (Some(666), Some(667));
    });
    for bad in [666, 667] {
        let events: Vec<_> = good.iter().map(|r| engine.submit(r.clone()).unwrap()).collect();
        let error = collect(engine.submit(request(vec![5, bad], 60)).unwrap()).unwrap_err();
        assert!(matches!(error, EngineError::Model(_)), "{error}");
        let answers: Vec<_> = events.into_iter().map(|e| collect(e).unwrap()).collect();
        assert_eq!(answers, expected);
    }
    assert_eq!(seen.most_segments.load(Ordering::SeqCst), 4, "the bad one was among the good ones");
}

#[test]
fn passes_that_fail_only_when_shared_end_after_a_few() {
    let (engine, _) = double(|d, _| {
        slow(d);
        d.fail_shared = true;
    });
    let events = [1, 2].map(|i| engine.submit(request(vec![i], 1500)).unwrap());
    assert!(events.into_iter().any(|e| collect(e).is_err()));
    assert_eq!(
        collect(engine.submit(request(vec![3], 3)).unwrap()).unwrap()[0].finish,
        Some((FinishReason::Length, 3))
    );
}

#[test]
fn many_choices_leave_room_for_others() {
    let (engine, _) = double(|d, _| slow(d));
    let mut many = engine.submit(GenerateRequest { choices: 100, ..request(vec![1], 50) }).unwrap();
    many.blocking_recv().unwrap();
    let started = Instant::now();
    collect(engine.submit(request(vec![2], 10)).unwrap()).unwrap();
    let waited = started.elapsed();
    let mut finished = 0;
    while let Ok(event) = many.try_recv() {
        finished += usize::from(matches!(event, Event::Finished { .. }));
    }
    assert!(finished < 50, "{finished} of 100 choices went first, in {waited:?}");
}

#[test]
fn it_is_told_how_a_request_starts() {
    let (engine, _) = double(|d, _| slow(d));
    let tell = |request| {
        let (events, started) = engine.submit_and_tell(request).unwrap();
        (events, started.blocking_recv().unwrap())
    };
    let (first, started) = tell(request(vec![1], 1500));
    assert_eq!((started.mode, started.active), (DecodeMode::TargetOnly, 1));
    let (second, started) = tell(request(vec![2], 1500));
    assert_eq!((started.mode, started.active), (DecodeMode::Batched, 2));
    // Choices share passes, if the batch has room for more than one.
    let two = || GenerateRequest { choices: 2, ..request(vec![3], 1500) };
    let (third, started) = tell(two());
    assert_eq!((started.mode, started.active), (DecodeMode::Batched, 3));
    drop((first, second, third));
    let (alone, _) = double(|d, c| {
        slow(d);
        c.max_batch = 1;
    });
    let started = alone.submit_and_tell(two()).unwrap().1.blocking_recv().unwrap();
    assert_eq!((started.mode, started.active), (DecodeMode::TargetOnly, 1));
    let (fresh, _) = double(|d, _| slow(d));
    let started = fresh.submit_and_tell(two()).unwrap().1.blocking_recv().unwrap();
    assert_eq!((started.mode, started.active), (DecodeMode::Batched, 1));
    // Those that went away are let go of before the next pass.
    let copies = || GenerateRequest { preset: Preset::Summarization, ..request(vec![3], 2) };
    let alone = (0..1000).any(|_| tell(copies()).1.mode == DecodeMode::Specdec);
    assert!(alone, "a request alone speculates");
}

#[test]
fn time_limits_hold_in_the_queue_and_after() {
    let limit = Duration::from_millis(50);
    let (engine, _) = double(|d, c| {
        slow(d);
        (c.max_batch, c.queue_timeout) = (1, Some(limit));
    });
    let first = running(&engine, vec![1]);
    let waiting = engine.submit(request(vec![2], 1)).unwrap();
    assert_eq!(collect(waiting).unwrap_err(), EngineError::QueueTimeout { limit });
    drop(first);

    let (engine, _) = double(|d, c| {
        slow(d);
        c.request_timeout = Some(limit);
    });
    let error = collect(engine.submit(request(vec![1], 1500)).unwrap()).unwrap_err();
    assert_eq!(error, EngineError::RequestTimeout { limit });
    assert!(collect(engine.submit(request(vec![1], 5)).unwrap()).is_ok());
}

#[test]
fn a_prompt_that_memory_can_never_hold_is_told_the_numbers() {
    let (engine, _) = double(|_, c| c.state_budget = Some(50_000));
    let error = engine.submit(request(vec![1; 600], 1)).unwrap_err();
    assert_eq!(error, EngineError::NeverFits { prompt: 600, context: 500, budget: 50_000 });
    let error = engine.submit(request(vec![1; 2000], 1)).unwrap_err();
    assert_eq!(error, EngineError::ContextLength { prompt: 2000, context: 500 });
}

#[test]
fn without_batching_one_request_runs_after_another() {
    let (engine, seen) = double(|d, c| {
        slow(d);
        c.continuous_batching = false;
    });
    let events = [1, 2, 3].map(|i| engine.submit(request(vec![i], 20)).unwrap());
    for events in events {
        collect(events).unwrap();
    }
    assert_eq!(seen.most_segments.load(Ordering::SeqCst), 1);
}
