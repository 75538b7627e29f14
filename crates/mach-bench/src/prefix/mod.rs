//! Time to the first token with a prompt's beginning cold, in memory and on disk.

mod fresh;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use mach_engine::{
    CacheHints, Engine, EngineConfig, Event, GenerateRequest, Generator as _, OutputControl, Preset,
    SamplingParams, TextTokenizer,
};
use mach_models::{Model, SequenceState};
use mach_prefix::{Blank, Image, Kind, PrefixCache, PrefixConfig, Snapshot, chain, read_speed};
use serde::Serialize;

pub use fresh::{FreshPlan, FreshReport, FreshRow, measure_fresh};

use super::token_ids;

/// What is to be timed.
#[derive(Debug, Clone, Serialize)]
pub struct PrefixPlan {
    /// Prompt lengths.
    pub prompts: Vec<usize>,
    /// Tokens that a continued prompt has more than the cached one.
    pub tail: usize,
    /// Tokens decoded while a save runs.
    pub decode: usize,
    /// Repeats; medians are reported.
    pub reps: usize,
    /// Conversations for the lookup.
    pub conversations: usize,
}

/// Seconds to the first token, medians, and what they are of the cold ones.
#[derive(Debug, Clone, Serialize)]
pub struct PrefixRow {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Nothing known.
    pub cold_seconds: f64,
    /// The same prompt again, from memory.
    pub l1_seconds: f64,
    /// The prompt and a tail, from memory.
    pub l1_tail_seconds: f64,
    /// The same prompt again, from disk.
    pub l2_seconds: f64,
    /// `cold / l1`.
    pub l1_ratio: f64,
    /// `cold / l1_tail`.
    pub l1_tail_ratio: f64,
    /// `cold / l2`.
    pub l2_ratio: f64,
    /// Bytes of the largest segment.
    pub segment_bytes: u64,
    /// Bytes a second of the restore from disk alone, checks and copies included.
    pub l2_bytes_per_second: f64,
    /// Bytes a second of reading the same file in order and nothing else.
    pub drive_bytes_per_second: f64,
    /// The former as a share of the latter.
    pub l2_fraction: f64,
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct PrefixReport {
    /// What was timed.
    pub plan: PrefixPlan,
    /// By prompt length.
    pub rows: Vec<PrefixRow>,
    /// Decode seconds with a save running.
    pub decode_saving_seconds: Vec<f64>,
    /// Without, in turn.
    pub decode_plain_seconds: Vec<f64>,
    /// Median of the pairs' ratios, less 1.
    pub save_cost: f64,
    /// 99th percentile of lookups among many conversations.
    pub lookup_p99_seconds: Option<f64>,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

struct Timed {
    first: f64,
    decode: f64,
    cached: usize,
}

fn ask(engine: &Engine, prompt: Vec<u32>, tokens: usize) -> Result<Timed> {
    ask_with(engine, prompt, tokens, SamplingParams::greedy())
}

fn ask_with(engine: &Engine, prompt: Vec<u32>, tokens: usize, sampling: SamplingParams) -> Result<Timed> {
    let request = GenerateRequest {
        prompt,
        choices: 1,
        max_tokens: Some(tokens as u32),
        sampling,
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        logprobs: None,
        preset: Preset::None,
        policy: None,
        cache: CacheHints::default(),
        warm: false,
        output: OutputControl::default(),
    };
    let mut events = engine.submit(request)?;
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Finished { timings, cached, .. } => {
                let (first, decode) = (timings.prefill.as_secs_f64(), timings.decode.as_secs_f64());
                return Ok(Timed { first, decode, cached });
            }
            Event::Failed(error) => bail!(error),
            Event::Text { .. } | Event::Embedding(_) => {}
        }
    }
    bail!("the engine dropped the request")
}

fn largest(dir: &Path) -> Option<std::path::PathBuf> {
    let list = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let files = list(dir).flat_map(|dir| list(&dir).collect::<Vec<_>>());
    files
        .filter(|f| f.extension().is_some_and(|e| e == "seg"))
        .max_by_key(|f| std::fs::metadata(f).map_or(0, |m| m.len()))
}

