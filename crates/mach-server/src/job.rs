//! Work that takes long (texts are parsed, rendered, tokenized, grammars compiled): off the threads that serve sockets, in memory that was
//! charged before, and not for somebody who has gone.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mach_api::{ApiError, ErrorKind};
use tokio::task::JoinHandle;

use crate::account::{Account, Working};

/// How long work that is under way waits for more memory.
const PATIENCE: Duration = Duration::from_secs(3);
/// Bytes that any work may take.
const LEAST: usize = 256 << 10;

/// A piece of work, to those who do it.
#[derive(Debug, Default)]
pub(crate) struct Job {
    gone: Arc<AtomicBool>,
    /// Not there at the start, where nobody else is at work.
    memory: Option<Arc<Mutex<Working>>>,
}

impl Job {
    /// So many bytes will be taken at most from now on, at one time, what was told before included. Waits a little for what others
    /// have; not for long, as they may be waiting for what this has.
    pub(crate) fn needs(&mut self, bytes: usize) -> Result<(), ApiError> {
        let begun = Instant::now();
        loop {
            self.goes_on()?;
            let Some(memory) = &self.memory else { return Ok(()) };
            let grown = memory.lock().unwrap_or_else(PoisonError::into_inner).grow(bytes);
            match grown {
                Err(error) if error.kind == ErrorKind::NoRoom && begun.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                done => return done,
            }
        }
    }

    /// An error if nobody waits for the result any more.
    pub(crate) fn goes_on(&self) -> Result<(), ApiError> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(ApiError::new(ErrorKind::Unavailable, "the client has gone"));
        }
        Ok(())
    }

    /// The memory, for a part of the work that may outlast the rest: it is free when all have dropped it.
    pub(crate) fn charge(&self) -> impl Send + use<> {
        self.memory.clone()
    }

    /// Set when nobody waits any more.
    pub(crate) fn gone(&self) -> &Arc<AtomicBool> {
        &self.gone
    }
}

/// Tells the work when it is dropped; what has not begun by then never does.
struct Waiting<T> {
    gone: Arc<AtomicBool>,
    handle: JoinHandle<T>,
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Relaxed);
        self.handle.abort();
    }
}

/// Waits for the memory, then for the work. Dropping the future ends both.
pub(crate) async fn off_the_sockets<T: Send + 'static>(
    account: &Arc<Account>,
    bytes: usize,
    work: impl FnOnce(&mut Job) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let memory = account.work(bytes.max(LEAST)).await?;
    let gone = Arc::<AtomicBool>::default();
    let mut job = Job { gone: Arc::clone(&gone), memory: Some(Arc::new(Mutex::new(memory))) };
    let returns = account.returns(bytes);
    let handle = tokio::task::spawn_blocking(move || {
        job.goes_on()?;
        let out = mach_api::template::until(&Arc::clone(job.gone()), || work(&mut job));
        if returns {
            crate::allocator::give_back();
        }
        out
    });
    let mut waiting = Waiting { gone, handle };
    let done = (&mut waiting.handle).await;
    done.map_err(|_| ApiError::new(ErrorKind::Internal, "internal error"))?
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_for_somebody_who_has_gone_ends_or_never_begins() {
        // Three quarters of it are for work.
        let account = Account::new(8 << 20);
        let (told, tells) = mpsc::channel();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let own = Arc::clone(&account);
        let first = tokio::spawn(async move {
            let work = move |job: &mut Job| {
                let _ = begun.send(());
                while job.goes_on().is_ok() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let _ = told.send("ended");
                Ok(())
            };
            off_the_sockets(&own, 4 << 20, work).await
        });
        begins.await.unwrap();
        let second = off_the_sockets(&account, 4 << 20, |_| -> Result<(), ApiError> { panic!("it began") });
        assert!(tokio::time::timeout(Duration::from_millis(20), second).await.is_err(), "there is no room");
        assert!(account.charged().1 > 0);
        first.abort();
        let ended = tokio::task::spawn_blocking(move || tells.recv_timeout(Duration::from_secs(10)));
        assert_eq!(ended.await.unwrap(), Ok("ended"));
        while account.charged().1 > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn what_outlasts_the_work_keeps_its_memory() {
        let account = Account::new(8 << 20);
        let work = |job: &mut Job| {
            job.needs(3 << 20)?;
            Ok(job.charge())
        };
        let left = off_the_sockets(&account, 1 << 20, work).await.unwrap();
        assert_eq!(account.charged().1, 3 << 20);
        drop(left);
        assert_eq!(account.charged().1, 0);
    }

    #[tokio::test]
    async fn more_than_there_is_is_refused_in_the_middle() {
        let account = Account::new(5 << 20);
        let work = |bytes| {
            off_the_sockets(&account, 1 << 20, move |job| job.needs(bytes).map(|()| job.needs(1 << 20)))
        };
        assert!(work(2 << 20).await.is_ok());
        assert_eq!(work(5 << 20).await.unwrap_err().kind, ErrorKind::TooLarge);
        let other = account.work(1 << 20).await.unwrap();
        assert_eq!(work(3 << 20).await.unwrap_err().kind, ErrorKind::NoRoom);
        // What comes free in time is waited for.
        let leaves = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(other);
        };
        let (done, ()) = tokio::join!(work(3 << 20), leaves);
        assert!(done.is_ok());
    }
}
