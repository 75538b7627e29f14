//! Passes that are timed, and what they are routed to.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mach_bench::token_ids;
use mach_experts::{EvictionPolicy, Place, Residency};
use mach_models::{LogitRows, Model, ModelError, Observer, Segment, Wants};

/// Time of the decoding that is measured, and of a prompt at most.
const DECODING: Duration = Duration::from_millis(600);
const PROMPT: Duration = Duration::from_millis(1500);
/// Rows of the prompt that tells how long a prompt may be.
const FIRST_ROWS: usize = 32;
/// Parts of the decoding, of which the usual one counts.
const PARTS: usize = 8;
/// Most tokens that are decoded.
const DECODED: usize = 512;

/// Seconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pass {
    pub(super) all: f64,
    /// Of these, experts.
    pub(super) experts: f64,
}

/// What was found.
pub(super) struct Measured {
    pub(super) prompt: Pass,
    /// Rows of that prompt.
    pub(super) rows: usize,
    pub(super) decode: Pass,
    /// Usual mean of the tokens that were decoded, and experts of each that were read.
    pub(super) mean: f64,
    pub(super) misses: f64,
    /// Tokens that were in the conversation at the end of decoding.
    pub(super) at: usize,
    pub(super) routed: Routed,
}

/// Experts by layer, token after token, those of prompts like those that were decoded.
#[derive(Debug, Default)]
pub(super) struct Routed(BTreeMap<usize, Vec<u32>>);

impl Routed {
    /// How many layers were seen.
    pub(super) fn layers(&self) -> usize {
        self.0.len()
    }

    /// Part of the experts wanted that a bank of `slots` has for these layers.
    pub(super) fn hits(&self, top_k: usize, slots: usize, policy: EvictionPolicy) -> f64 {
        let top_k = top_k.max(1);
        let layers = self.0.keys().last().map_or(0, |last| last + 1);
        let experts = self.0.values().flatten().max().map_or(0, |&last| last as usize + 1);
        let mut bank = Residency::new(slots, layers, policy.build(layers, experts));
        let tokens = self.0.values().map(|routed| routed.len() / top_k).min().unwrap_or(0);
        let (mut hit, mut all) = (0usize, 0usize);
        for token in 0..tokens {
            // What an empty bank misses at first says nothing of later.
            let counts = token >= tokens / 4;
            for (&layer, routed) in &self.0 {
                let experts = routed.get(token * top_k..(token + 1) * top_k).unwrap_or_default();
                let experts: Vec<usize> = experts.iter().map(|&e| e as usize).collect();
                all += if counts { experts.len() } else { 0 };
                // What no bank of this size could hold is read each time.
                let Ok(places) = bank.request(layer, &experts) else { continue };
                for place in places {
                    match place {
                        Place::Miss(slot) => bank.landed(slot),
                        _ => hit += usize::from(counts),
                    }
                }
                bank.release(layer, &experts);
            }
        }
        hit as f64 / all.max(1) as f64
    }
}

/// Time of experts, and what layers were routed to.
struct Watch {
    experts: Duration,
    routed: Routed,
    /// Whether the layers behind the first one that has experts see what they would see in the checkpoint's model.
    real: bool,
}

impl Observer for Watch {
    fn wants(&self) -> Wants {
        Wants { routed: true, ..Wants::default() }
    }

    fn routed(&mut self, layer: usize, experts: &[u32], _weights: &[f32]) {
        let known = &mut self.routed.0;
        if self.real || known.is_empty() || known.contains_key(&layer) {
            known.entry(layer).or_default().extend_from_slice(experts);
        }
    }

    fn experts_took(&mut self, time: Duration) {
        self.experts += time;
    }
}

fn timed(model: &mut dyn Model, segment: Segment<'_>, watch: &mut Watch) -> Result<Pass, ModelError> {
    let (start, before) = (Instant::now(), watch.experts);
    let logits = model.forward(&mut [segment], watch)?;
    model.recycle(logits);
    Ok(Pass { all: start.elapsed().as_secs_f64(), experts: (watch.experts - before).as_secs_f64() })
}

/// The median of means over parts: tokens differ by what they read, and what interrupts some of them counts little.
fn usual(seconds: &[f64]) -> f64 {
    let parts = seconds.chunks(seconds.len().div_ceil(PARTS).max(1));
    let mut means: Vec<f64> = parts.map(|part| part.iter().sum::<f64>() / part.len() as f64).collect();
    means.sort_by(f64::total_cmp);
    means.get(means.len() / 2).copied().unwrap_or_default()
}

