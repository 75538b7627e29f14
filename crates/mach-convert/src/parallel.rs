//! A list of jobs for several threads.

use std::sync::Mutex;

/// Runs every job; ends early at the first error, which is returned.
pub(crate) fn parallel<T: Send, E: Send>(
    threads: usize,
    jobs: impl ExactSizeIterator<Item = T> + Send,
    run: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let workers = threads.clamp(1, jobs.len().max(1));
    let queue = Mutex::new(jobs);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = queue.lock().ok().and_then(|mut q| q.next()) {
                    if let Err(error) = run(job) {
                        if let Ok(mut first) = failure.lock() {
                            first.get_or_insert(error);
                        }
                        // Nobody else begins another.
                        if let Ok(mut q) = queue.lock() {
                            q.by_ref().for_each(drop);
                        }
                    }
                }
            });
        }
    });
    match failure.into_inner() {
        Ok(Some(error)) => Err(error),
        _ => Ok(()),
    }
}
