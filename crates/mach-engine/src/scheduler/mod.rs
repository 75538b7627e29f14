//! The step loop of the engine thread: plan, run, commit.
//!
//! [`plan`] says what is next, a pure function of what waits and what is active: who gives way, who comes back, who leaves
//! the queue, who starts, and otherwise one pass of the model. [`run`](mod@run) is that pass, or a cycle of the only sequence
//! ([`speculation`](crate::speculation)). [`commit`] keeps states, chooses tokens and reports.
//!
//! A pass that fails leaves its states unusable, not its sequences: tokens and choices are theirs. So those that shared
//! the pass compute their tokens again, one at a time, and only the one that fails alone is given up.

mod admission;
mod commit;
mod plan;
mod run;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use mach_models::{Model, Purpose, SequenceState};
use mach_prefix::PrefixCache;
use mach_specdec::Taps;
use mach_specdec::policy::{Cycle, Held};
use tracing::{debug, error, warn};

use admission::{Admissions, Entry, Floor};
use commit::{Committed, Desk};
use plan::{Limits, Pass, Paused, Share, Step, View, plan};

pub(crate) use plan::Active;
pub(crate) use run::from_model;

use crate::prefix::Prefix;
use crate::queue::{Next, Queue};
use crate::sequence::Sequence;
use crate::speculation::{Proposers, cycle};
use crate::{EngineConfig, EngineError, EngineMetrics, EngineStats, TextTokenizer};

/// Shared passes that may fail with a sequence in them before it is given up.
const STRIKES: u8 = 3;

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
    active: Vec<Sequence>,
    /// Sequences that gave up their state to older ones, oldest first.
    paused: VecDeque<Sequence>,
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
        let taps = Taps::new(proposers.taps(), model.config().hidden_size);
        Self {
            undo_bytes: config.speculation.undo_bytes(model.as_ref()),
            admissions: Admissions::new(proposers, Arc::clone(&shared.metrics), context),
            model,
            tokenizer,
            config,
            shared,
            prefix,
            taps,
            active: Vec::new(),
            paused: VecDeque::new(),
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
                Step::Pause(index) => self.pause(index),
                Step::Resume => self.resume(),
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
        let active: Vec<Active> = self.active.iter().map(Sequence::planned).collect();
        let paused = |s: &Sequence| Paused { tokens: s.tokens.len(), limit: s.limit };
        let paused: Vec<Paused> = self.paused.iter().map(paused).collect();
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
            bytes: &|tokens| self.model.state_bytes(tokens) + self.undo_bytes,
        })
    }

    /// Runs and commits one pass.
    fn pass(&mut self, pass: &Pass) -> Result<(), EngineError> {
        match pass {
            Pass::Cycle => self.cycle(),
            Pass::Batch(shares) => self.batch(shares),
        }
    }

    fn cycle(&mut self) -> Result<(), EngineError> {
        let Some(sequence) = self.active.first_mut() else { return Ok(()) };
        let (model, kept) = (self.model.as_mut(), self.prefix.is_some());
        if let Some(cycled) = cycle(model, sequence, &mut self.taps, &self.tokenizer, kept)? {
            cycled.count(&mut self.stats());
            self.retire(&[cycled.finished]);
        }
        Ok(())
    }

    fn batch(&mut self, shares: &[Share]) -> Result<(), EngineError> {
        let ran = run::run(self.model.as_mut(), &mut self.active, shares, &mut self.taps)?;
        let started = ran.started;
        let mut desk = Desk {
            model: self.model.as_mut(),
            tokenizer: &self.tokenizer,
            prefix: self.prefix.as_ref(),
            admissions: &mut self.admissions,
            taps: &self.taps,
        };
        let Committed { done, failed } = desk.commit(&mut self.active, shares, ran)?;
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
            self.fail_request(request, &error);
        }
        Ok(())
    }

    fn stats(&self) -> std::sync::MutexGuard<'_, EngineStats> {
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self) {
        let mut stats = self.stats();
        (stats.active, stats.paused) = (self.active.len(), self.paused.len());
    }
}

/// Who runs.
impl Scheduler {
    /// Forgets whoever went away.
    fn drop_the_gone(&mut self) {
        if let Some(prefix) = &self.prefix {
            // They may come back and have the answer go on.
            for sequence in self.active.iter_mut().filter(|s| s.cancelled() && s.decoding()) {
                prefix.keep_turn(self.model.as_mut(), sequence);
            }
        }
        self.active.retain(|s| !s.cancelled());
        self.paused.retain(|s| !s.cancelled());
        self.admissions.drop_the_gone();
    }

