//! The memory that requests may take together, charged before it is used.
//!
//! What requests *hold* is charged as it comes: a body while it arrives, and what is made of it until the answer is written.
//! Nobody waits for it; a request that finds no room is refused. What *work* takes (parsing, rendering, tokenizing,
//! compiling) is charged for its peak before it begins, as far as that can be told, and waited for in the order of arrival; for what it
//! turns out to need beyond that it waits a few seconds at most, so that two pieces of work cannot lock each other up.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use mach_api::{ApiError, ErrorKind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of one permit.
const UNIT: usize = 1 << 10;
/// Part of all that may be held; the rest is for work.
const HELD_PART: usize = 4;
/// Bodies that have come to more than this leave the last quarter to smaller ones.
const LARGE: usize = 1 << 20;
/// Work that was charged with so much gives back what the allocator keeps.
const RETURNED: usize = 24 << 20;
/// How long work may wait for its memory.
const PATIENCE: Duration = Duration::from_secs(30);

/// A part of the account.
#[derive(Debug)]
struct Purse {
    units: usize,
    free: Arc<Semaphore>,
}

impl Purse {
    fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT).clamp(1, u32::MAX as usize);
        Self { units, free: Arc::new(Semaphore::new(units)) }
    }
}

/// Permits for so many bytes, rounded up; more than there can be for what is larger than any purse.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX)
}

/// The account of all requests.
#[derive(Debug)]
pub(crate) struct Account {
    held: Purse,
    work: Purse,
}

impl Account {
    /// For `bytes` in all.
    pub(crate) fn new(bytes: usize) -> Arc<Self> {
        let held = bytes / HELD_PART;
        Arc::new(Self { held: Purse::new(held), work: Purse::new(bytes - held) })
    }

    /// Holds nothing yet.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        Held { account: Arc::clone(self), bytes: 0, permit: None }
    }

    /// Waits for the memory of a piece of work.
    pub(crate) async fn work(&self, bytes: usize) -> Result<Working, ApiError> {
        if units(bytes) as usize > self.work.units {
            return Err(too_large(bytes, self.work.units * UNIT));
        }
        let permit = Arc::clone(&self.work.free).acquire_many_owned(units(bytes));
        match tokio::time::timeout(PATIENCE, permit).await {
            Ok(Ok(permit)) => {
                Ok(Working { free: Arc::clone(&self.work.free), most: self.work.units, permit })
            }
            _ => Err(no_room()),
        }
    }

    /// Whether work of this size leaves enough behind in the allocator for it to be given back to the system.
    pub(crate) fn returns(&self, bytes: usize) -> bool {
        bytes >= RETURNED
    }

    /// Bytes that are charged now, held and at work.
    pub(crate) fn charged(&self) -> (usize, usize) {
        let used = |purse: &Purse| (purse.units - purse.free.available_permits()) * UNIT;
        (used(&self.held), used(&self.work))
    }

    /// Bytes that may be charged, held and at work together.
    pub(crate) fn limit(&self) -> usize {
        (self.held.units + self.work.units) * UNIT
    }
}

fn too_large(bytes: usize, most: usize) -> ApiError {
    let message = format!(
        "the request needs about {} MiB of memory; at most {} MiB are there for one (--request-memory-mib)",
        bytes.div_ceil(1 << 20),
        most >> 20
    );
    ApiError::new(ErrorKind::TooLarge, message)
}

fn no_room() -> ApiError {
    let message = "the memory of requests is taken by others (--request-memory-mib)";
    ApiError::new(ErrorKind::NoRoom, message).retry_after(1)
}

/// The memory of a piece of work; free when it is dropped.
#[derive(Debug)]
pub(crate) struct Working {
    free: Arc<Semaphore>,
    most: usize,
    permit: OwnedSemaphorePermit,
}

impl Working {
    /// Charges so much, if it is more than before; does not wait.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        let wanted = units(bytes) as usize;
        if wanted > self.most {
            return Err(too_large(bytes, self.most * UNIT));
        }
        let more = wanted.saturating_sub(self.permit.num_permits());
        if more > 0 {
            let more = u32::try_from(more).unwrap_or(u32::MAX);
            let got = Arc::clone(&self.free).try_acquire_many_owned(more).map_err(|_| no_room())?;
            self.permit.merge(got);
        }
        Ok(())
    }
}

/// The memory that one request holds; free when it is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    account: Arc<Account>,
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Held {
    /// Charges what is held anew: to grow can be refused, to shrink cannot.
    pub(crate) fn set(&mut self, bytes: usize) -> Result<(), ApiError> {
        let purse = &self.account.held;
        let (now, wanted) = (units(self.bytes), units(bytes));
        if wanted > now {
            let most = if bytes > LARGE { purse.units / 4 * 3 } else { purse.units };
            if wanted as usize > most {
                return Err(too_large(bytes, most * UNIT));
            }
            // The last quarter is not for the large.
            let left = purse.free.available_permits();
            let more = wanted - now;
            if (more as usize) + (purse.units - most) > left {
                return Err(no_room());
            }
            let got = Arc::clone(&purse.free).try_acquire_many_owned(more).map_err(|_| no_room())?;
            match &mut self.permit {
                Some(permit) => permit.merge(got),
                None => self.permit = Some(got),
            }
        } else if let Some(permit) = &mut self.permit {
            drop(permit.split((now - wanted) as usize));
        }
        self.bytes = bytes;
        Ok(())
    }

    /// The response, which holds this until it is written or given up.
    pub(crate) fn until_written(self, response: Response) -> Response {
        response.map(|body| Body::new(Holding { body, _held: self }))
    }
}

#[derive(Debug)]
struct Holding {
    body: Body,
    _held: Held,
}

impl HttpBody for Holding {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_is_held_is_refused_when_it_is_too_much() {
        let account = Account::new(40 * MIB);
        let mut first = account.hold();
        // A quarter of all is held, and a large request leaves a quarter of that.
        assert_eq!(first.set(8 * MIB).unwrap_err().kind, ErrorKind::TooLarge);
        first.set(5 * MIB).unwrap();
        first.set(7 * MIB).unwrap();
        let mut second = account.hold();
        assert_eq!(second.set(2 * MIB).unwrap_err().kind, ErrorKind::NoRoom);
        second.set(MIB).unwrap();
        assert_eq!(account.charged(), (8 * MIB, 0));
        first.set(MIB + 1).unwrap();
        assert_eq!(account.charged().0, 2 * MIB + UNIT);
        drop(first);
        second.set(2 * MIB).unwrap();
        drop(second);
        assert_eq!(account.charged(), (0, 0));
    }

    #[tokio::test]
    async fn work_waits_for_its_memory_in_order() {
        let account = Account::new(40 * MIB);
        assert_eq!(account.work(31 * MIB).await.unwrap_err().kind, ErrorKind::TooLarge);
        let first = account.work(20 * MIB).await.unwrap();
        let (large, small) = (account.work(20 * MIB), account.work(MIB));
        let (mut large, mut small) = (std::pin::pin!(large), std::pin::pin!(small));
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, &mut large).await.is_err());
        assert!(tokio::time::timeout(soon, &mut small).await.is_err(), "nobody is overtaken");
        drop(first);
        assert!(tokio::time::timeout(soon, large).await.unwrap().is_ok());
        assert!(tokio::time::timeout(soon, small).await.unwrap().is_ok());
    }
}
