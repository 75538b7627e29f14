//! From logits to a token.
//!
//! Order, as in vLLM: logit bias, repetition penalty, frequency and presence penalties, temperature, `min_p`, `top_k`,
//! `top_p`, then one sample by Gumbel-max. Log probabilities are those of the model's own distribution, before all of
//! that.

mod logprobs;
mod math;
mod noise;
mod params;
mod select;

use std::collections::HashMap;

pub(crate) use logprobs::raw_logprobs;
pub(crate) use noise::choice_seed;
pub use params::SamplingParams;

use crate::EngineError;
use crate::grammar::{Guide, Lost};

use noise::Noise;
use select::{Candidate, argmax, at_least, mass, nucleus, scaled, sort, top_k};

/// The logits hold no largest finite value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model produced logits that are not finite")]
pub struct NotFinite;

/// Where a token occurred.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    in_answer: u32,
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    params: SamplingParams,
    seen: HashMap<u32, Seen>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    pub(crate) fn new(params: SamplingParams, prompt: &[u32]) -> Self {
        let mut seen = HashMap::new();
        if params.repetition_penalty != 1.0 {
            seen.extend(prompt.iter().map(|&id| (id, Seen::default())));
        }
        Self { params, seen, candidates: Vec::new() }
    }

    /// Chooses the token at absolute position `position`. `logits` are changed in place.
    pub(crate) fn sample(&mut self, logits: &mut [f32], position: usize) -> Result<u32, NotFinite> {
        self.adjust(logits);
        self.choose(logits, position)
    }

    /// The same among the tokens that a grammar allows.
    pub(crate) fn sample_guided(
        &mut self,
        logits: &mut [f32],
        position: usize,
        guide: &mut Guide,
    ) -> Result<u32, EngineError> {
        let not_finite = |e: NotFinite| EngineError::Model(e.to_string());
        let lost = |e: Lost| EngineError::Grammar(e.to_string());
        self.adjust(logits);
        // The largest of all is also the largest of any part that it is in. Which tokens are candidates, though, depends on the
        // others: with such rules the mask comes first.
        let p = &self.params;
        let ruled = p.top_p < 1.0 || p.min_p > 0.0 || (p.top_k > 0 && (p.top_k as usize) < logits.len());
        if p.temperature == 0.0 || !ruled {
            let id = self.choose(logits, position).map_err(not_finite)?;
            if guide.allowed(&[id]).map_err(lost)? == 1 {
                return Ok(id);
            }
        }
        guide.mask(logits).map_err(lost)?;
        self.choose(logits, position).map_err(not_finite)
    }

    /// From logits that were adjusted.
    fn choose(&mut self, logits: &[f32], position: usize) -> Result<u32, NotFinite> {
        let (best, best_id) = argmax(logits);
        if !best.is_finite() {
            return Err(NotFinite);
        }
        let p = &self.params;
        if p.temperature == 0.0 {
            return Ok(best_id);
        }
        let inverse_temperature = 1.0 / p.temperature;
        if !inverse_temperature.is_finite() {
            return Ok(best_id);
        }
        let noise = Noise::new(p.seed, position);
        if self.select(logits, best, inverse_temperature)? {
            let score = |&(logit, id): &Candidate| {
                f64::from(scaled(logit, best, inverse_temperature)) + noise.gumbel(id)
            };
            Ok(largest(self.candidates.iter().map(|c| (score(c), c.1))).unwrap_or(best_id))
        } else {
            Ok(sample_all(logits, (best, best_id), inverse_temperature, noise))
        }
    }

    /// Counts a token of the answer.
    pub(crate) fn accept(&mut self, id: u32) {
        let p = &self.params;
        if p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0 {
            self.seen.entry(id).or_default().in_answer += 1;
        }
    }

    fn adjust(&self, logits: &mut [f32]) {
        let p = &self.params;
        for &(id, bias) in &p.logit_bias {
            if let Some(l) = logits.get_mut(id as usize) {
                *l += bias;
            }
        }
        for (&id, seen) in &self.seen {
            let Some(l) = logits.get_mut(id as usize) else { continue };
            if p.repetition_penalty != 1.0 {
                *l = if *l > 0.0 { *l / p.repetition_penalty } else { *l * p.repetition_penalty };
            }
            if seen.in_answer > 0 {
                *l -= p.frequency_penalty * seen.in_answer as f32;
                *l -= p.presence_penalty;
            }
        }
    }

    /// Fills `candidates` by the rules that are on; false if none is.
    fn select(&mut self, logits: &[f32], best: f32, inverse_temperature: f32) -> Result<bool, NotFinite> {
        let p = &self.params;
        let limited = p.top_k > 0 && (p.top_k as usize) < logits.len();
        let floor = if p.min_p > 0.0 { math::ln(f64::from(p.min_p)) as f32 } else { f32::NEG_INFINITY };
        let reaches = |c: &Candidate| scaled(c.0, best, inverse_temperature) >= floor;
        let out = &mut self.candidates;
        if limited {
            top_k(logits, p.top_k as usize, out);
            out.retain(reaches);
        } else if p.min_p > 0.0 {
            // One step lower than the rule asks, so that rounding of the product cannot lose a candidate.
            at_least(logits, best + (floor - 1e-3) * p.temperature * (1.0 + 1e-6), out);
            out.retain(reaches);
            sort(out);
        } else if p.top_p < 1.0 {
            return nucleus_of_all(logits, best, inverse_temperature, p.top_p, out).map(|()| true);
        } else {
            return Ok(false);
        }
        if p.top_p < 1.0 {
            let total =
                out.iter().map(|c| f64::from(math::exp(scaled(c.0, best, inverse_temperature)))).sum();
            let keep = nucleus(out, best, inverse_temperature, p.top_p, total).unwrap_or(out.len());
            out.truncate(keep);
        }
        Ok(true)
    }
}

