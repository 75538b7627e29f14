//! What `cost-aware` knows: the block that promises the most tokens a second.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::experience::Chances;
use super::{Cycle, Experience};

/// How much an old cycle counts beside the next one.
const MEMORY: f64 = 0.85;
/// Chance of acceptance at the first position that is assumed before anything was seen.
const CHANCE: f64 = 0.7;
/// Cycles that an assumption counts for, over all sequences and in one.
const PRIOR: (f64, f64) = (2.0, 0.5);
/// Plain passes before a proposer that lost is tried again, at first and at most; four times as many for each further
/// loss.
const BACKOFF: (usize, usize) = (32, 512);
/// Plain passes before a sequence's first trial, and fewest between two, where the trials of other sequences mostly failed: short
/// answers then pay for none, and longer ones for few.
const WAIT: usize = 32;
const LONG_WAIT: usize = 512;
/// Rows of a trial: few, for most of what a failed one costs are its rows; at most so many, whatever is promised.
const TRIAL: usize = 4;
const LONG_TRIAL: usize = 8;
/// A plain pass is measured from this one on in a row: drafts leave caches behind that slow the next pass down, and
/// plain decoding would not have to bear that.
const SETTLED: usize = 3;
/// How far a block must promise to beat plain decoding.
const GAIN: f64 = 1.1;

/// Asks for as many tokens as promise the most tokens a second, and has as many of them verified as are worth their
/// rows: acceptance is estimated position by position, and token by token from how sure the proposer was; costs are measured
/// on the live model. Both are shared by the model's sequences. Plain decoding if nothing beats it; then the proposer is
/// tried again after a while, ever more rarely.
#[derive(Debug)]
pub(super) struct CostAware {
    proposer: &'static str,
    /// Most rows of the block at hand.
    most: usize,
    experience: Arc<Mutex<Experience>>,
    /// Of this sequence.
    chances: Chances,
    /// Tokens and seconds of blocks, fading.
    speed: (f64, f64),
    blocks: usize,
    /// Plain passes since the last block.
    plain_run: usize,
    /// How sure the proposer was of the tokens that it drafted last; empty if it cannot tell.
    margins: Vec<f32>,
    /// Plain passes before the first trial.
    waited: usize,
    plain_left: usize,
    backoff: usize,
    trial: bool,
}

/// What the next block promises.
struct Promise {
    rows: usize,
    rate: f64,
    plain: f64,
}

impl CostAware {
    /// For a proposer.
    pub(super) fn new(proposer: &'static str, experience: Arc<Mutex<Experience>>) -> Self {
        CostAware {
            proposer,
            most: 0,
            experience,
            chances: Chances::default(),
            speed: (0.0, 0.0),
            blocks: 0,
            plain_run: 0,
            margins: Vec::new(),
            waited: 0,
            plain_left: 0,
            backoff: BACKOFF.0,
            trial: false,
        }
    }

    fn experience(&self) -> MutexGuard<'_, Experience> {
        self.experience.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The block that promises most; `None` before blocks were measured.
    fn best(&self) -> Option<Promise> {
        let mut experience = self.experience();
        let costs = experience.costs;
        let plain = costs.plain()?;
        let known = experience.of(self.proposer);
        let mut best = Promise { rows: 1, rate: 0.0, plain: 1.0 / plain };
        // A position seen seldom is taken to be like the one before it.
        let (mut common, mut own) = (CHANCE, CHANCE);
        let (mut reach, mut expected) = (1.0, 0.0);
        for rows in 2..=self.most {
            common = known.chances.at(rows - 2, common, PRIOR.0);
            own = self.chances.at(rows - 2, if self.blocks == 0 { common } else { own }, PRIOR.1);
            reach *= own;
            expected += reach;
            // Tokens that the proposer is not sure of are not verified.
            let verified = match self.margins.is_empty() {
                true => rows,
                false => rows.min((1.75 + 1.25 * expected).round() as usize).max(2),
            };
            let rate = (1.0 + expected) / (known.work.at(rows, 0.0)? + costs.verify(verified)?);
            if rate > best.rate {
                (best.rows, best.rate) = (rows, rate);
            }
        }
        Some(best)
    }

    fn hopeful(&self) -> bool {
        self.experience().of(self.proposer).trials.hopeful()
    }

    /// Leaves the proposer alone for a while.
    fn back_off(&mut self) {
        self.plain_left = if self.hopeful() { self.backoff } else { self.backoff.max(LONG_WAIT) };
        self.backoff = (4 * self.backoff).min(BACKOFF.1);
    }

