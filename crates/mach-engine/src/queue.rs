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
