//! Keeping a prefix warm before anybody asks for it.

use std::time::{Duration, Instant};

use mach_api::chat::WarmRequest;
use mach_api::{ApiError, ErrorKind};
use mach_engine::{CacheHints, Event, GenerateRequest, OutputControl, Preset, SamplingParams};
use mach_prefix::WarmedPrefix;
use serde::Serialize;

use crate::ChatModel;
use crate::failure::from_engine;
use crate::job::Job;

/// How long the answer waits for the file.
const SAVE_TIMEOUT: Duration = Duration::from_secs(60);

/// A warmed prefix.
#[derive(Debug, Serialize)]
pub struct WarmReport {
    /// Always `cache.warm_prefix`.
    pub object: &'static str,
    /// It was there before.
    pub already_warm: bool,
    /// Time it took, waiting included.
    pub seconds: f64,
    /// Its name, size and place.
    #[serde(flatten)]
    pub prefix: WarmedPrefix,
}

/// Computes the stable part of a prefix unless it is known, pins it and saves it. Blocks.
pub fn warm(model: &ChatModel, request: &WarmRequest) -> Result<WarmReport, ApiError> {
    warm_tokens(model, request, model.stable_part_as(request, &mut Job::default())?)
}

/// The same once the stable part is known.
pub(crate) fn warm_tokens(
    model: &ChatModel,
    request: &WarmRequest,
    tokens: Vec<u32>,
) -> Result<WarmReport, ApiError> {
    let started = Instant::now();
    let cache = model.engine.prefix().ok_or_else(|| {
        ApiError::new(ErrorKind::InvalidRequest, "the prefix cache is off (--no-prefix-cache)")
    })?;
    let root = cache.root(request.cache_salt.as_deref());
    let key = cache.key(&root, &tokens);
    let already_warm = cache.contains(&key);
    if !already_warm {
        let generate = GenerateRequest {
            prompt: tokens,
            choices: 1,
            max_tokens: None,
            sampling: SamplingParams::greedy(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            logprobs: None,
            preset: Preset::None,
            policy: None,
            cache: CacheHints { salt: request.cache_salt.clone(), ..CacheHints::default() },
            warm: true,
            output: OutputControl::default(),
        };
        let failed = |error| from_engine(&error, "messages");
        let mut events = model.engine.submit(generate).map_err(failed)?;
        while let Some(event) = events.blocking_recv() {
            if let Event::Failed(error) = event {
                return Err(failed(error));
            }
        }
    }
    let too_small = "the prefix does not fit the prefix cache (--prefix-cache-max-gb)";
    let prefix =
        cache.warm(&key, SAVE_TIMEOUT).ok_or_else(|| ApiError::new(ErrorKind::Unavailable, too_small))?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(WarmReport { object: "cache.warm_prefix", already_warm, seconds, prefix })
}
