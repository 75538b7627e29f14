//! Which requests are at work, and whether the server takes more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The state of a server that may be about to stop.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    running: AtomicUsize,
    draining: AtomicBool,
    changed: Notify,
}

/// A request at work, until its answer is written.
#[derive(Debug)]
pub(crate) struct Running(Arc<Drain>);

impl Drain {
    /// A request begins.
    pub(crate) fn enter(self: &Arc<Self>) -> Running {
        self.running.fetch_add(1, Ordering::AcqRel);
        Running(Arc::clone(self))
    }

    /// No more requests are taken; those at work finish.
    pub(crate) fn begin(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether [`begin`](Self::begin) was called.
    pub(crate) fn begun(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Waits until no request is at work.
    pub(crate) async fn idle(&self) {
        loop {
            let changed = self.changed.notified();
            let mut changed = std::pin::pin!(changed);
            // Registered before the count is looked at, so that no end is missed.
            changed.as_mut().enable();
            if self.running.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn idle_when_the_last_one_ends() {
        let drain = Arc::<Drain>::default();
        drain.idle().await;
        let (first, second) = (drain.enter(), drain.enter());
        drop(first);
        assert!(tokio::time::timeout(Duration::from_millis(20), drain.idle()).await.is_err());
        let waiting = tokio::spawn({
            let drain = Arc::clone(&drain);
            async move { drain.idle().await }
        });
        tokio::task::yield_now().await;
        drop(second);
        waiting.await.unwrap();
        assert!(!drain.begun());
        drain.begin();
        assert!(drain.begun());
    }
}