    /// Rows of the next block, of at most `most`; below 2 means plain decoding.
    pub(super) fn block(&mut self, most: usize) -> usize {
        self.most = most;
        self.trial = false;
        self.margins.truncate(1);
        if self.experience().costs.stale() {
            return 0;
        }
        if self.plain_left > 0 {
            self.plain_left -= 1;
            if self.plain_left > 0 {
                return 0;
            }
            self.trial = true;
        }
        let hopeful = self.hopeful();
        if self.blocks == 0 && !hopeful && self.waited < WAIT {
            self.waited += 1;
            return 0;
        }
        // What was right in other sequences says little here: the first block is a trial.
        self.trial |= self.blocks == 0;
        match self.best() {
            None => TRIAL.min(self.most),
            Some(best) if self.trial && hopeful => best.rows.clamp(TRIAL, LONG_TRIAL).min(self.most),
            Some(_) if self.trial => TRIAL.min(self.most),
            Some(best) if best.rate > GAIN * best.plain => best.rows,
            Some(_) => {
                self.back_off();
                0
            }
        }
    }

    /// How many of the drafted tokens are worth their rows.
    pub(super) fn trim(&mut self, drafted: usize, margins: &[f32]) -> usize {
        self.margins.clear();
        self.margins.extend_from_slice(margins);
        if self.trial {
            // It is there to learn from.
            return drafted;
        }
        let mut experience = self.experience();
        let costs = experience.costs;
        let (Some(plain), Some(_)) = (costs.plain(), costs.verify(2)) else { return drafted };
        if margins.is_empty() {
            return drafted;
        }
        // What a second is worth elsewhere: rows that bring less are not verified.
        let (tokens, seconds) = self.speed;
        let worth = if seconds > 0.0 { (tokens / seconds).max(1.0 / plain) } else { 1.0 / plain };
        let known = experience.of(self.proposer);
        let (mut reach, mut expected) = (1.0, 0.0);
        let (mut best, mut rows) = (-worth * plain, 0);
        for (i, &margin) in margins.iter().take(drafted).enumerate() {
            reach *= known.calibration.chance(margin);
            expected += reach;
            let value = expected - worth * costs.verify(i + 2).unwrap_or(plain);
            if value > best {
                (best, rows) = (value, i + 1);
            }
        }
        rows
    }

