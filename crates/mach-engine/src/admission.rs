//! Who runs: requests leave the queue when a place and memory are free; sequences without memory wait for it.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use mach_models::SequenceState;
use mach_specdec::Speculator;
use tracing::debug;

use crate::prefix::{Prefix, Reuse, Start};
use crate::queue::{Job, Next};
use crate::scheduler::{Scheduler, panic_message};
use crate::sequence::{Origin, Sequence};
use crate::{DecodeMode, EngineError, EngineMetrics, Event, Started};

/// A request whose choices have not all started.
#[derive(Debug)]
pub(crate) struct Admission {
    job: Job,
    pub(crate) number: u64,
    next_choice: u32,
    limit: usize,
    stop_ids: Arc<[u32]>,
    /// State and logits at the end of the prompt, from the first choice, for the others to start from.
    pub(crate) prompt_end: Option<(SequenceState, Vec<f32>)>,
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
    pub(crate) fn started(&self) -> bool {
        self.next_choice > 0
    }

    /// Whether a choice could start now: the first, or one more once the first has read the prompt.
    fn can_start(&self) -> bool {
        !self.started() || self.prompt_end.is_some()
    }

    pub(crate) fn fail(&self, error: &EngineError) {
        // A closed channel means that nobody waits for the answer.
        let _ = self.job.events.send(Event::Failed(error.clone()));
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

impl Scheduler {
    /// Takes work in; sleeps when there is none. False when there will be none.
    pub(crate) fn admit(&mut self) -> bool {
        self.drop_the_late();
        if let Some(prefix) = &self.prefix {
            // Whoever went away may come back and have the answer go on.
            for sequence in self.active.iter_mut().filter(|s| s.cancelled() && s.decoding()) {
                prefix.keep_turn(self.model.as_mut(), sequence);
            }
        }
        self.active.retain(|s| !s.cancelled());
        self.paused.retain(|s| !s.cancelled());
        self.admissions.retain(|a| !a.job.events.is_closed());
        self.publish();
        if self.active.is_empty() && self.paused.is_empty() && self.admissions.is_empty() {
            match self.shared.queue.pop(true) {
                Next::Job(job) => self.enqueue(*job),
                Next::Empty => {}
                Next::Closed => return false,
            }
        }
        self.resume_paused();
        loop {
            self.take_from_queue();
            if !self.start_next() {
                break;
            }
        }
        self.publish();
        true
    }

    fn publish(&self) {
        let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
        (stats.active, stats.paused) = (self.active.len(), self.paused.len());
    }

    /// Fails what took too long.
    fn drop_the_late(&mut self) {
        if let Some(limit) = self.config.queue_timeout {
            let expired = self.shared.queue.expire(limit);
            let late: Vec<u64> = self
                .admissions
                .iter()
                .filter(|a| !a.started() && a.job.submitted.elapsed() >= limit)
                .map(|a| a.number)
                .collect();
            let error = EngineError::QueueTimeout { limit };
            (0..expired).for_each(|_| self.shared.metrics.failed(&error));
            late.into_iter().for_each(|number| self.fail_request(number, &error));
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

    /// Pauses the youngest sequences until the others have memory for the next pass.
    pub(crate) fn make_room(&mut self) {
        while self.active.len() > 1 && !self.room.enough(self.model.as_ref(), &self.active) {
            let ages = self.active.iter().enumerate().map(|(i, s)| ((s.request, s.choice), i));
            let Some((_, youngest)) = ages.max() else { return };
            let mut sequence = self.active.remove(youngest);
            debug!(request = sequence.request, tokens = sequence.tokens.len(), "paused for want of memory");
            sequence.state = SequenceState::without_layers();
            self.paused.push_front(sequence);
            self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).preemptions += 1;
        }
    }

    fn resume_paused(&mut self) {
        while let Some(first) = self.paused.front() {
            let fits = self.room.fits(self.model.as_ref(), &self.active, first.tokens.len(), first.limit);
            if !self.active.is_empty() && (!fits || self.active.len() >= self.config.max_batch) {
                return;
            }
            let Some(sequence) = self.paused.pop_front() else { return };
            self.active.push(sequence);
            self.start_over(self.active.len() - 1);
        }
    }

    /// Takes a request out of the queue if it could start at once.
    fn take_from_queue(&mut self) {
        let idle = self.active.is_empty() && self.paused.is_empty() && self.admissions.is_empty();
        let place = self.config.continuous_batching && self.active.len() < self.config.max_batch;
        let nobody_waits = self.paused.is_empty() && self.admissions.iter().all(Admission::started);
        if (idle || place && nobody_waits)
            && let Next::Job(job) = self.shared.queue.pop(false)
        {
            self.enqueue(*job);
        }
    }

    /// Starts a choice of the request that has the fewest at work, if there is room. Nobody overtakes a request that waits
    /// for memory.
    fn start_next(&mut self) -> bool {
        let at_work = |number| self.active.iter().filter(|s| s.request == number).count();
        let candidates = self.admissions.iter().enumerate().filter(|(_, a)| a.can_start());
        let Some((_, number, index)) =
            candidates.map(|(index, a)| (at_work(a.number), a.number, index)).min()
        else {
            return false;
        };
        let Some(mut admission) = self.admissions.remove(index) else { return false };
        let (tokens, limit) = (admission.job.request.prompt.len(), admission.limit);
        let fits = self.room.fits(self.model.as_ref(), &self.active, tokens, limit);
        let free = self.paused.is_empty() && fits && self.active.len() < self.config.max_batch;
        if !self.active.is_empty() && !free {
            self.admissions.insert(index, admission);
            return false;
        }
        admission.admitted.get_or_insert_with(Instant::now);
        if let Some(prefix) = self.prefix.as_ref().filter(|_| !admission.started())
            && admission.must_wait(prefix, !self.active.is_empty())
        {
            self.admissions.insert(index, admission);
            return false;
        }
        // One request that cannot even start must not take the others with it.
        let started =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.start_choice(&mut admission)));
        match started {
            Ok(Ok(())) if admission.next_choice < admission.job.request.choices => {
                self.admissions.insert(index, admission);
            }
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                admission.fail(&error);
                self.fail_request(number, &error);
            }
            Err(panic) => {
                tracing::error!(reason = panic_message(panic.as_ref()), "starting a request panicked");
                let error = EngineError::Model("internal error".into());
                admission.fail(&error);
                self.fail_request(number, &error);
            }
        }
        true
    }

