//! The step loop: admit, run one pass of the model over all active sequences, choose tokens, report.
//!
//! One pass takes one token from every decoding sequence and a chunk of prompt from those still in prefill, so adding
//! requests to a running batch is a matter of admission alone. For now admission takes one request at a time; its
//! choices run together. A sequence that decodes alone goes by cycles instead: propose, verify in one pass, keep what
//! the sequence itself chose.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mach_models::{LogitRows, Model, ModelError, Segment, SequenceState};
use mach_prefix::PrefixCache;
use mach_specdec::policy::Cycle;
use mach_specdec::{Choice, Speculator, Taps, VerifyError, verify};
use tracing::{debug, error, warn};

use crate::prefix::{Prefix, Reuse, Start};
use crate::queue::{Job, Next, Queue};
use crate::sequence::{Origin, Sequence};
use crate::speculation::Shared;
use crate::{EngineConfig, EngineError, EngineStats, Event, TextTokenizer};

/// A request whose choices have not all started.
#[derive(Debug)]
struct Admission {
    job: Job,
    number: u64,
    next_choice: u32,
    limit: usize,
    stop_ids: Arc<[u32]>,
    reserved_bytes: usize,
    /// State and logits at the end of the prompt, from the first choice, for the others to start from.
    prompt_end: Option<(SequenceState, Vec<f32>)>,
    /// Where the hashes of the prompt begin.
    root: [u8; 32],
    /// Prompt tokens that the prefix cache brought.
    cached: usize,
    /// When its turn came.
    admitted: Option<Instant>,
    /// What brings the beginning of its prompt from disk while others decode.
    reading: Option<JoinHandle<()>>,
}

impl Admission {
    /// Whether the beginning of the prompt is on its way from disk and others have something to do meanwhile. A drive is waited for
    /// only if nobody decodes.
    fn must_wait(&mut self, prefix: &Prefix, others: bool) -> bool {
        if others && self.reading.is_none() {
            self.reading = prefix.read_aside(&self.job.request);
        }
        match self.reading.take_if(|reading| !others || reading.is_finished()) {
            // A reader that panicked has been reported by the panic hook; the prompt is looked up as if it had not been.
            Some(reading) => drop(reading.join()),
            None => return self.reading.is_some(),
        }
        false
    }

    /// For choices that start where the first one's prompt ended.
    fn reuse(&self) -> Reuse {
        Reuse::of_choice(self.root, self.cached)
    }

    /// The next choice, to be run by itself.
    fn next(
        &mut self,
        state: SequenceState,
        speculator: Speculator,
        reuse: Reuse,
        admitted: Instant,
    ) -> Sequence {
        let choice = self.next_choice;
        self.next_choice += 1;
        Sequence::new(
            state,
            Origin {
                request: &self.job.request,
                number: self.number,
                choice,
                limit: self.limit,
                stop_ids: Arc::clone(&self.stop_ids),
                events: self.job.events.clone(),
                submitted: self.job.submitted,
                admitted,
                reserved_bytes: self.reserved_bytes,
                speculator,
                reuse,
            },
        )
    }
}

pub(crate) struct Scheduler {
    model: Box<dyn Model>,
    tokenizer: Arc<TextTokenizer>,
    config: EngineConfig,
    /// Tokens that prompt and answer may have together.
    context: usize,
    queue: Arc<Queue>,
    stats: Arc<Mutex<EngineStats>>,
    speculation: Shared,
    prefix: Option<Prefix>,
    /// Features that the draft wants, of the last pass.
    taps: Taps,
    admissions: VecDeque<Admission>,
    active: Vec<Sequence>,
    requests: u64,
}

impl Scheduler {
    pub(crate) fn new(
        model: Box<dyn Model>,
        tokenizer: Arc<TextTokenizer>,
        config: EngineConfig,
        context: usize,
        (queue, stats): (Arc<Queue>, Arc<Mutex<EngineStats>>),
        prefix: Option<Arc<PrefixCache>>,
    ) -> Self {
        let drafting = config.speculation.draft.is_some();
        let prefix = prefix.map(|cache| Prefix::new(cache, model.as_ref(), drafting));
        let speculation = Shared::new(config.speculation.clone());
        let taps = Taps::new(speculation.taps(), model.config().hidden_size);
        Self {
            model,
            tokenizer,
            config,
            context,
            queue,
            stats,
            speculation,
            prefix,
            taps,
            admissions: VecDeque::new(),
            active: Vec::new(),
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
            if self.queue.aborted() {
                self.fail_all(&EngineError::ShuttingDown);
                return;
            }
            if !self.admit() {
                return;
            }
            let step = catch_unwind(AssertUnwindSafe(|| self.step()));
            match step {
                Ok(Ok(())) => {}
                Ok(Err(e)) => {
                    error!(error = %e, "a pass of the model failed");
                    self.fail_all(&e);
                }
                Err(panic) => {
                    let reason = panic_message(panic.as_ref());
                    error!(reason, "a request panicked");
                    self.fail_all(&EngineError::Model("internal error".into()));
                }
            }
        }
    }

