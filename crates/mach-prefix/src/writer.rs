//! Saving in the background, on a thread that gets out of the way of the model's.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::chain::Hash;
use crate::directory::Directory;
use crate::memory::Stored;

/// Saves that may wait; each holds its snapshot in memory.
const MOST_WAITING: usize = 8;
/// Other servers' segments are looked for this often while there is work or interest.
const SCAN_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Inner {
    jobs: VecDeque<(Stored, u64)>,
    running: Option<Hash>,
    dropped: u64,
    scan: bool,
    closed: bool,
    /// Nothing is written any more, not even what was begun.
    abandoned: bool,
}

#[derive(Debug, Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Most bytes that wait, one snapshot aside.
    most: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The lock is never held across code that can panic halfway through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread that writes segments.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl SegmentWriter {
    /// `most`: bytes of snapshots that may wait.
    pub(crate) fn start(directory: Arc<Directory>, most: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared { most, ..Shared::default() });
        let work = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("mach-save".into()).spawn(move || {
            yield_to_others();
            run(&work, &directory);
        })?;
        Ok(SegmentWriter { shared, thread: Some(thread).into() })
    }

    /// Queues a save; the oldest is given up when too many wait.
    pub(crate) fn save(&self, stored: Stored, now: u64) {
        let mut inner = self.shared.lock();
        let queued = inner.jobs.iter().any(|(job, _)| job.key == stored.key);
        if inner.closed || queued || inner.running == Some(stored.key) {
            return;
        }
        let bytes = |jobs: &VecDeque<(Stored, u64)>| {
            jobs.iter().map(|(job, _)| job.image.exported_bytes()).sum::<usize>()
                + stored.image.exported_bytes()
        };
        while inner.jobs.len() >= MOST_WAITING
            || (!inner.jobs.is_empty() && bytes(&inner.jobs) > self.shared.most)
        {
            let victim = inner.jobs.iter().position(|(job, _)| !job.kind.anchor()).unwrap_or(0);
            inner.jobs.remove(victim);
            inner.dropped += 1;
        }
        inner.jobs.push_back((stored, now));
        drop(inner);
        self.shared.changed.notify_all();
    }

    /// Asks for segments of other servers to be taken in, soon.
    pub(crate) fn look_around(&self) {
        let mut inner = self.shared.lock();
        if !inner.scan {
            inner.scan = true;
            drop(inner);
            self.shared.changed.notify_all();
        }
    }

    /// Saves that wait or run, and those given up.
    pub(crate) fn pending(&self) -> (usize, u64) {
        let inner = self.shared.lock();
        (inner.jobs.len() + usize::from(inner.running.is_some()), inner.dropped)
    }

    /// Waits until a snapshot neither waits nor is being written.
    pub(crate) fn wait_for(&self, key: &Hash, at_most: Duration) {
        let busy = |inner: &mut Inner| {
            inner.running == Some(*key) || inner.jobs.iter().any(|(job, _)| job.key == *key)
        };
        let inner = self.shared.lock();
        drop(self.shared.changed.wait_timeout_while(inner, at_most, busy));
    }

    /// Writes what waits, for at most this long, and ends the thread.
    pub(crate) fn close(&self, at_most: Duration) {
        let busy = |inner: &mut Inner| inner.running.is_some() || !inner.jobs.is_empty();
        let inner = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(inner, at_most, busy);
        let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.closed = true;
        inner.abandoned = true;
        drop(inner);
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for SegmentWriter {
    fn drop(&mut self) {
        self.close(Duration::ZERO);
    }
}

/// Gives the calling thread the lowest priority: a running generation comes first. Where the system does not let threads
/// have priorities, nothing happens.
pub fn yield_to_others() {
    #[cfg(target_os = "linux")]
    {
        let thread = rustix::thread::gettid();
        let _ = rustix::process::setpriority_process(Some(thread), 19);
    }
}

fn run(shared: &Shared, directory: &Directory) {
    let mut scanned = Instant::now();
    loop {
        let (stored, now) = {
            let mut inner = shared.lock();
            loop {
                if inner.abandoned {
                    return;
                }
                if let Some((stored, now)) = inner.jobs.pop_front() {
                    inner.running = Some(stored.key);
                    break (Some(stored), now);
                }
                if inner.scan && scanned.elapsed() >= SCAN_EVERY {
                    inner.scan = false;
                    break (None, 0);
                }
                let idle = SCAN_EVERY.saturating_sub(scanned.elapsed()).max(Duration::from_millis(10));
                inner = if inner.scan {
                    let waited = shared.changed.wait_timeout(inner, idle);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                } else {
                    shared.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
                };
            }
        };
        let Some(stored) = stored else {
            directory.scan(now);
            scanned = Instant::now();
            continue;
        };
        let mut pause = || match shared.lock().abandoned {
            true => Err(io::Error::new(io::ErrorKind::Interrupted, "the server stops")),
            false => Ok(()),
        };
        let started = Instant::now();
        match directory.save(&stored, now, &mut pause) {
            Ok(()) => debug!(tokens = stored.tokens().len(), took = ?started.elapsed(), "prefix saved"),
            // A full disk was told, with its directory.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                debug!(%error, "a prefix is not saved");
            }
            Err(error) => warn!(%error, "a prefix could not be saved"),
        }
        drop(stored);
        shared.lock().running = None;
        shared.changed.notify_all();
    }
}