    /// Fails what took too long.
    fn drop_the_late(&mut self) {
        if let Some(limit) = self.config.queue_timeout {
            let expired = self.shared.queue.expire(limit);
            let error = EngineError::QueueTimeout { limit };
            (0..expired).for_each(|_| self.shared.metrics.failed(&error));
            for number in self.admissions.late(limit) {
                self.fail_request(number, &error);
            }
        }
        if let Some(limit) = self.config.request_timeout {
            let sequences = self.active.iter().chain(&self.paused);
            let mut late: Vec<u64> =
                sequences.filter(|s| s.submitted().elapsed() >= limit).map(|s| s.request).collect();
            late.dedup();
            let error = EngineError::RequestTimeout { limit };
            late.into_iter().for_each(|number| self.fail_request(number, &error));
        }
    }

    fn pause(&mut self, index: usize) {
        let mut sequence = self.active.remove(index);
        debug!(request = sequence.request, tokens = sequence.tokens.len(), "paused for want of memory");
        sequence.state = SequenceState::without_layers();
        self.paused.push_front(sequence);
        self.stats().preemptions += 1;
    }

    fn resume(&mut self) {
        if let Some(sequence) = self.paused.pop_front() {
            self.active.push(sequence);
            self.start_over(self.active.len() - 1);
        }
    }

    fn start(&mut self, index: usize) {
        let floor = Floor {
            model: self.model.as_mut(),
            tokenizer: &self.tokenizer,
            prefix: self.prefix.as_ref(),
            active: self.active.len(),
            batch: self.config.max_batch,
        };
        match self.admissions.start(index, floor) {
            Entry::Runs(sequence) => self.active.push(*sequence),
            Entry::Complete(sequence) => self.stats().ended(sequence.stats()),
            Entry::Waits => {}
            Entry::Failed(number, error) => self.fail_request(number, &error),
        }
    }

    /// Lets go of the active sequences that are done.
    fn retire(&mut self, done: &[bool]) {
        if let Some(prefix) = &self.prefix {
            for (sequence, done) in self.active.iter_mut().zip(done) {
                match done {
                    true => prefix.keep_turn(self.model.as_mut(), sequence),
                    false => prefix.keep_progress(self.model.as_mut(), sequence),
                }
            }
        }
        let mut done = done.iter().copied();
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = &self.shared.queue;
        self.active.retain(|sequence| {
            let finished = done.next().unwrap_or(false);
            if finished {
                queue.served(sequence.admitted().elapsed());
                stats.ended(sequence.stats());
            }
            !finished
        });
        stats.active = self.active.len();
    }
}

/// What failed.
impl Scheduler {
    /// After a pass that failed. Whoever was in it alone is at fault; those that shared it start over one by one.
    fn recover(&mut self, error: &EngineError) {
        let suspect = self.active.iter().find(|sequence| sequence.suspect);
        let culprit = match self.active.as_slice() {
            [only] => Some(only.request),
            _ => suspect.map(|s| s.request),
        };
        if let Some(request) = culprit {
            self.fail_request(request, error);
            return;
        }
        warn!(sequences = self.active.len(), "computing the sequences of the failed pass again, one by one");
        let mut given_up = Vec::new();
        for index in 0..self.active.len() {
            self.start_over(index);
            let Some(sequence) = self.active.get_mut(index) else { continue };
            sequence.suspect = true;
            sequence.strikes += 1;
            if sequence.strikes > STRIKES {
                given_up.push(sequence.request);
            }
        }
        for request in given_up {
            self.fail_request(request, error);
        }
    }

    /// Drops a sequence's state, so that its tokens are computed again from the longest prefix that is known.
    fn start_over(&mut self, index: usize) {
        let Some(sequence) = self.active.get_mut(index) else { return };
        let (state, draft) = match &self.prefix {
            Some(prefix) => prefix.resume(sequence, self.model.as_ref()),
            None => (self.model.new_state(), None),
        };
        sequence.state = state;
        // The draft was shown these positions once; what it kept of them may be torn.
        sequence.speculator.restore(draft.as_ref());
    }

    /// Fails a request: all of its sequences, running, paused or yet to start.
    fn fail_request(&mut self, number: u64, error: &EngineError) {
        let mut told = false;
        let mut tell = |sequence: &Sequence| {
            if sequence.request == number && !told {
                sequence.fail(error);
                told = true;
            }
            sequence.request != number
        };
        self.active.retain(&mut tell);
        self.paused.retain(&mut tell);
        self.admissions.fail(number, error, told);
        self.shared.metrics.failed(error);
    }

    /// Fails everything that is active, and what belongs to the same requests.
    fn fail_all(&mut self, error: &EngineError) {
        let started = Instant::now();
        let sequences = self.active.iter().chain(&self.paused).map(|s| s.request);
        let mut numbers: Vec<u64> = sequences.chain(self.admissions.numbers()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            self.fail_request(number, error);
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