/// Rows of a prompt that leaves half of the context for what is decoded.
pub(super) fn most_rows(chunk: usize, context: usize) -> usize {
    chunk.min(context / 2).max(1)
}

/// Experts that were read for decoding so far.
fn misses(model: &dyn Model) -> u64 {
    model.streaming_stats().map_or(0, |stats| stats.snapshot().total.misses)
}

/// Times a prompt and decoding, of tokens below `ids`. `real`: the model is the checkpoint's and no stand-in.
pub(super) fn passes(
    model: &mut dyn Model,
    ids: usize,
    chunk: usize,
    context: usize,
    real: bool,
) -> Result<Measured, ModelError> {
    let most = most_rows(chunk, context);
    let ids = token_ids(1, 2 * FIRST_ROWS + most + DECODED, ids);
    let mut ids = ids.as_slice();
    let mut take = |n: usize| {
        let (taken, rest) = ids.split_at(n.min(ids.len()));
        ids = rest;
        taken
    };
    // The first pass pays for the allocation of working memory.
    let mut watch = Watch { experts: Duration::ZERO, routed: Routed::default(), real };
    let mut prompt = |model: &mut dyn Model, rows: usize, watch: &mut Watch| {
        let mut state = model.new_state();
        timed(model, Segment::prompt(&mut state, take(rows), LogitRows::Last), watch)
            .map(|pass| (pass, state))
    };
    let small = FIRST_ROWS.min(most);
    prompt(model, small, &mut watch)?;
    let (first, _) = prompt(model, small, &mut watch)?;
    let affordable = (small as f64 * PROMPT.as_secs_f64() / first.all.max(1e-9)) as usize;
    let rows = affordable.clamp(small, most);
    let (whole, mut state) = prompt(model, rows, &mut watch)?;
    let read = misses(model);
    let (started, mut samples) = (Instant::now(), Vec::new());
    while samples.is_empty() || started.elapsed() < DECODING {
        let token = take(1);
        if token.is_empty() || state.position() >= context.max(4) {
            break;
        }
        samples.push(timed(model, Segment::decode(&mut state, token), &mut watch)?);
    }
    let misses = (misses(model) - read) as f64 / samples.len().max(1) as f64;
    let mean = usual(&samples.iter().map(|sample| sample.all).collect::<Vec<_>>());
    samples.sort_by(|a, b| a.all.total_cmp(&b.all));
    let decode = samples.get(samples.len() / 2).copied().unwrap_or_default();
    Ok(Measured { prompt: whole, rows, decode, mean, misses, at: state.position(), routed: watch.routed })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(experts: Vec<u32>) -> Routed {
        Routed([(2, experts)].into())
    }

    #[test]
    fn a_bank_that_holds_all_misses_nothing_and_one_that_holds_none_everything() {
        let circle = routed((0..400).map(|i| i * 7 % 10).collect());
        for policy in EvictionPolicy::ALL {
            assert_eq!(circle.hits(2, 10, policy), 1.0);
            assert_eq!(circle.hits(2, 0, policy), 0.0);
        }
        // A circle of ten never finds its next in a bank of nine that forgets the oldest.
        assert_eq!(circle.hits(1, 9, EvictionPolicy::Lru), 0.0);
        let skewed = routed((0..400).map(|i| if i % 2 == 0 { 3 } else { i % 40 }).collect());
        let rate = skewed.hits(2, 4, EvictionPolicy::Lru);
        assert!((0.5..0.6).contains(&rate), "{rate}");
    }

    #[test]
    fn an_interruption_counts_little() {
        let mut seconds = [1.0, 3.0].repeat(40);
        assert_eq!(usual(&seconds), 2.0);
        seconds[17] = 1000.0;
        assert_eq!((usual(&seconds), usual(&[5.0]), usual(&[])), (2.0, 5.0, 0.0));
    }

    #[test]
    fn layers_share_the_bank() {
        // One layer always wants the same, another goes round: the bank is where it is of use.
        let (same, round) = (vec![1; 200], (0..200).map(|i| i % 8).collect());
        let both = Routed([(0, same), (1, round)].into());
        assert_eq!((both.layers(), both.hits(1, 9, EvictionPolicy::Lru)), (2, 1.0));
        let rate = both.hits(1, 4, EvictionPolicy::Lru);
        assert_eq!(rate, 0.5, "the circle of eight finds nothing in three slots");
    }
}
