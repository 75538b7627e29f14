//! The step loop of the engine thread: plan, run, commit.
//!
//! [`plan`] says what is next, a pure function of what waits and what is active: who gives way, who comes back, who leaves
//! the queue, who starts, and otherwise one pass of the model. [`run`](mod@run) is that pass, or a cycle of the only sequence
//! ([`speculation`](crate::speculation)). [`commit`] keeps states, chooses tokens and reports. Requests whose choices have not
//! all started are [`admission`]'s, sequences that have are the [`roster`]'s.
//!
//! A pass that fails leaves its states unusable, not its sequences: tokens and choices are theirs. So those that shared
//! the pass compute their tokens again, one at a time, and only the one that fails alone is given up.

mod admission;
mod commit;
mod plan;
mod roster;
mod run;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mach_models::{Model, Purpose};
use mach_prefix::PrefixCache;
use mach_specdec::Taps;
use mach_specdec::policy::{Cycle, Held};
use tracing::{debug, error};

use admission::{Admissions, Entry, Floor};
use commit::{Committed, Desk};
use plan::{Limits, Pass, Share, Step, View, plan};
use roster::Roster;

pub(crate) use plan::Active;
pub(crate) use run::from_model;

use crate::prefix::Prefix;
use crate::queue::{Next, Queue};
use crate::sequence::Sequence;
use crate::speculation::{Proposers, cycle};
use crate::{EngineConfig, EngineError, EngineMetrics, EngineStats, TextTokenizer};

/// What the engine's handles and its thread share.
#[derive(Debug, Clone)]
pub(crate) struct Commons {
    pub(crate) queue: Arc<Queue>,
    pub(crate) stats: Arc<Mutex<EngineStats>>,
    pub(crate) metrics: Arc<EngineMetrics>,
}

pub(crate) struct Scheduler {
    model: Box<dyn Model>,
    tokenizer: Arc<TextTokenizer>,
    config: EngineConfig,
    shared: Commons,
    prefix: Option<Prefix>,
    /// Bytes of a sequence beside those that `Model::state_bytes` tells.
    undo_bytes: usize,
    /// Features that the draft wants, of the last pass.
    taps: Taps,
    admissions: Admissions,
    roster: Roster,
}

impl Scheduler {
    pub(crate) fn new(
        model: Box<dyn Model>,
        tokenizer: Arc<TextTokenizer>,
        config: EngineConfig,
        context: usize,
        shared: Commons,
        prefix: Option<Arc<PrefixCache>>,
    ) -> Self {
        let drafting = config.speculation.draft.is_some();
        let prefix = prefix.map(|cache| Prefix::new(cache, model.as_ref(), drafting));
        let proposers = Proposers::new(config.speculation.clone());
        let taps = Taps::new(proposers.taps(), model.config().hidden_size).with_output(model.feature_width());
        Self {
            undo_bytes: config.speculation.undo_bytes(model.as_ref()),
            admissions: Admissions::new(proposers, Arc::clone(&shared.metrics), context),
            model,
            tokenizer,
            config,
            shared,
            prefix,
            taps,
            roster: Roster::default(),
        }
    }

    /// Runs until the queue is closed and everything accepted is done.
    pub(crate) fn run(mut self) {
        self.work();
        if let Some(prefix) = &self.prefix {
            prefix.close();
        }
    }

    fn work(&mut self) {
        loop {
            if self.shared.queue.aborted() {
                self.fail_all(&EngineError::ShuttingDown);
                return;
            }
            self.drop_the_late();
            self.drop_the_gone();
            let Some(pass) = self.next_pass() else { return };
            match catch_unwind(AssertUnwindSafe(|| self.pass(&pass))) {
                Ok(Ok(())) => {}
                Ok(Err(e)) => {
                    error!(error = %e, "a pass of the model failed");
                    self.recover(&e);
                }
                Err(panic) => {
                    let reason = panic_message(panic.as_ref());
                    error!(reason, "a pass of the model panicked");
                    self.recover(&EngineError::Model("internal error".into()));
                }
            }
        }
    }

    /// Takes steps until the model is to run; sleeps while there is nothing to do. `None` when there will be nothing.
    fn next_pass(&mut self) -> Option<Pass> {
        loop {
            match self.plan() {
                Step::Run(pass) => {
                    self.publish();
                    return Some(pass);
                }
                Step::Pause(index) => {
                    self.roster.pause(index);
                    self.stats().preemptions += 1;
                }
                Step::Resume => self.roster.resume(self.model.as_ref(), self.prefix.as_ref()),
                Step::Take => {
                    if let Next::Job(job) = self.shared.queue.pop(false) {
                        self.admissions.take(*job);
                    }
                }
                Step::Start(index) => self.start(index),
                Step::Sleep => {
                    self.publish();
                    match self.shared.queue.pop(true) {
                        Next::Job(job) => self.admissions.take(*job),
                        Next::Empty => {}
                        Next::Closed => return None,
                    }
                    // Whoever left in the meantime is not to be started.
                    self.drop_the_gone();
                }
            }
        }
    }

    fn plan(&self) -> Step {
        let (active, paused) = self.roster.planned();
        plan(&View {
            limits: Limits {
                chunk: self.config.prefill_chunk,
                interleave: self.config.prefill_interleave,
                batch: self.config.max_batch,
                continuous: self.config.continuous_batching,
                budget: self.config.state_budget,
            },
            pending: &self.admissions.pending(!active.is_empty()),
            active: &active,
            paused: &paused,
            queued: self.shared.queue.waiting() > 0,
            bytes: &|tokens| self.sequence_bytes(tokens),
        })
    }

