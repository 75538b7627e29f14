//! The step loop: admit, run one pass of the model over all active sequences, choose tokens, report.
//!
//! One pass takes one token from every decoding sequence and a chunk of prompt from those still in prefill, so adding
//! requests to a running batch is a matter of admission alone. For now admission takes one request at a time; its
//! choices run together.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use mach_models::{LogitRows, Model, ModelError, NoObserver, Segment, SequenceState};
use tracing::{debug, error};

use crate::queue::{Job, Next, Queue};
use crate::sequence::{Origin, Sequence};
use crate::{EngineConfig, EngineError, Event, TextTokenizer};

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
}

impl Admission {
    /// The next choice, to be run by itself.
    fn next(&mut self, state: SequenceState) -> Sequence {
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
                reserved_bytes: self.reserved_bytes,
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
        queue: Arc<Queue>,
    ) -> Self {
        Self {
            model,
            tokenizer,
            config,
            context,
            queue,
            admissions: VecDeque::new(),
            active: Vec::new(),
            requests: 0,
        }
    }

    /// Runs until the queue is closed and everything accepted is done.
    pub(crate) fn run(mut self) {
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
            match &admission.prompt_end {
                None if admission.next_choice == 0 => {
                    let sequence = admission.next(self.model.new_state());
                    self.active.push(sequence);
                }
                // The first choice is still at the prompt.
                None => break,
                Some((state, logits)) => {
                    let (state, mut logits) = (state.clone(), logits.clone());
                    let mut sequence = admission.next(state);
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
            reserved_bytes: self.model.state_bytes(limit),
            prompt_end: None,
            job,
        });
    }

    /// One pass of the model over the active sequences.
    fn step(&mut self) -> Result<(), EngineError> {
        let mut budget = self.config.prefill_chunk.max(1);
        let mut segments = Vec::with_capacity(self.active.len());
        let mut wants_token = Vec::with_capacity(self.active.len());
        for sequence in &mut self.active {
            let unseen = sequence.tokens.len().saturating_sub(sequence.state.position());
            // A decoding sequence always gets its one token; prompts share the chunk.
            let take = if unseen > 1 { unseen.min(budget) } else { unseen };
            if unseen > 1 {
                budget -= take;
            }
            let complete = take == unseen && take > 0;
            wants_token.push(complete);
            if take == 0 {
                continue;
            }
            let start = sequence.state.position();
            let tokens = sequence.tokens.get(start..start + take).unwrap_or_default();
            let logits = if complete { LogitRows::Last } else { LogitRows::None };
            segments.push(Segment { state: &mut sequence.state, tokens, logits });
        }
        if segments.is_empty() {
            return Ok(());
        }
        let mut logits = self.model.forward(&mut segments, &mut NoObserver).map_err(from_model)?;
        drop(segments);
        let mut row = 0;
        let mut done = Vec::with_capacity(wants_token.len());
        for (sequence, wants) in self.active.iter_mut().zip(wants_token) {
            if !wants {
                done.push(false);
                continue;
            }
            if row >= logits.rows() {
                return Err(EngineError::Model("a row of logits is missing".into()));
            }
            if let Some(admission) = self.admissions.iter_mut().find(|a| a.number == sequence.request) {
                let end = || (sequence.state.clone(), logits.row(row).to_vec());
                admission.prompt_end.get_or_insert_with(end);
            }
            done.push(sequence.advance(logits.row_mut(row), &self.tokenizer)?);
            row += 1;
        }
        let mut done = done.into_iter();
        let queue = &self.queue;
        self.active.retain(|sequence| {
            let finished = done.next().unwrap_or(false);
            if finished {
                queue.served(sequence.admitted().elapsed());
            }
            !finished
        });
        Ok(())
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
