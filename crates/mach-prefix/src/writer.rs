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

#[cfg(test)]
mod tests {
    use mach_models::SequenceState;

    use super::*;
    use crate::image::Image;
    use crate::snapshot::Kind;

    /// A snapshot of so many bytes.
    fn stored(key: u8, bytes: usize, kind: Kind) -> Stored {
        let logits = Some(vec![0.0; bytes / 4].into());
        let image = Image { state: SequenceState::without_layers(), draft: None, logits, hot: None };
        Stored {
            key: [key; 32],
            root: [0; 32],
            tokens: Arc::from([]),
            image: Arc::new(image),
            kind,
            turn: None,
        }
    }

    /// A writer that never comes to write, and what waits for it after these.
    fn waiting(most: usize, saves: impl IntoIterator<Item = Stored>) -> (Vec<u8>, u64) {
        let shared = Arc::new(Shared { most, ..Shared::default() });
        let writer = SegmentWriter { shared, thread: Mutex::default() };
        saves.into_iter().for_each(|stored| writer.save(stored, 0));
        let keys: Vec<u8> = writer.shared.lock().jobs.iter().map(|(stored, _)| stored.key[0]).collect();
        let (pending, dropped) = writer.pending();
        assert_eq!(pending, keys.len());
        // Nobody is to wait for the thread that there is not.
        writer.shared.lock().jobs.clear();
        (keys, dropped)
    }

    #[test]
    fn what_waits_to_be_saved_has_a_bound_in_bytes() {
        let turn = |key| stored(key, 400, Kind::TurnEnd);
        assert_eq!(waiting(1200, (1..=3).map(turn)), (vec![1, 2, 3], 0));
        assert_eq!(waiting(1199, (1..=3).map(turn)), (vec![2, 3], 1));
        assert_eq!(waiting(800, (1..=6).map(turn)), (vec![5, 6], 4), "the oldest are given up");
        // One is saved however large it is, alone.
        assert_eq!(waiting(1000, [turn(1), stored(2, 4000, Kind::TurnEnd)]), (vec![2], 1));
        assert_eq!(waiting(1000, [stored(2, 4000, Kind::TurnEnd), turn(1)]), (vec![1], 1));
        // Anchors stay, while there are others.
        let anchor = stored(9, 400, Kind::System);
        assert_eq!(waiting(800, [anchor, turn(1), turn(2)]), (vec![9, 2], 1));
        let anchors = (1..=3).map(|key| stored(key, 400, Kind::Warmed));
        assert_eq!(waiting(800, anchors), (vec![2, 3], 1));
    }

    #[test]
    fn so_do_their_number_and_nothing_waits_twice() {
        let most = MOST_WAITING as u8;
        let small = |key| stored(key, 4, Kind::TurnEnd);
        assert_eq!(waiting(1 << 20, (1..=most).map(small)).1, 0);
        assert_eq!(waiting(1 << 20, (1..=most + 2).map(small)), ((3..=most + 2).collect(), 2));
        assert_eq!(waiting(1 << 20, [small(1), small(2), small(1)]), (vec![1, 2], 0));
    }
}