    /// Learns from a cycle of this proposer, or from a plain one.
    pub(super) fn record(&mut self, cycle: &Cycle) {
        let mut guard = self.experience.lock().unwrap_or_else(PoisonError::into_inner);
        self.plain_run = if cycle.drafted > 0 { 0 } else { self.plain_run + 1 };
        if cycle.proposed > 0 || self.plain_run >= SETTLED {
            guard.costs.record(cycle);
        }
        if cycle.drafted == 0 {
            return;
        }
        let known = guard.of(self.proposer);
        known.work.add(cycle.drafted + 1, cycle.draft_seconds);
        let untried: Vec<f64> = self
            .margins
            .iter()
            .skip(cycle.proposed)
            .map(|&margin| known.calibration.chance(margin))
            .collect();
        for (i, &margin) in self.margins.iter().enumerate().take(cycle.proposed.min(cycle.accepted + 1)) {
            known.calibration.record(margin, i < cycle.accepted);
        }
        known.chances.share(cycle, &untried);
        let plain = guard.costs.plain();
        drop(guard);
        self.chances.record(cycle, &untried, MEMORY);
        self.blocks += 1;
        let (tokens, seconds) = (1.0 + cycle.accepted as f64, cycle.draft_seconds + cycle.verify_seconds);
        self.speed = (self.speed.0 * MEMORY + tokens, self.speed.1 * MEMORY + seconds);
        let Some(plain) = plain else { return };
        if self.trial {
            // A trial is too small to pay for itself: that nothing in it was wrong is reason enough for a longer block.
            let flawless = cycle.proposed + 1 >= TRIAL.min(self.most) && cycle.accepted == cycle.proposed;
            let paid = flawless || tokens * plain > seconds;
            self.experience().of(self.proposer).trials.record(paid);
            if paid {
                self.backoff = BACKOFF.0;
                self.speed = (tokens, tokens * plain);
            } else {
                self.back_off();
            }
        } else if self.blocks >= 3 && self.speed.0 * plain < self.speed.1 {
            // Whatever was promised, it does not come true.
            self.back_off();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs cycles of a proposer of which the first `good` tokens of each block are right; returns the rows drafted and the
    /// rows verified. With `sure` it knows which.
    fn run(good: usize, sure: bool, draft: f64, per_row: f64, cycles: usize) -> Vec<(usize, usize)> {
        let mut policy = CostAware::new("test", Arc::default());
        (0..cycles)
            .map(|_| {
                let drafted = policy.block(16).saturating_sub(1);
                let margins: Vec<f32> = (0..drafted).map(|i| if i < good { 9.0 } else { 0.1 }).collect();
                let proposed = match drafted {
                    0 => 0,
                    n => policy.trim(n, if sure { &margins } else { &[] }),
                };
                policy.record(&Cycle {
                    drafted,
                    proposed,
                    accepted: good.min(proposed),
                    draft_seconds: if drafted > 0 { draft } else { 0.0 },
                    verify_seconds: 1.0 + per_row * proposed as f64,
                });
                (drafted + 1, proposed + 1)
            })
            .collect()
    }

    #[test]
    fn a_good_draft_gets_full_blocks() {
        for sure in [false, true] {
            let rows = run(15, sure, 0.1, 0.05, 40);
            assert_eq!(rows[0], (1, 1), "the plain cost is measured first");
            assert!(rows[20..].iter().all(|&r| r == (16, 16)), "{rows:?}");
        }
    }

    #[test]
    fn a_draft_that_is_right_for_three_tokens_gets_four_rows() {
        let rows = run(3, false, 0.1, 0.2, 60);
        assert!(rows[30..].iter().all(|&r| r.1 == 4), "{rows:?}");
        let rows = run(3, true, 0.1, 0.2, 60);
        assert!(rows[30..].iter().all(|&r| r.1 == 4), "{rows:?}");
    }

    #[test]
    fn a_losing_draft_is_nearly_never_asked() {
        for (good, sure, draft, per_row) in
            [(0, false, 0.1, 0.1), (0, true, 0.1, 0.1), (1, false, 0.5, 0.6), (1, true, 0.9, 0.6)]
        {
            let rows = run(good, sure, draft, per_row, 400);
            let drafted = rows.iter().filter(|&&r| r.0 > 1).count();
            assert!(drafted <= 12, "{drafted}: {rows:?}");
            assert!(rows[200..].iter().filter(|&&r| r.0 > 1).count() <= 2);
        }
    }

    #[test]
    fn a_draft_that_knows_its_mistakes_does_not_have_them_verified() {
        let rows = run(0, true, 0.01, 0.5, 100);
        assert!(rows[50..].iter().all(|&r| r.1 == 1), "{rows:?}");
    }

    #[test]
    fn rows_that_cost_much_are_not_taken() {
        for sure in [false, true] {
            let rows = run(15, sure, 0.1, 1.5, 100);
            assert!(rows[50..].iter().all(|&r| r.1 <= 4), "{rows:?}");
        }
    }

    /// One block that is right in full, after the plain passes that it waits for: how many these were, and its rows.
    fn next(policy: &mut CostAware, good: usize) -> (usize, usize) {
        for waited in 0..10_000 {
            let drafted = policy.block(16).saturating_sub(1);
            let margins = vec![9.0; drafted];
            let proposed = if drafted == 0 { 0 } else { policy.trim(drafted, &margins) };
            policy.record(&Cycle {
                drafted,
                proposed,
                accepted: good.min(proposed),
                draft_seconds: if drafted > 0 { 0.1 } else { 0.0 },
                verify_seconds: 1.0 + 0.05 * proposed as f64,
            });
            if drafted > 0 {
                return (waited, drafted + 1);
            }
        }
        panic!("nothing is ever tried")
    }

    #[test]
    fn what_others_learned_shortens_the_trial_of_a_sequence_and_does_not_replace_it() {
        let experience = Arc::<Mutex<Experience>>::default();
        let mut first = CostAware::new("test", Arc::clone(&experience));
        assert_eq!(next(&mut first, 15), (5, TRIAL), "plain passes are measured, then little is tried");
        while next(&mut first, 15).1 < 16 {}
        let mut second = CostAware::new("test", Arc::clone(&experience));
        assert_eq!(next(&mut second, 15), (0, LONG_TRIAL));
        assert_eq!(next(&mut second, 15), (0, 16));
        // Another proposer is another matter.
        assert_eq!(next(&mut CostAware::new("other", Arc::clone(&experience)), 15), (0, TRIAL));
    }

    #[test]
    fn where_trials_failed_a_sequence_waits_for_its_own() {
        let experience = Arc::<Mutex<Experience>>::default();
        let mut first = CostAware::new("test", Arc::clone(&experience));
        assert_eq!(next(&mut first, 0), (5, TRIAL));
        let waits: Vec<_> = (0..3).map(|_| next(&mut first, 0)).collect();
        // Hope is lost with the second trial.
        assert_eq!(waits, [(BACKOFF.0 - 1, TRIAL), (LONG_WAIT - 1, TRIAL), (LONG_WAIT - 1, TRIAL)]);
        let mut second = CostAware::new("test", experience);
        assert_eq!(next(&mut second, 15), (WAIT, TRIAL));
        assert!(next(&mut second, 15).1 > TRIAL, "it paid here");
    }
}
