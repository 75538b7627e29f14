//! Decoding after a restore from disk in a fresh process, whose bank of experts is empty.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use mach_engine::{Engine, EngineConfig, Generator as _, SamplingParams, TextTokenizer};
use mach_models::Model;
use mach_prefix::{PrefixConfig, chain};
use serde::Serialize;

use super::{ask_with, median};
use crate::token_ids;

/// What is to be timed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FreshPlan {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens decoded after the first.
    pub decode: usize,
    /// Slots of the bank as a share of all experts.
    pub bank_share: f64,
    /// Repeats, each with a prompt of its own.
    pub reps: usize,
}

/// One way to come to the same decoding.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FreshRow {
    /// Seconds of decoding, one for each repeat.
    pub decode_seconds: Vec<f64>,
    /// Seconds to the first token.
    pub first_seconds: Vec<f64>,
    /// Experts that decoding found in the bank, of those it asked for; the last repeat.
    pub hit_rate: f64,
    /// Experts that were brought before they were asked for; the last repeat.
    pub background_reads: u64,
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct FreshReport {
    /// What was timed.
    pub plan: FreshPlan,
    /// The same process, the same prompt again.
    pub warm: FreshRow,
    /// A fresh one that brings the prefix's experts back.
    pub fresh: FreshRow,
    /// A fresh one that does not.
    pub without: FreshRow,
    /// Speed of `fresh` as a share of `warm`, median of the repeats' ratios.
    pub fresh_share: f64,
    /// The same of `without`.
    pub without_share: f64,
}

/// Times `load`, which loads the model with a bank of the plan's share. Segments go below `dir`, which should be empty.
pub fn measure_fresh(
    load: &dyn Fn() -> Result<Box<dyn Model>>,
    tokenizer: &Arc<TextTokenizer>,
    dir: &Path,
    plan: FreshPlan,
) -> Result<FreshReport> {
    let start = |bring_experts| -> Result<Engine> {
        let prefix = PrefixConfig {
            max_bytes: 4 << 30,
            directory: Some(dir.to_owned()),
            namespace: chain::namespace([b"benchmark of fresh banks".as_slice()]),
            bring_experts,
            ..PrefixConfig::default()
        };
        let config = EngineConfig { prefix: Some(prefix), ..EngineConfig::default() };
        Ok(Engine::start(load()?, Arc::clone(tokenizer), config)?)
    };
    let mut rows = [FreshRow::default(), FreshRow::default(), FreshRow::default()];
    for rep in 0..plan.reps as u64 {
        let time = |engine: &Engine, row: &mut FreshRow| -> Result<()> {
            let before = engine.streaming().context("experts do not stream")?;
            let prompt = token_ids(3000 + rep, plan.prompt, engine.vocab());
            // A model with random weights would fall into a loop if it chose its best token, and loops need few experts.
            let sampling = SamplingParams { temperature: 1.0, seed: rep, ..SamplingParams::greedy() };
            let timed = ask_with(engine, prompt, plan.decode + 1, sampling)?;
            let after = engine.streaming().context("experts do not stream")?;
            let hits = (after.total.hits - before.total.hits) as f64;
            let misses = (after.total.misses - before.total.misses) as f64;
            row.hit_rate = hits / (hits + misses).max(1.0);
            row.background_reads = after.background_reads - before.background_reads;
            row.decode_seconds.push(timed.decode);
            row.first_seconds.push(timed.first);
            Ok(())
        };
        let [warm, fresh, without] = &mut rows;
        let engine = start(true)?;
        time(&engine, &mut FreshRow::default())?;
        time(&engine, warm)?;
        let cache = engine.prefix().context("the engine has no prefix cache")?;
        cache.wait_saved(Duration::from_secs(120));
        drop(engine);
        time(&start(true)?, fresh)?;
        time(&start(false)?, without)?;
    }
    let [warm, fresh, without] = rows;
    let share = |row: &FreshRow| {
        median(warm.decode_seconds.iter().zip(&row.decode_seconds).map(|(warm, row)| warm / row).collect())
    };
    let (fresh_share, without_share) = (share(&fresh), share(&without));
    Ok(FreshReport { plan, warm, fresh, without, fresh_share, without_share })
}
