//! The cost of one pass over a block, by its rows.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mach_models::{LogitRows, Model, ModelError, NoObserver, Observer, Segment, Wants};
use mach_specdec::{Argmax, DFlash, DraftError, Drafting, Proposed, Proposer as _, Taps};
use serde::Serialize;

use crate::token_ids;

/// What to time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifyPlan {
    /// Tokens in the sequence before the block.
    pub context: usize,
    /// Block sizes, ascending; 1, plain decoding, is the first.
    pub rows: Vec<usize>,
    /// Repeats of all sizes, interleaved.
    pub reps: usize,
    /// Seed of the pseudo-random token ids.
    pub seed: u64,
}

/// A pass over a block of some rows, logits for each of them: the fastest of the repeats, for what disturbs a machine
/// only ever adds. Ratios are to the fastest pass over one row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerifyCost {
    /// Rows of the block.
    pub rows: usize,
    /// The whole pass, and the cut back to half of its rows.
    pub seconds: f64,
    /// Cutting the block short alone.
    pub rewind_seconds: f64,
    /// Everything but the experts: mixers, norms, routers, head.
    pub dense_seconds: f64,
    /// The experts, the shared one included.
    pub expert_seconds: f64,
    /// Distinct routed experts of a layer, on average.
    pub experts: f64,
    /// `seconds` to those of one row.
    pub ratio: f64,
    /// `dense_seconds` to those of one row.
    pub dense_ratio: f64,
    /// `expert_seconds` to those of one row.
    pub expert_ratio: f64,
}

/// Drafting a block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DraftCost {
    /// Rows of the block, the anchor included.
    pub rows: usize,
    /// Seconds of the fastest repeat, with the projection of the features of `committed` rows.
    pub seconds: f64,
    /// Rows whose features were taken in.
    pub committed: usize,
    /// `seconds` to those of a pass of the target over one row.
    pub ratio: f64,
}

/// What a pass's experts took, and how many distinct ones there were.
#[derive(Debug, Default)]
struct Split {
    experts: Duration,
    layers: usize,
    distinct: usize,
    seen: HashSet<u32>,
}

impl Observer for Split {
    fn wants(&self) -> Wants {
        Wants { routed: true, ..Wants::default() }
    }

    fn routed(&mut self, _layer: usize, experts: &[u32], _weights: &[f32]) {
        self.layers += 1;
        self.seen.clear();
        self.seen.extend(experts);
        self.distinct += self.seen.len();
    }

    fn experts_took(&mut self, time: Duration) {
        self.experts = time;
    }
}

