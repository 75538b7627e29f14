//! The step loop: admit, run one pass of the model over all active sequences, choose tokens, report.
//!
//! One pass takes one token from every decoding sequence and a chunk of prompt from those still in prefill, so requests
//! join and leave at token boundaries, and who takes part is a matter of admission alone. A sequence that decodes
//! alone goes by cycles instead: propose, verify in one pass, keep what the sequence itself chose.
//!
//! A pass that fails leaves its states unusable, not its sequences: tokens and choices are theirs. So those that shared
//! the pass compute their tokens again, one at a time, and only the one that fails alone is given up.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mach_models::{LogitRows, Model, ModelError, Purpose, Segment, SequenceState};
use mach_prefix::PrefixCache;
use mach_specdec::policy::{Cycle, Held};
use mach_specdec::{Choice, Taps, VerifyError, verify};
use tracing::{debug, error, warn};

use crate::admission::Admission;
use crate::prefix::Prefix;
use crate::queue::Queue;
use crate::room::Room;
use crate::sequence::Sequence;
use crate::speculation::Shared;
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
    pub(crate) model: Box<dyn Model>,
    pub(crate) tokenizer: Arc<TextTokenizer>,
    pub(crate) config: EngineConfig,
    /// Tokens that prompt and answer may have together.
    pub(crate) context: usize,
    pub(crate) shared: Commons,
    pub(crate) speculation: Shared,
    pub(crate) prefix: Option<Prefix>,
    pub(crate) room: Room,
    /// Features that the draft wants, of the last pass.
    taps: Taps,
    pub(crate) admissions: VecDeque<Admission>,
    pub(crate) active: Vec<Sequence>,
    /// Sequences that gave up their state to older ones, oldest first.
    pub(crate) paused: VecDeque<Sequence>,
    pub(crate) requests: u64,
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
        let speculation = Shared::new(config.speculation.clone());
        let taps = Taps::new(speculation.taps(), model.config().hidden_size);
        let room = Room::new(config.state_budget, speculation.undo_bytes(model.as_ref()));
        Self {
            model,
            tokenizer,
            config,
            context,
            shared,
            speculation,
            prefix,
            room,
            taps,
            admissions: VecDeque::new(),
            active: Vec::new(),
            paused: VecDeque::new(),
            requests: 0,
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
            if !self.admit() {
                return;
            }
            self.make_room();
            match catch_unwind(AssertUnwindSafe(|| self.step())) {
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

    /// One pass of the model.
    fn step(&mut self) -> Result<(), EngineError> {
        let waits = |s: &Sequence| self.admissions.iter().any(|a| a.started() && a.number == s.request);
        match self.active.as_slice() {
            [only] if only.decoding() && !waits(only) => self.cycle(),
            _ => self.batch(),
        }
    }

    /// One pass over the only sequence, with whatever is proposed for it.
    fn cycle(&mut self) -> Result<(), EngineError> {
        let (model, tokenizer) = (self.model.as_mut(), &self.tokenizer);
        let Some(sequence) = self.active.first_mut() else { return Ok(()) };
        let Some(&anchor) = sequence.tokens.last() else { return Ok(()) };
        let started = Instant::now();
        let proposal = sequence.propose(model);
        let verifying = Instant::now();
        let mut state = std::mem::replace(&mut sequence.state, SequenceState::without_layers());
        let mut choose = |row: &mut [f32]| {
            let last = sequence.advance(row, tokenizer)?;
            Ok(Choice { token: sequence.tokens.last().copied().unwrap_or_default(), last })
        };
        let verified = verify(model, &mut state, anchor, &proposal.tokens, &mut self.taps, &mut choose);
        let verified = verified.map_err(|error| match error {
            VerifyError::Model(error) => from_model(error),
            VerifyError::Choose(error) => error,
        })?;
        let verify_time = verifying.elapsed();
        sequence.state = state;
        if !verified.finished || self.prefix.is_some() {
            observe(model, sequence, self.taps.rows(0..verified.emitted));
        }
        let cycle = sequence.speculator.record(&proposal, &verified, verify_time);
        sequence.stats.record(&cycle);
        if let Some(reason) = sequence.speculator.take_failure() {
            warn!(reason, "a proposer is given up for this request");
        }
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.specdec.record(proposal.proposer, proposal.low, proposal.held, &cycle);
        decoded(&mut stats, verified.emitted, started.elapsed());
        drop(stats);
        self.retire(&[verified.finished]);
        Ok(())
    }

    /// The only sequence that may take part in the next pass, while some are suspected of having made one fail.
    fn alone(&self) -> Option<usize> {
        self.active.iter().position(|sequence| sequence.suspect)
    }

    /// Prompt tokens that the next pass takes: fewer while others wait for their next token.
    fn prefill_budget(&self, alone: Option<usize>) -> usize {
        let decoding = self.active.iter().filter(|s| s.decoding()).count();
        let whole = self.config.prefill_chunk;
        let shared = self.config.prefill_interleave.min(whole.saturating_sub(decoding));
        if decoding == 0 || alone.is_some() { whole.max(1) } else { shared.max(1) }
    }

    /// One pass over all active sequences.
    fn batch(&mut self) -> Result<(), EngineError> {
        let started = Instant::now();
        let alone = self.alone();
        let mut budget = self.prefill_budget(alone);
        let mut segments = Vec::with_capacity(self.active.len());
        let mut wants_token = Vec::with_capacity(self.active.len());
        let mut spans = Vec::with_capacity(self.active.len());
        let (mut rows, mut decoding) = (0, 0);
        for (index, sequence) in self.active.iter_mut().enumerate() {
            let takes_part = alone.is_none_or(|only| only == index);
            let unseen = sequence.tokens.len().saturating_sub(sequence.state.position());
            let unseen = if takes_part { unseen } else { 0 };
            // A decoding sequence always gets its one token; prompts share the chunk.
            let take = if unseen > 1 { unseen.min(budget) } else { unseen };
            if unseen > 1 {
                budget -= take;
            }
            let complete = take == unseen && take > 0;
            wants_token.push(complete && !sequence.reuse.warm);
            spans.push(rows..rows + take);
            rows += take;
            decoding += usize::from(takes_part && sequence.decoding());
            if take == 0 {
                continue;
            }
            let start = sequence.state.position();
            let purpose = if sequence.decoding() { Purpose::Decode } else { Purpose::Prompt };
            sequence.state.copy_at(sequence.reuse.copies_after(start));
            let tokens = sequence.tokens.get(start..start + take).unwrap_or_default();
            let logits = if complete && !sequence.reuse.warm { LogitRows::Last } else { LogitRows::None };
            segments.push(Segment { state: &mut sequence.state, tokens, logits, purpose });
        }
        if segments.is_empty() {
            return Ok(());
        }
        let mut logits = self.model.forward(&mut segments, &mut self.taps).map_err(from_model)?;
        drop(segments);
        for (sequence, span) in self.active.iter_mut().zip(spans) {
            let (model, mut first) = (self.model.as_mut(), span.start);
            for copy in sequence.state.take_copies() {
                // The draft sees as much as the copy has seen.
                let end = (span.end + copy.position()).saturating_sub(sequence.state.position());
                observe(model, sequence, self.taps.rows(first..end));
                first = end;
                if let Some(prefix) = &self.prefix {
                    prefix.keep_copy(model, sequence, copy);
                }
            }
            observe(model, sequence, self.taps.rows(first..span.end));
        }
        let mut row = 0;
        let mut failed = Vec::new();
        let mut done = Vec::with_capacity(wants_token.len());
        for (sequence, wants) in self.active.iter_mut().zip(wants_token) {
            if !wants {
                let warmed = sequence.reuse.warm && sequence.state.position() == sequence.tokens.len();
                if warmed {
                    if let Some(prefix) = &self.prefix {
                        prefix.keep_end(self.model.as_mut(), sequence, None);
                    }
                    sequence.finish_warm();
                }
                done.push(warmed);
                continue;
            }
            if row >= logits.rows() {
                return Err(EngineError::Model("a row of logits is missing".into()));
            }
            if let Some(admission) = self.admissions.iter_mut().find(|a| a.number == sequence.request) {
                let end = || (sequence.state.clone(), logits.row(row).to_vec());
                admission.prompt_end.get_or_insert_with(end);
            }
            let decodes = sequence.stats().completion_tokens > 0;
            if let Some(prefix) = self.prefix.as_ref().filter(|_| !decodes) {
                prefix.keep_end(self.model.as_mut(), sequence, Some(logits.row(row)));
            }
            sequence.suspect = false;
            let advanced =
                catch_unwind(AssertUnwindSafe(|| sequence.advance(logits.row_mut(row), &self.tokenizer)));
            match advanced {
                Ok(Ok(complete)) => done.push(complete),
                // No row of logits concerns anybody else.
                Ok(Err(error)) => {
                    done.push(false);
                    failed.push((sequence.request, error));
                }
                Err(panic) => {
                    error!(reason = panic_message(panic.as_ref()), "choosing a token panicked");
                    done.push(false);
                    failed.push((sequence.request, EngineError::Model("internal error".into())));
                }
            }
            if decodes {
                sequence.stats.record(&Cycle::default());
            } else if let Some(prefix) = &self.prefix {
                prefix.save(sequence);
            }
            row += 1;
        }
        self.model.recycle(logits);
        // Passes that hold prompts as well say nothing about decoding.
        if decoding == rows {
            let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
            stats.specdec.record(None, false, Held::No, &Cycle::default());
            decoded(&mut stats, decoding, started.elapsed());
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

    /// After a pass that failed. Whoever was in it alone is at fault; those that shared it start over one by one.
    fn recover(&mut self, error: &EngineError) {
        let culprit = match self.active.as_slice() {
            [only] => Some(only.request),
            several => self.alone().and_then(|index| several.get(index)).map(|s| s.request),
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
    pub(crate) fn start_over(&mut self, index: usize) {
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
    pub(crate) fn fail_request(&mut self, number: u64, error: &EngineError) {
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
        self.admissions.retain(|admission| {
            if admission.number == number && !told {
                admission.fail(error);
            }
            admission.number != number
        });
        self.shared.metrics.failed(error);
    }

    /// Fails everything that is active, and what belongs to the same requests.
    fn fail_all(&mut self, error: &EngineError) {
        let started = Instant::now();
        let sequences = self.active.iter().chain(&self.paused).map(|s| s.request);
        let mut numbers: Vec<u64> = sequences.chain(self.admissions.iter().map(|a| a.number)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for number in numbers {
            self.fail_request(number, error);
        }
        debug!(took = ?started.elapsed(), "dropped all active sequences");
    }
}

/// Shows a draft what the model made of tokens that are there to stay.
fn observe(model: &mut dyn Model, sequence: &mut Sequence, features: &[f32]) {
    if !sequence.speculator.taps().is_empty() {
        sequence.speculator.observe(model, features);
    }
}

fn decoded(stats: &mut EngineStats, tokens: usize, took: Duration) {
    stats.decode_tokens += tokens as u64;
    stats.decode_time += took;
}

fn from_model(error: ModelError) -> EngineError {
    match error {
        ModelError::Memory(reason) => EngineError::Memory(reason),
        other => EngineError::Model(other.to_string()),
    }
}

pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}
