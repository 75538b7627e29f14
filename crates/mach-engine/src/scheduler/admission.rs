//! Requests that have left the queue and whose choices have not all started.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mach_models::{Model, SequenceState};
use mach_specdec::Speculator;
use tracing::debug;

use super::panic_message;
use super::plan::Pending;
use crate::prefix::{Prefix, Reuse, Start};
use crate::queue::Job;
use crate::sequence::{Origin, Sequence};
use crate::speculation::Proposers;
use crate::{DecodeMode, EngineError, EngineMetrics, Event, Started, TextTokenizer};

/// A request whose choices have not all started.
#[derive(Debug)]
struct Admission {
    job: Job,
    number: u64,
    next_choice: u32,
    limit: usize,
    stop_ids: Arc<[u32]>,
    /// State and logits at the end of the prompt, from the first choice, for the others to start from.
    prompt_end: Option<(SequenceState, Vec<f32>)>,
    /// Where the hashes of the prompt begin.
    root: [u8; 32],
    /// Prompt tokens that the prefix cache brought.
    cached: usize,
    metrics: Arc<EngineMetrics>,
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

    /// Whether its first choice runs.
    fn started(&self) -> bool {
        self.next_choice > 0
    }

    /// Whether there is no answer, only what the model makes of the prompt.
    fn embeds(&self) -> bool {
        self.job.request.output.embedding
    }

    fn fail(&self, error: &EngineError) {
        self.job.events.send(Event::Failed(error.clone()));
    }

    /// The next choice, to be run by itself.
    fn next(&mut self, state: SequenceState, speculator: Speculator, reuse: Reuse) -> Sequence {
        let choice = self.next_choice;
        self.next_choice += 1;
        // Choices after the first wait for a place, not for a prefix.
        let admitted = self.admitted.filter(|_| choice == 0).unwrap_or_else(Instant::now);
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
                speculator,
                reuse,
                metrics: Arc::clone(&self.metrics),
            },
        )
    }
}

/// What starting a choice needs.
pub(super) struct Floor<'a> {
    pub(super) model: &'a mut dyn Model,
    pub(super) tokenizer: &'a TextTokenizer,
    pub(super) prefix: Option<&'a Prefix>,
    /// Sequences at work now.
    pub(super) active: usize,
    /// Sequences that may run together.
    pub(super) batch: usize,
}

/// What came of starting a choice.
#[derive(Debug)]
pub(super) enum Entry {
    /// It runs.
    Runs(Box<Sequence>),
    /// It was complete at once: its whole prompt was known, and its first token its last.
    Complete(Box<Sequence>),
    /// The beginning of its prompt is on its way from disk.
    Waits,
    /// The request cannot start.
    Failed(u64, EngineError),
}

/// The requests, in the order of the queue.
#[derive(Debug)]
pub(super) struct Admissions {
    waiting: VecDeque<Admission>,
    proposers: Proposers,
    metrics: Arc<EngineMetrics>,
    /// Tokens that prompt and answer may have together.
    context: usize,
    /// Requests seen so far.
    requests: u64,
}

impl Admissions {
    pub(super) fn new(proposers: Proposers, metrics: Arc<EngineMetrics>, context: usize) -> Self {
        Self { waiting: VecDeque::new(), proposers, metrics, context, requests: 0 }
    }

    /// Numbers of the requests.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u64> {
        self.waiting.iter().map(|a| a.number)
    }

    /// What the plan needs to know of them. `others`: whether somebody runs while a drive is waited for.
    pub(super) fn pending(&self, others: bool) -> Vec<Pending> {
        let pending = |a: &Admission| Pending {
            request: a.number,
            started: a.started(),
            prompt_read: a.prompt_end.is_some(),
            reading: others && a.reading.as_ref().is_some_and(|reading| !reading.is_finished()),
            tokens: a.job.request.prompt.len(),
            limit: a.limit,
        };
        self.waiting.iter().map(pending).collect()
    }

    /// Takes a request out of the queue in.
    pub(super) fn take(&mut self, job: Job) {
        let request = &job.request;
        let room = self.context.saturating_sub(request.prompt.len());
        let answer = request.max_tokens.map_or(room, |m| room.min(m as usize));
        debug!(
            prompt = request.prompt.len(),
            answer,
            choices = request.choices,
            waited = ?Instant::now().duration_since(job.submitted),
            "request admitted"
        );
        self.requests += 1;
        self.waiting.push_back(Admission {
            number: self.requests,
            next_choice: 0,
            limit: request.prompt.len() + answer,
            stop_ids: request.stop_token_ids.as_slice().into(),
            prompt_end: None,
            root: [0; 32],
            cached: 0,
            metrics: Arc::clone(&self.metrics),
            admitted: None,
            reading: None,
            job,
        });
    }

    /// Forgets requests that nobody waits for any more.
    pub(super) fn drop_the_gone(&mut self) {
        self.waiting.retain(|a| !a.job.events.is_closed());
    }

    /// Numbers of those that have waited for `limit` or longer without a start.
    pub(super) fn late(&self, limit: Duration) -> Vec<u64> {
        let late = |a: &&Admission| !a.started() && a.job.late(limit);
        self.waiting.iter().filter(late).map(|a| a.number).collect()
    }

    /// Forgets a request; tells it `error` unless it was told already.
    pub(super) fn fail(&mut self, number: u64, error: &EngineError, told: bool) {
        self.waiting.retain(|a| {
            if a.number == number && !told {
                a.fail(error);
            }
            a.number != number
        });
    }

    /// A request has what it came for: no more of its choices start.
    pub(super) fn served(&mut self, number: u64) {
        self.waiting.retain(|a| a.number != number);
    }

    /// A sequence has read its prompt: the other choices of its request may start from there.
    pub(super) fn prompt_read(&mut self, sequence: &Sequence, logits: &[f32]) {
        if let Some(admission) = self.waiting.iter_mut().find(|a| a.number == sequence.request) {
            admission.prompt_end.get_or_insert_with(|| (sequence.state.clone(), logits.to_vec()));
        }
    }

    /// Starts the next choice of the request at `index`.
    pub(super) fn start(&mut self, index: usize, floor: Floor<'_>) -> Entry {
        let Some(admission) = self.waiting.get_mut(index) else { return Entry::Waits };
        admission.admitted.get_or_insert_with(Instant::now);
        if let Some(prefix) = floor.prefix.filter(|_| !admission.started() && !admission.embeds())
            && admission.must_wait(prefix, floor.active > 0)
        {
            return Entry::Waits;
        }
        // One request that cannot even start must not take the others with it.
        let started = catch_unwind(AssertUnwindSafe(|| admission.start(&self.proposers, floor)));
        let (number, all) = (admission.number, admission.next_choice >= admission.job.request.choices);
        let entry = started.unwrap_or_else(|panic| {
            tracing::error!(reason = panic_message(panic.as_ref()), "starting a request panicked");
            Err(EngineError::Model("internal error".into()))
        });
        match entry {
            Ok(entry) => {
                if all {
                    self.waiting.remove(index);
                }
                entry
            }
            Err(error) => Entry::Failed(number, error),
        }
    }
}

