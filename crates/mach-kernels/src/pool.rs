//! A pool of compute threads: all run the same closure, each on its own static part; between calls they spin for a
//! short while, then park.

use std::cell::UnsafeCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};

/// Pauses before a waiting thread starts to yield: some 10 microseconds.
const SPINS: u32 = 1_000;

/// Yields before a worker parks: longer than any gap inside a forward pass. On a machine that is busy with other work,
/// yielding lets the thread that is waited for run.
const YIELDS: u32 = 1_000;

/// One step of waiting.
fn relax(step: u32) {
    if step < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
}

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    /// Incremented for each job; workers wait for it to change.
    epoch: AtomicU32,
    job: UnsafeCell<Option<Job>>,
    running: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    parked: Vec<AtomicBool>,
}

// SAFETY: `job` is written by the caller of `run` before it publishes a new epoch (release) and read by workers after
// they see it (acquire); it is not written again before every worker has reported back through `running`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer inside is only followed while `run` keeps the closure borrowed.
unsafe impl Send for Shared {}

/// The pool. The calling thread is thread 0.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<(Thread, Option<JoinHandle<()>>)>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Pool {
    /// A pool of `threads` (0: as many as the machine offers this process).
    pub fn new(threads: usize) -> Pool {
        let threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            n => n,
        };
        let shared = Arc::new(Shared {
            epoch: AtomicU32::new(0),
            job: UnsafeCell::new(None),
            running: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            parked: (0..threads).map(|_| AtomicBool::new(false)).collect(),
        });
        let workers = (1..threads)
            .filter_map(|index| {
                let shared = Arc::clone(&shared);
                let builder = std::thread::Builder::new().name(format!("mach-compute-{index}"));
                let handle = builder.spawn(move || work(&shared, index)).ok()?;
                Some((handle.thread().clone(), Some(handle)))
            })
            .collect();
        Pool { shared, workers }
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(thread)` once on every thread and waits for all.
    ///
    /// # Panics
    /// If `job` panicked on any thread.
    pub fn run(&mut self, job: impl Fn(usize) + Sync) {
        if self.workers.is_empty() {
            return job(0);
        }
        let erased: &(dyn Fn(usize) + Sync) = &job;
        // SAFETY: only the lifetime is erased; the wait below outlives every use of the pointer.
        let erased: Job = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(erased) };
        // SAFETY: no worker reads `job` now: all reported back at the end of the previous run (`&mut self`).
        unsafe { *self.shared.job.get() = Some(erased) };
        self.shared.running.store(self.workers.len(), Ordering::Relaxed);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (index, (thread, _)) in self.workers.iter().enumerate() {
            if self.shared.parked[index + 1].load(Ordering::SeqCst) {
                thread.unpark();
            }
        }
        let mine = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(0)));
        let mut spins = 0u32;
        while self.shared.running.load(Ordering::Acquire) != 0 {
            relax(spins);
            spins = spins.saturating_add(1);
        }
        if let Err(panic) = mine {
            std::panic::resume_unwind(panic);
        }
        assert!(!self.shared.panicked.swap(false, Ordering::Relaxed), "a compute thread panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for (thread, handle) in &mut self.workers {
            thread.unpark();
            if let Some(handle) = handle.take() {
                let _ = handle.join();
            }
        }
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        let mut spins = 0;
        loop {
            let epoch = shared.epoch.load(Ordering::SeqCst);
            if epoch != seen {
                seen = epoch;
                break;
            }
            spins += 1;
            if spins < SPINS + YIELDS {
                relax(spins);
            } else {
                // Announce, look once more, sleep: a job published in between sees the flag and unparks. A swap, not a
                // store: qemu does not order an Arm release store before a later acquire load, and a wake-up gets lost.
                shared.parked[index].swap(true, Ordering::SeqCst);
                if shared.epoch.load(Ordering::SeqCst) == seen {
                    std::thread::park();
                }
                shared.parked[index].store(false, Ordering::SeqCst);
            }
        }
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        // SAFETY: the epoch was published after the job was written, and `run` waits for `running` to reach 0 before it
        // returns, so the closure is alive.
        if let Some(job) = unsafe { *shared.job.get() } {
            // SAFETY: as above.
            let job = unsafe { &*job };
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(index))).is_err() {
                shared.panicked.store(true, Ordering::Relaxed);
            }
        }
        shared.running.fetch_sub(1, Ordering::Release);
    }
}

/// The contiguous part of `0..total` that belongs to `thread` of `threads`; sizes differ by one at most.
pub fn partition(total: usize, threads: usize, thread: usize) -> Range<usize> {
    total * thread / threads..total * (thread + 1) / threads
}

/// A raw pointer that compute threads share; each writes its own elements.
#[derive(Debug)]
pub(crate) struct SharedMut<T>(*mut T);

impl<T> Clone for SharedMut<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for SharedMut<T> {}

// SAFETY: users write disjoint elements from different threads and join before reading.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    pub(crate) fn new(slice: &mut [T]) -> Self {
        SharedMut(slice.as_mut_ptr())
    }
    /// The pointer; a method, so that closures capture the wrapper.
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_thread_runs_once_a_job() {
        for threads in 1..5 {
            let mut pool = Pool::new(threads);
            let counts: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(0)).collect();
            for _ in 0..1000 {
                pool.run(|t| {
                    counts[t].fetch_add(1, Ordering::Relaxed);
                });
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
            pool.run(|t| {
                counts[t].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1001));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives() {
        let mut pool = Pool::new(2);
        for bad in 0..2 {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(|t| assert!(t != bad, "on purpose"));
            }));
            assert!(result.is_err());
        }
        pool.run(|_| {});
    }

    #[test]
    fn parts_cover_everything_once() {
        for total in [0, 1, 7, 64] {
            for threads in 1..9 {
                let all: Vec<usize> = (0..threads).flat_map(|t| partition(total, threads, t)).collect();
                assert_eq!(all, (0..total).collect::<Vec<_>>());
            }
        }
    }
}