    /// Takes work in; sleeps when there is none. False when there will be none.
    fn admit(&mut self) -> bool {
        if let Some(prefix) = &self.prefix {
            // Whoever went away may come back and have the answer go on.
            for sequence in self.active.iter_mut().filter(|s| s.cancelled() && s.decoding()) {
                prefix.keep_turn(self.model.as_mut(), sequence);
            }
        }
        self.active.retain(|s| !s.cancelled());
        self.admissions.retain(|a| !a.job.events.is_closed());
        if self.active.is_empty() && self.admissions.is_empty() {
            match self.queue.pop(true) {
                Next::Job(job) => self.enqueue(*job),
                Next::Empty => {}
                Next::Closed => return false,
            }
        }
        while let Some(admission) = self.admissions.front_mut() {
            let reserved: usize = self.active.iter().map(|s| s.reserved_bytes).sum();
            let room = self.config.state_budget.is_none_or(|b| reserved + admission.reserved_bytes <= b);
            if !self.active.is_empty() && (!room || self.active.len() >= self.config.max_sequences) {
                break;
            }
            let admitted = *admission.admitted.get_or_insert_with(Instant::now);
            match &admission.prompt_end {
                None if admission.next_choice == 0 => {
                    if let Some(prefix) = &self.prefix
                        && admission.must_wait(prefix, !self.active.is_empty())
                    {
                        break;
                    }
                    let mut speculator = self.speculation.speculator(&admission.job.request, 0);
                    let request = &admission.job.request;
                    let start = match &self.prefix {
                        Some(prefix) => prefix.start(request, self.model.as_mut(), &mut speculator),
                        None => Start::cold(self.model.as_ref()),
                    };
                    let logits = start.logits;
                    (admission.root, admission.cached) = (start.reuse.root, start.reuse.cached);
                    if let Some(logits) = &logits
                        && request.choices > 1
                    {
                        admission.prompt_end = Some((start.state.clone(), logits.clone()));
                    }
                    let mut sequence = admission.next(start.state, speculator, start.reuse, admitted);
                    // The whole prompt is known: its last logits are all that is needed.
                    match logits.map(|mut logits| sequence.advance(&mut logits, &self.tokenizer)) {
                        None | Some(Ok(false)) => self.active.push(sequence),
                        Some(Ok(true)) => {
                            let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
                            stats.ended(sequence.stats());
                        }
                        Some(Err(error)) => sequence.fail(&error),
                    }
                }
                // The first choice is still at the prompt.
                None => break,
                Some((state, logits)) => {
                    let (state, mut logits) = (state.clone(), logits.clone());
                    let choice = admission.next_choice;
                    let speculator = self.speculation.speculator(&admission.job.request, choice);
                    let reuse = admission.reuse();
                    let mut sequence = admission.next(state, speculator, reuse, admitted);
                    match sequence.advance(&mut logits, &self.tokenizer) {
                        Ok(true) => {}
                        Ok(false) => self.active.push(sequence),
                        Err(error) => sequence.fail(&error),
                    }
                }
            }
            if admission.next_choice >= admission.job.request.choices {
                self.admissions.pop_front();
            }
        }
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.active = self.active.len();
        true
    }

    fn enqueue(&mut self, job: Job) {
        let request = &job.request;
        let room = self.context.saturating_sub(request.prompt.len());
        let answer = request.max_tokens.map_or(room, |m| room.min(m as usize));
        let limit = request.prompt.len() + answer;
        debug!(prompt = request.prompt.len(), answer, choices = request.choices, "request admitted");
        self.requests += 1;
        self.admissions.push_back(Admission {
            number: self.requests,
            next_choice: 0,
            limit,
            stop_ids: request.stop_token_ids.as_slice().into(),
            reserved_bytes: self.model.state_bytes(limit) + self.speculation.undo_bytes(self.model.as_ref()),
            prompt_end: None,
            root: [0; 32],
            cached: 0,
            admitted: None,
            reading: None,
            job,
        });
    }

    /// One pass of the model.
    fn step(&mut self) -> Result<(), EngineError> {
        let waits = |s: &Sequence| self.admissions.iter().any(|a| a.number == s.request);
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
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.specdec.record(proposal.proposer, proposal.low, &cycle);
        decoded(&mut stats, verified.emitted, started.elapsed());
        drop(stats);
        self.retire(&[verified.finished]);
        Ok(())
    }

    /// One pass over all active sequences.
    fn batch(&mut self) -> Result<(), EngineError> {
        let started = Instant::now();
        let mut budget = self.config.prefill_chunk.max(1);
        let mut segments = Vec::with_capacity(self.active.len());
        let mut wants_token = Vec::with_capacity(self.active.len());
        let mut spans = Vec::with_capacity(self.active.len());
        let (mut rows, mut decoding) = (0, 0);
        for sequence in &mut self.active {
            let unseen = sequence.tokens.len().saturating_sub(sequence.state.position());
            // A decoding sequence always gets its one token; prompts share the chunk.
            let take = if unseen > 1 { unseen.min(budget) } else { unseen };
            if unseen > 1 {
                budget -= take;
            }
            let complete = take == unseen && take > 0;
            wants_token.push(complete && !sequence.reuse.warm);
            spans.push(rows..rows + take);
            rows += take;
            decoding += usize::from(sequence.decoding());
            if take == 0 {
                continue;
            }
            let start = sequence.state.position();
            sequence.state.copy_at(sequence.reuse.copies_after(start));
            let tokens = sequence.tokens.get(start..start + take).unwrap_or_default();
            let logits = if complete && !sequence.reuse.warm { LogitRows::Last } else { LogitRows::None };
            segments.push(Segment { state: &mut sequence.state, tokens, logits });
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
            done.push(sequence.advance(logits.row_mut(row), &self.tokenizer)?);
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
            let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
            stats.specdec.record(None, false, &Cycle::default());
            decoded(&mut stats, decoding, started.elapsed());
        }
        self.retire(&done);
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
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = &self.queue;
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

    /// Fails everything that is active, and what belongs to the same requests.
    fn fail_all(&mut self, error: &EngineError) {
        let started = Instant::now();
        for sequence in self.active.drain(..) {
            self.admissions.retain(|a| a.number != sequence.request);
            sequence.fail(error);
        }
        for admission in self.admissions.drain(..) {
            let _ = admission.job.events.send(Event::Failed(error.clone()));
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

fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}