/// `top_p` over the whole vocabulary: sorts only the tokens near the best, more of them until they hold enough.
fn nucleus_of_all(
    logits: &[f32],
    best: f32,
    inverse_temperature: f32,
    share: f32,
    out: &mut Vec<Candidate>,
) -> Result<(), NotFinite> {
    let total = mass(logits, best, inverse_temperature);
    if !total.is_finite() {
        return Err(NotFinite);
    }
    let mut depth = 4.0;
    loop {
        let floor = if depth > 64.0 { f32::NEG_INFINITY } else { best - depth / inverse_temperature };
        at_least(logits, floor, out);
        sort(out);
        let keep = nucleus(out, best, inverse_temperature, share, total);
        if let Some(keep) = keep {
            out.truncate(keep);
            return Ok(());
        }
        if floor == f32::NEG_INFINITY {
            return Ok(());
        }
        depth *= 2.0;
    }
}

/// Gumbel-max over the whole vocabulary; logarithms only for tokens that could still win.
fn sample_all(logits: &[f32], best: Candidate, inverse_temperature: f32, noise: Noise) -> u32 {
    let mut winner = (noise.gumbel(best.1), best.1);
    for (id, &logit) in (0u32..).zip(logits) {
        let s = f64::from(scaled(logit, best.0, inverse_temperature));
        if s + noise.bound(id) >= winner.0 {
            let score = s + noise.gumbel(id);
            if score > winner.0 || (score == winner.0 && id < winner.1) {
                winner = (score, id);
            }
        }
    }
    winner.1
}

/// The id of the largest score, the lowest id among equals.
fn largest(scores: impl Iterator<Item = (f64, u32)>) -> Option<u32> {
    let better = |a: (f64, u32), b: (f64, u32)| {
        if b.0 > a.0 || (b.0 == a.0 && b.1 < a.1) { b } else { a }
    };
    scores.reduce(better).map(|(_, id)| id)
}

#[cfg(test)]
mod tests;
