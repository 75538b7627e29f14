//! The bounded queue between request tasks and the engine thread.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::events::EventSender;
use crate::{EngineError, Event, GenerateRequest, Started};

/// An accepted request.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: GenerateRequest,
    pub(crate) events: EventSender,
    pub(crate) submitted: Instant,
    /// Some part of its request has begun: the others wait for a place, not for their request's turn. Shared by the parts.
    pub(crate) begun: Arc<AtomicBool>,
    /// Told when the request leaves the queue.
    pub(crate) started: Option<oneshot::Sender<Started>>,
}

impl Job {
    /// Whether its request has waited for its turn for `limit` or longer.
    pub(crate) fn late(&self, limit: Duration) -> bool {
        !self.begun.load(Ordering::Relaxed) && self.submitted.elapsed() >= limit
    }
}

/// What the engine thread finds when it looks at the queue.
#[derive(Debug)]
pub(crate) enum Next {
    Job(Box<Job>),
    /// Nothing is waiting now.
    Empty,
    /// Nothing is waiting and nothing will come.
    Closed,
}

#[derive(Debug, Default)]
struct Inner {
    /// With the number of the request that each belongs to; those of one request follow each other.
    waiting: VecDeque<(u64, Job)>,
    /// Requests so far.
    requests: u64,
    closed: bool,
    aborted: bool,
    /// The engine thread has not come back for more work since it took some.
    busy: bool,
    /// Smoothed time that a request holds the engine.
    service_time: Duration,
}

impl Inner {
    fn requests_waiting(&self) -> usize {
        let mut last = None;
        let open = self.waiting.iter().filter(|(_, job)| !job.events.is_closed());
        open.filter(|(request, _)| last.replace(*request) != Some(*request)).count()
    }
}

