//! What the model makes of a prompt: the same bits whatever else is at work.

use std::sync::Arc;

use mach_checkpoint::Checkpoint;
use mach_cpu::load;
use mach_engine::{
    CacheHints, Engine, EngineConfig, EngineError, Event, FinishReason, GenerateRequest, Generator as _,
    OutputControl, Preset, SamplingParams, TextTokenizer,
};
use mach_models::{ExpertMode, LoadOptions, LogitRows, Model, Observer, Segment, StreamingOptions, Wants};
use mach_prefix::PrefixConfig;
use mach_specdec::{Draft, DraftOptions};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");

fn model(streaming: bool, threads: usize) -> Box<dyn Model> {
    let checkpoint = Checkpoint::open(format!("{ROOT}demo").as_ref()).unwrap();
    let options = StreamingOptions { bank_slots: 64, arena_slots: 32, ..StreamingOptions::default() };
    let experts = if streaming { ExpertMode::Streaming(options) } else { ExpertMode::Resident };
    load(&checkpoint, &LoadOptions { threads, experts, ..LoadOptions::default() }, &mut |_| ()).unwrap()
}

fn tokenizer() -> Arc<TextTokenizer> {
    let tokenizer = tokenizers::Tokenizer::from_file(format!("{ROOT}demo/tokenizer.json")).unwrap();
    Arc::new(TextTokenizer::new(tokenizer, 16384).unwrap())
}

fn engine(model: Box<dyn Model>, config: EngineConfig) -> Engine {
    Engine::start(model, tokenizer(), config).unwrap()
}

fn request(prompt: &[u32], embedding: bool) -> GenerateRequest {
    GenerateRequest {
        prompt: prompt.to_vec(),
        choices: 1,
        max_tokens: Some(if embedding { 1 } else { 40 }),
        sampling: SamplingParams::greedy(),
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        logprobs: None,
        preset: Preset::None,
        cache: CacheHints::default(),
        warm: false,
        output: OutputControl { embedding, ..OutputControl::default() },
        policy: None,
    }
}

/// Prompts of one token, of a few, and of more than a pass takes.
fn prompts() -> Vec<Vec<u32>> {
    let text = |text: &str| tokenizer().encode(text, false).unwrap();
    vec![vec![100], text("A short text."), text(&"The sea is blue and deep. ".repeat(60)), text("def f(x):")]
}

/// What the model makes of a prompt in one pass.
struct Last(Vec<f32>);

impl Observer for Last {
    fn wants(&self) -> Wants {
        Wants { last_norm: true, ..Wants::default() }
    }

    fn last_norm(&mut self, rows: &[f32]) {
        self.0 = rows.to_vec();
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Embeddings of all prompts, asked for at one time.
fn embedded(engine: &Engine) -> Vec<Vec<u32>> {
    let asked: Vec<_> =
        prompts().iter().map(|prompt| engine.submit(request(prompt, true)).unwrap()).collect();
    let one = |mut events: mach_engine::Events| {
        let Some(Event::Embedding(values)) = events.blocking_recv() else { panic!("no embedding") };
        let last = events.blocking_recv();
        let ends =
            matches!(last, Some(Event::Finished { reason: FinishReason::Stop, tokens: 0, cached: 0, .. }));
        assert!(ends, "{last:?}");
        bits(&values)
    };
    asked.into_iter().map(one).collect()
}

#[test]
fn an_embedding_has_the_same_bits_whatever_else_is_at_work() {
    let mut plain = model(false, 1);
    let expected: Vec<_> = prompts()
        .iter()
        .map(|prompt| {
            let (mut state, mut last) = (plain.new_state(), Last(Vec::new()));
            let mut segments = [Segment::prompt(&mut state, prompt, LogitRows::Last)];
            plain.forward(&mut segments, &mut last).unwrap();
            bits(&last.0)
        })
        .collect();
    assert!(expected.iter().all(|row| row.len() == plain.config().hidden_size));
    drop(plain);

    let small = EngineConfig { prefill_chunk: 16, max_batch: 3, ..EngineConfig::default() };
    assert_eq!(embedded(&engine(model(false, 2), small.clone())), expected, "small passes, two threads");
    assert_eq!(embedded(&engine(model(true, 1), small)), expected, "experts from the drive");

    // Among answers, with a draft, and with a prefix cache that knows the prompts.
    let mut drafted = model(false, 1);
    let draft = drafted.load_draft(format!("{ROOT}demo/draft").as_ref(), DraftOptions::default()).unwrap();
    let mut config = EngineConfig { prefix: Some(PrefixConfig::default()), ..EngineConfig::default() };
    config.speculation.draft = Some(Arc::new(draft) as Arc<dyn Draft>);
    let engine = engine(drafted, config);
    let answer = |prompt: &[u32]| {
        let mut events = engine.submit(request(prompt, false)).unwrap();
        let (mut text, mut known) = (String::new(), 0);
        while let Some(event) = events.blocking_recv() {
            match event {
                Event::Text { text: more, .. } => text += &more,
                Event::Finished { cached, .. } => known = cached,
                other => panic!("{other:?}"),
            }
        }
        (text, known)
    };
    assert_eq!(embedded(&engine), expected);
    let before: Vec<_> = prompts().iter().map(|prompt| answer(prompt)).collect();
    assert!(before.iter().all(|(_, known)| *known == 0), "embeddings leave nothing in the cache: {before:?}");
    let running: Vec<_> = prompts().iter().map(|p| engine.submit(request(p, false)).unwrap()).collect();
    assert_eq!(embedded(&engine), expected);
    drop(running);
    let after: Vec<_> = prompts().iter().map(|prompt| answer(prompt).0).collect();
    assert_eq!(after, before.into_iter().map(|(text, _)| text).collect::<Vec<_>>());
}

#[test]
fn a_prompt_that_the_context_does_not_hold_is_refused() {
    let config = EngineConfig { max_context: Some(32), ..EngineConfig::default() };
    let refused = engine(model(false, 1), config).submit(request(&[5; 33], true));
    assert!(matches!(refused, Err(EngineError::ContextLength { prompt: 33, context: 32 })), "{refused:?}");
}