/// Times passes over blocks of every size behind the same context, interleaved, after one round that does not count.
pub fn measure_verify(model: &mut dyn Model, plan: &VerifyPlan) -> Result<Vec<VerifyCost>, ModelError> {
    let most = plan.rows.iter().copied().max().unwrap_or(1);
    let vocab = model.config().vocab_size;
    let mut samples: Vec<Vec<[f64; 5]>> = vec![Vec::new(); plan.rows.len()];
    for rep in 0..=plan.reps {
        let ids = token_ids(plan.seed.wrapping_add(rep as u64), plan.context + most, vocab);
        let (context, block) = ids.split_at(plan.context);
        let mut base = model.new_state();
        for tokens in context.chunks(512) {
            let segment = Segment::prompt(&mut base, tokens, LogitRows::None);
            model.forward(&mut [segment], &mut NoObserver)?;
        }
        for (&rows, samples) in plan.rows.iter().zip(&mut samples) {
            let mut state = base.clone();
            let mut split = Split::default();
            if rows > 1 {
                state.begin_block();
            }
            let tokens = block.get(..rows).unwrap_or(block);
            let segment = Segment::verify(&mut state, tokens);
            let started = Instant::now();
            let logits = std::hint::black_box(model.forward(&mut [segment], &mut split)?);
            let took = started.elapsed();
            model.recycle(logits);
            let rewinding = Instant::now();
            if rows > 1 {
                model.keep_rows(&mut state, rows / 2)?;
            }
            let rewind = rewinding.elapsed().as_secs_f64();
            let experts = split.experts.as_secs_f64();
            let dense = took.as_secs_f64() - experts;
            let distinct = split.distinct as f64 / split.layers.max(1) as f64;
            if rep > 0 {
                samples.push([dense + experts + rewind, rewind, dense + rewind, experts, distinct]);
            }
        }
    }
    let best = |samples: &[[f64; 5]], i: usize| samples.iter().map(|s| s[i]).fold(f64::INFINITY, f64::min);
    let one = samples.first().cloned().unwrap_or_default();
    let cost = |(&rows, samples): (&usize, &Vec<[f64; 5]>)| {
        let column = |i: usize| best(samples, i);
        let ratio = |i: usize| column(i) / best(&one, i);
        VerifyCost {
            rows,
            seconds: column(0),
            rewind_seconds: column(1),
            dense_seconds: column(2),
            expert_seconds: column(3),
            experts: samples.iter().map(|s| s[4]).sum::<f64>() / samples.len().max(1) as f64,
            ratio: ratio(0),
            dense_ratio: ratio(2),
            // A model without routed experts has nothing to compare here.
            expert_ratio: Some(ratio(3)).filter(|r| r.is_finite()).unwrap_or(0.0),
        }
    };
    Ok(plan.rows.iter().zip(&samples).map(cost).collect())
}

/// Times a draft's blocks behind the same context; every block takes in the features of `committed` rows first.
pub fn measure_draft(
    model: &mut dyn Model,
    draft: &Arc<DFlash>,
    plan: &VerifyPlan,
    plain_seconds: f64,
) -> Result<Vec<DraftCost>, DraftError> {
    let block = draft.config().block_size;
    let committed = block / 2;
    let sizes: Vec<usize> = plan.rows.iter().copied().filter(|&rows| rows > 1 && rows <= block).collect();
    let mut samples = vec![Vec::new(); sizes.len()];
    let (vocab, hidden) = (model.config().vocab_size, model.config().hidden_size);
    for rep in 0..=plan.reps {
        let length = plan.context + committed * sizes.len() + 1;
        let ids = token_ids(plan.seed.wrapping_add(rep as u64), length, vocab);
        let mut taps = Taps::new(&draft.config().target_layer_ids, hidden);
        let mut state = model.new_state();
        let mut proposer = mach_specdec::DFlashProposer::new(Arc::clone(draft));
        let segment = Segment::prompt(&mut state, ids.get(..length - 1).unwrap_or(&ids), LogitRows::None);
        model.forward(&mut [segment], &mut taps)?;
        let mut end = plan.context;
        proposer.observe(model, taps.rows(0..end), &[])?;
        let tokens = |end| ids.get(..=end).unwrap_or(&ids);
        let mut picker = Argmax;
        let first =
            Drafting { tokens: tokens(end), most: block - 1, model: &mut *model, picker: &mut picker };
        proposer.propose(first, &mut Proposed::default())?;
        for (&rows, samples) in sizes.iter().zip(&mut samples) {
            proposer.observe(model, taps.rows(end..end + committed), &[])?;
            end += committed;
            let drafting =
                Drafting { tokens: tokens(end), most: rows - 1, model: &mut *model, picker: &mut picker };
            let started = Instant::now();
            proposer.propose(drafting, &mut Proposed::default())?;
            if rep > 0 {
                samples.push(started.elapsed().as_secs_f64());
            }
        }
    }
    let cost = |(rows, samples): (usize, Vec<f64>)| {
        let seconds = samples.into_iter().fold(f64::INFINITY, f64::min);
        DraftCost { rows, seconds, committed, ratio: seconds / plain_seconds.max(f64::MIN_POSITIVE) }
    };
    Ok(sizes.into_iter().zip(samples).map(cost).collect())
}