/// Shared by the engine's handles and its thread.
#[derive(Debug)]
pub(crate) struct Queue {
    capacity: usize,
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Queue {
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, inner: Mutex::default(), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The lock is never held across code that can panic halfway through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the jobs of one request, all or none. They fill one place together, so that a request for many answers finds room
    /// wherever a request for one does.
    pub(crate) fn push(&self, jobs: Vec<Job>) -> Result<(), EngineError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(EngineError::ShuttingDown);
        }
        if inner.requests_waiting() >= self.capacity {
            inner.waiting.retain(|(_, job)| !job.events.is_closed());
        }
        let waiting = inner.requests_waiting();
        if waiting >= self.capacity {
            let retry_after = inner.service_time.as_secs_f64().ceil().clamp(1.0, 600.0) as u32;
            return Err(EngineError::QueueFull { waiting, retry_after });
        }
        inner.requests += 1;
        let request = inner.requests;
        inner.waiting.extend(jobs.into_iter().map(|job| (request, job)));
        drop(inner);
        self.changed.notify_one();
        Ok(())
    }

    /// Takes the next job that somebody still waits for; sleeps if there is none and `wait` is set.
    pub(crate) fn pop(&self, wait: bool) -> Next {
        let mut inner = self.lock();
        loop {
            while let Some((_, job)) = inner.waiting.pop_front() {
                if !job.events.is_closed() {
                    inner.busy = true;
                    return Next::Job(Box::new(job));
                }
            }
            if inner.closed {
                return Next::Closed;
            }
            if !wait {
                return Next::Empty;
            }
            // Only a thread that has nothing to do waits.
            inner.busy = false;
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether the engine thread works on something.
    pub(crate) fn busy(&self) -> bool {
        self.lock().busy
    }

    /// Requests that wait and that somebody waits for.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().requests_waiting()
    }

    /// Fails the jobs that have waited for `limit` or longer.
    pub(crate) fn expire(&self, limit: Duration) -> usize {
        let mut inner = self.lock();
        let before = inner.waiting.len();
        inner.waiting.retain(|(_, job)| {
            let expired = job.late(limit);
            if expired {
                job.events.send(Event::Failed(EngineError::QueueTimeout { limit }));
            }
            !expired
        });
        before - inner.waiting.len()
    }

    /// Records how long a request held the engine.
    pub(crate) fn served(&self, took: Duration) {
        let mut inner = self.lock();
        inner.service_time =
            if inner.service_time.is_zero() { took } else { (inner.service_time * 3 + took) / 4 };
    }

    /// Takes no more jobs; those waiting are still served.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Fails the jobs that wait and tells the engine thread to drop the others.
    pub(crate) fn abort(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.aborted = true;
        for (_, job) in inner.waiting.drain(..) {
            job.events.send(Event::Failed(EngineError::ShuttingDown));
        }
        drop(inner);
        self.changed.notify_all();
    }

    pub(crate) fn aborted(&self) -> bool {
        self.lock().aborted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::channel;
    use crate::{CacheHints, Events, OutputControl, Preset, SamplingParams, Unread};

    fn job(prompt: u32) -> (Job, Events) {
        let request = GenerateRequest {
            prompt: vec![prompt],
            choices: 1,
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
        (Job { request, events, submitted: Instant::now(), begun: Arc::default(), started: None }, receiver)
    }

    fn popped(queue: &Queue) -> Option<u32> {
        match queue.pop(false) {
            Next::Job(job) => job.request.prompt.first().copied(),
            Next::Empty | Next::Closed => None,
        }
    }

    #[test]
    fn the_job_of_a_client_that_is_gone_is_not_handed_out() {
        let queue = Queue::new(8);
        let (jobs, mut receivers): (Vec<_>, Vec<_>) = (0..4).map(job).unzip();
        jobs.into_iter().for_each(|job| queue.push(vec![job]).unwrap());
        assert_eq!(queue.waiting(), 4);
        drop(receivers.remove(2));
        drop(receivers.remove(0));
        assert_eq!(queue.waiting(), 2);
        assert_eq!([popped(&queue), popped(&queue), popped(&queue)], [Some(1), Some(3), None]);
    }

    #[test]
    fn places_of_clients_that_are_gone_are_free() {
        let queue = Queue::new(2);
        let (first, receiver) = job(0);
        let (second, _stays) = job(1);
        queue.push(vec![first]).unwrap();
        queue.push(vec![second]).unwrap();
        let (third, _stays_too) = job(2);
        assert!(matches!(
            queue.push(vec![job(3).0]),
            Err(EngineError::QueueFull { waiting: 2, retry_after: 1 })
        ));
        drop(receiver);
        queue.push(vec![third]).unwrap();
        assert_eq!([popped(&queue), popped(&queue), popped(&queue)], [Some(1), Some(2), None]);
    }

    #[test]
    fn jobs_that_waited_too_long_are_told() {
        let queue = Queue::new(2);
        let (late, mut receiver) = job(0);
        queue.push(vec![Job { submitted: Instant::now() - Duration::from_secs(9), ..late }]).unwrap();
        let (young, _stays) = job(1);
        queue.push(vec![young]).unwrap();
        assert_eq!(queue.expire(Duration::from_secs(5)), 1);
        assert!(matches!(receiver.try_recv(), Ok(Event::Failed(EngineError::QueueTimeout { .. }))));
        assert_eq!([popped(&queue), popped(&queue)], [Some(1), None]);
    }

    #[test]
    fn a_closed_queue_serves_what_waits_and_an_aborted_one_does_not() {
        let queue = Queue::new(4);
        let (waits, _stays) = job(0);
        queue.push(vec![waits]).unwrap();
        queue.close();
        assert!(matches!(queue.push(vec![job(1).0]), Err(EngineError::ShuttingDown)) && !queue.aborted());
        assert_eq!(popped(&queue), Some(0));
        assert!(matches!(queue.pop(true), Next::Closed));
        let queue = Queue::new(4);
        let (waits, mut receiver) = job(0);
        queue.push(vec![waits]).unwrap();
        queue.abort();
        assert!(queue.aborted() && matches!(queue.pop(true), Next::Closed));
        assert!(matches!(receiver.try_recv(), Ok(Event::Failed(EngineError::ShuttingDown))));
    }

    #[test]
    fn the_time_to_wait_follows_the_time_that_requests_take() {
        let queue = Queue::new(0);
        let retry = || match queue.push(vec![job(0).0]) {
            Err(EngineError::QueueFull { retry_after, .. }) => retry_after,
            _ => 0,
        };
        assert_eq!(retry(), 1);
        queue.served(Duration::from_secs(8));
        assert_eq!(retry(), 8);
        queue.served(Duration::from_secs(16));
        assert_eq!(retry(), 10, "a quarter of the way from 8 to 16");
        queue.served(Duration::from_secs(100_000));
        assert_eq!(retry(), 600);
    }
}