/// Times `model`; segments go below `dir`, which should be empty.
pub fn measure_prefix(
    model: Box<dyn Model>,
    tokenizer: Arc<TextTokenizer>,
    dir: &Path,
    plan: PrefixPlan,
) -> Result<PrefixReport> {
    let vocab = model.config().vocab_size;
    let prefix = PrefixConfig {
        max_bytes: 4 << 30,
        directory: Some(dir.to_owned()),
        namespace: chain::namespace([b"benchmark".as_slice()]),
        ..PrefixConfig::default()
    };
    let config = EngineConfig { prefix: Some(prefix), ..EngineConfig::default() };
    let engine = Engine::start(model, tokenizer, config)?;
    let cache = engine.prefix().context("the engine has no prefix cache")?;
    ask(&engine, token_ids(99, 64, vocab), 4)?;
    let mut seed = 1000;
    let mut rows = Vec::new();
    for &tokens in &plan.prompts {
        let [mut cold, mut l1, mut l1_tail, mut l2, mut speed, mut drive] = [const { Vec::new() }; 6];
        let mut segment_bytes = 0;
        for _ in 0..plan.reps {
            seed += 1;
            let prompt = token_ids(seed, tokens, vocab);
            let longer = [prompt.clone(), token_ids(seed + 500, plan.tail, vocab)].concat();
            cold.push(ask(&engine, prompt.clone(), 1)?.first);
            cache.wait_saved(Duration::from_secs(120));
            let again = ask(&engine, prompt.clone(), 1)?;
            let tail = ask(&engine, longer, 1)?;
            if again.cached != tokens || tail.cached != tokens {
                bail!("{} and {} of {tokens} tokens were cached", again.cached, tail.cached);
            }
            l1.push(again.first);
            l1_tail.push(tail.first);
            cache.wait_saved(Duration::from_secs(120));
            cache.clear_memory();
            let key = cache.key(&cache.root(None), &prompt);
            let started = Instant::now();
            let restored = cache.lookup(&cache.root(None), &prompt);
            let took = started.elapsed().as_secs_f64();
            drop(restored);
            cache.clear_memory();
            l2.push(ask(&engine, prompt, 1)?.first);
            let file = cache.file(&key).or_else(|| largest(dir)).context("nothing was saved")?;
            segment_bytes = std::fs::metadata(&file)?.len();
            speed.push(segment_bytes as f64 / took);
            let (bytes, took) = read_speed(&file)?;
            drive.push(bytes as f64 / took.as_secs_f64());
            cache.clear_memory();
        }
        let (cold, l1, l1_tail, l2) = (median(cold), median(l1), median(l1_tail), median(l2));
        let (speed, drive) = (median(speed), median(drive));
        rows.push(PrefixRow {
            tokens,
            cold_seconds: cold,
            l1_seconds: l1,
            l1_tail_seconds: l1_tail,
            l2_seconds: l2,
            l1_ratio: cold / l1,
            l1_tail_ratio: cold / l1_tail,
            l2_ratio: cold / l2,
            segment_bytes,
            l2_bytes_per_second: speed,
            drive_bytes_per_second: drive,
            l2_fraction: speed / drive,
        });
    }
    let (mut saving, mut plain, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.reps {
        seed += 1;
        let prompt = token_ids(seed, 1024, vocab);
        let with = ask(&engine, prompt.clone(), plan.decode)?.decode;
        cache.wait_saved(Duration::from_secs(120));
        // On disk already: nothing is saved this time.
        let without = ask(&engine, prompt, plan.decode)?.decode;
        saving.push(with);
        plain.push(without);
        ratios.push(with / without - 1.0);
    }
    Ok(PrefixReport {
        rows,
        decode_saving_seconds: saving,
        decode_plain_seconds: plain,
        save_cost: median(ratios),
        lookup_p99_seconds: lookups(plan.conversations),
        plan,
    })
}

/// Lookups among conversations of 8192 tokens whose first 1024 are the same.
fn lookups(conversations: usize) -> Option<f64> {
    let blank = Blank { state: SequenceState::without_layers(), draft: None };
    let cache = PrefixCache::open(PrefixConfig::default(), blank);
    let root = cache.root(None);
    let prompt = |seed: u64| [token_ids(7, 1024, 1 << 17), token_ids(seed, 7168, 1 << 17)].concat();
    for seed in 0..conversations as u64 {
        let tokens: Arc<[u32]> = prompt(seed).into();
        for position in [1024, 8000] {
            let mut state = SequenceState::without_layers();
            state.advance(position);
            let image = Image { state, draft: None, logits: None, hot: None };
            cache.insert(Snapshot { root, tokens: Arc::clone(&tokens), image, kind: Kind::PromptEnd });
        }
    }
    for seed in 0..conversations as u64 {
        std::hint::black_box(cache.lookup(&root, &prompt(seed)));
    }
    cache.stats().lookup.p99_seconds
}