    fn start_choice(&mut self, admission: &mut Admission) -> Result<(), EngineError> {
        let request = &admission.job.request;
        let mut speculator = self.speculation.speculator(request, admission.next_choice);
        let (state, logits, reuse) = match &admission.prompt_end {
            Some((state, logits)) => {
                let reuse = Reuse::of_choice(admission.root, admission.cached);
                (state.clone(), Some(logits.clone()), reuse)
            }
            None => {
                let start = match &self.prefix {
                    Some(prefix) => prefix.start(request, self.model.as_mut(), &mut speculator),
                    None => Start::cold(self.model.as_ref()),
                };
                (admission.root, admission.cached) = (start.reuse.root, start.reuse.cached);
                if let Some(logits) = start.logits.as_ref().filter(|_| request.choices > 1) {
                    admission.prompt_end = Some((start.state.clone(), logits.clone()));
                }
                (start.state, start.logits, start.reuse)
            }
        };
        if let Some(started) = admission.job.started.take() {
            let shares = !self.active.is_empty() || admission.job.request.choices > 1;
            let mode = match (shares && self.config.max_batch > 1, speculator.is_empty()) {
                (true, _) => DecodeMode::Batched,
                (false, false) => DecodeMode::Specdec,
                (false, true) => DecodeMode::TargetOnly,
            };
            let _ = started.send(Started { mode, active: self.active.len() + 1 });
            let admitted = *admission.admitted.get_or_insert_with(Instant::now);
            let queued = admitted.saturating_duration_since(admission.job.submitted);
            self.shared.metrics.queued.observe(queued.as_secs_f64());
        }
        let mut sequence = admission.next(state, speculator, reuse);
        // The whole prompt is known: its last logits are all that is needed.
        let complete = match logits {
            Some(mut logits) => sequence.advance(&mut logits, &self.tokenizer)?,
            None => false,
        };
        if complete {
            let mut stats = self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner);
            stats.ended(sequence.stats());
        } else {
            self.active.push(sequence);
        }
        Ok(())
    }

    fn enqueue(&mut self, job: Job) {
        let request = &job.request;
        let room = self.context.saturating_sub(request.prompt.len());
        let answer = request.max_tokens.map_or(room, |m| room.min(m as usize));
        let limit = request.prompt.len() + answer;
        debug!(
            prompt = request.prompt.len(),
            answer,
            choices = request.choices,
            waited = ?Instant::now().duration_since(job.submitted),
            "request admitted"
        );
        self.requests += 1;
        self.admissions.push_back(Admission {
            number: self.requests,
            next_choice: 0,
            limit,
            stop_ids: request.stop_token_ids.as_slice().into(),
            prompt_end: None,
            root: [0; 32],
            cached: 0,
            metrics: Arc::clone(&self.shared.metrics),
            admitted: None,
            reading: None,
            job,
        });
    }
}