impl Admission {
    fn start(&mut self, proposers: &Proposers, floor: Floor<'_>) -> Result<Entry, EngineError> {
        let Floor { model, tokenizer, prefix, active, batch } = floor;
        let prefix = prefix.filter(|_| !self.embeds());
        let request = &self.job.request;
        let mut speculator = proposers.speculator(request, self.next_choice);
        let (state, logits, reuse) = match &self.prompt_end {
            Some((state, logits)) => {
                let reuse = Reuse::of_choice(self.root, self.cached);
                (state.clone(), Some(logits.clone()), reuse)
            }
            None => {
                let start = match prefix {
                    Some(prefix) => prefix.start(request, model, &mut speculator),
                    None => Start::cold(model),
                };
                (self.root, self.cached) = (start.reuse.root, start.reuse.cached);
                if let Some(logits) = start.logits.as_ref().filter(|_| request.choices > 1) {
                    self.prompt_end = Some((start.state.clone(), logits.clone()));
                }
                (start.state, start.logits, start.reuse)
            }
        };
        if let Some(started) = self.job.started.take() {
            let shares = active > 0 || self.job.request.choices > 1;
            let mode = match (shares && batch > 1, speculator.is_empty()) {
                (true, _) => DecodeMode::Batched,
                (false, false) => DecodeMode::Specdec,
                (false, true) => DecodeMode::TargetOnly,
            };
            let _ = started.send(Started { mode, active: active + 1 });
            let admitted = *self.admitted.get_or_insert_with(Instant::now);
            let queued = admitted.saturating_duration_since(self.job.submitted);
            self.metrics.queued.observe(queued.as_secs_f64());
        }
        self.job.begun.store(true, Ordering::Relaxed);
        let mut sequence = self.next(state, speculator, reuse);
        // The whole prompt is known: its last logits are all that is needed.
        let complete = match logits {
            Some(mut logits) => sequence.advance(&mut logits, None, tokenizer)?,
            None => false,
        };
        let sequence = Box::new(sequence);
        Ok(if complete { Entry::Complete(sequence) } else { Entry::Runs(sequence) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::channel;
    use crate::{
        CacheHints, Events, GenerateRequest, OutputControl, Preset, SamplingParams, Speculation, Unread,
    };

    const LIMIT: Duration = Duration::from_secs(5);

    /// A request that came `age` ago.
    fn job(age: Duration) -> (Job, Events) {
        let request = GenerateRequest {
            prompt: vec![1],
            choices: 2,
            max_tokens: None,
            sampling: SamplingParams::greedy(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            logprobs: None,
            preset: Preset::None,
            cache: CacheHints::default(),
            warm: false,
            output: OutputControl::default(),
            policy: None,
        };
        let (events, receiver) = channel(&Arc::new(Unread::new(1 << 20)));
        let submitted = Instant::now() - age;
        (Job { request, events, submitted, begun: Arc::default(), started: None }, receiver)
    }

    #[test]
    fn late_is_who_came_long_ago_and_has_no_choice_running() {
        let mut admissions = Admissions::new(Proposers::new(Speculation::default()), Arc::default(), 100);
        let (jobs, _receivers): (Vec<_>, Vec<_>) =
            [9, 0, 9, 9, 9].map(|seconds| job(Duration::from_secs(seconds))).into_iter().unzip();
        // The fourth belongs to a request of which another part runs.
        jobs[3].begun.store(true, Ordering::Relaxed);
        jobs.into_iter().for_each(|job| admissions.take(job));
        // Of the third the first choice runs, and the second waits.
        admissions.waiting[2].next_choice = 1;
        assert_eq!(admissions.late(LIMIT), [1, 5]);
        assert_eq!(admissions.late(Duration::from_secs(3600)), [] as [u64; 0]);
        admissions.fail(1, &EngineError::QueueTimeout { limit: LIMIT }, false);
        assert_eq!((admissions.late(LIMIT), admissions.numbers().count()), (vec![5], 4));
    }
}