    /// Bytes of a sequence of so many tokens, its draft's context included.
    fn sequence_bytes(&self, tokens: usize) -> usize {
        self.model.state_bytes(tokens) + self.undo_bytes + self.config.speculation.draft_bytes(tokens)
    }

    /// Runs and commits one pass.
    fn pass(&mut self, pass: &Pass) -> Result<(), EngineError> {
        match pass {
            Pass::Cycle => self.cycle(),
            Pass::Batch(shares) => self.batch(shares),
        }
    }

    fn cycle(&mut self) -> Result<(), EngineError> {
        let Some(sequence) = self.roster.active.first_mut() else { return Ok(()) };
        self.taps.want_normed(false);
        let (model, kept) = (self.model.as_mut(), self.prefix.is_some());
        if let Some(cycled) = cycle(model, sequence, &mut self.taps, &self.tokenizer, kept)? {
            cycled.count(&mut self.stats());
            self.retire(&[cycled.finished]);
        }
        Ok(())
    }

    fn batch(&mut self, shares: &[Share]) -> Result<(), EngineError> {
        let embeds =
            self.roster.active.iter().zip(shares).any(|(sequence, share)| sequence.embeds && share.chooses);
        self.taps.want_normed(embeds);
        let ran = run::run(self.model.as_mut(), &mut self.roster.active, shares, &mut self.taps)?;
        let started = ran.started;
        let mut desk = Desk {
            model: self.model.as_mut(),
            tokenizer: &self.tokenizer,
            prefix: self.prefix.as_ref(),
            admissions: &mut self.admissions,
            taps: &self.taps,
        };
        let Committed { done, failed } = desk.commit(&mut self.roster.active, shares, ran)?;
        // Passes that hold prompts as well say nothing about decoding.
        let taking_part = shares.iter().filter(|share| share.rows > 0);
        if taking_part.clone().all(|share| share.purpose == Purpose::Decode) {
            let decoding = taking_part.count();
            let mut stats = self.stats();
            stats.specdec.record(None, false, Held::No, &Cycle::default());
            stats.decoded(decoding, started.elapsed());
            if decoding > 1 {
                stats.batched_passes += 1;
                stats.batched_tokens += decoding as u64;
            }
        }
        self.retire(&done);
        for (request, error) in failed {
            self.fail(request, &error);
        }
        Ok(())
    }

    fn stats(&self) -> MutexGuard<'_, EngineStats> {
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self) {
        let bytes = |sequence: &Sequence| self.sequence_bytes(sequence.tokens.len());
        let state_bytes = self.roster.active.iter().map(bytes).sum();
        let mut stats = self.stats();
        (stats.active, stats.paused) = self.roster.counts();
        stats.state_bytes = state_bytes;
    }

    /// Starts the next choice of the request at `index`.
    fn start(&mut self, index: usize) {
        let floor = Floor {
            model: self.model.as_mut(),
            tokenizer: &self.tokenizer,
            prefix: self.prefix.as_ref(),
            active: self.roster.active.len(),
            batch: self.config.max_batch,
        };
        match self.admissions.start(index, floor) {
            Entry::Runs(sequence) => self.roster.active.push(*sequence),
            Entry::Complete(sequence) => self.stats().ended(sequence.stats()),
            Entry::Waits => {}
            Entry::Failed(number, error) => self.fail(number, &error),
        }
    }

    /// Lets go of the active sequences that are done.
    fn retire(&mut self, done: &[bool]) {
        let ended = self.roster.retire(done, self.model.as_mut(), self.prefix.as_ref());
        let mut stats = self.stats();
        for sequence in &ended {
            self.shared.queue.served(sequence.admitted().elapsed());
            stats.ended(sequence.stats());
        }
        stats.active = self.roster.active.len();
    }

    /// Forgets whoever went away.
    fn drop_the_gone(&mut self) {
        self.roster.drop_the_gone(self.model.as_mut(), self.prefix.as_ref());
        self.admissions.drop_the_gone();
    }

    /// Fails what took too long.
    fn drop_the_late(&mut self) {
        if let Some(limit) = self.config.queue_timeout {
            let expired = self.shared.queue.expire(limit);
            let error = EngineError::QueueTimeout { limit };
            (0..expired).for_each(|_| self.shared.metrics.failed(&error));
            for number in self.admissions.late(limit) {
                self.fail(number, &error);
            }
        }
        if let Some(limit) = self.config.request_timeout {
            let error = EngineError::RequestTimeout { limit };
            for number in self.roster.late(limit) {
                self.fail(number, &error);
            }
        }
    }

    /// After a pass that failed.
    fn recover(&mut self, error: &EngineError) {
        for number in self.roster.recover(self.model.as_ref(), self.prefix.as_ref()) {
            self.fail(number, error);
        }
    }

    /// Fails a request: all of its sequences, running, paused or yet to start.
    fn fail(&mut self, number: u64, error: &EngineError) {
        let told = self.roster.fail(number, error);
        self.admissions.fail(number, error, told);
        self.shared.metrics.failed(error);
    }

    /// Fails everything that has left the queue.
    fn fail_all(&mut self, error: &EngineError) {
        let started = Instant::now();
        let mut numbers: Vec<u64> = self.roster.requests().chain(self.admissions.numbers()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            self.fail(number, error);
        }
        debug!(took = ?started.elapsed(), "dropped all active sequences");
    }
}

pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}
