//! Where the time of a pass goes: kernel by kernel on the device, and what the host does beside it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::timing::Timing;

/// A pass.
#[derive(Debug, Clone, Default)]
pub struct PassTimes {
    /// Each dispatch in order, if they were timed.
    pub kernels: Vec<Timing>,
    /// From the beginning until all was handed to the device.
    pub recorded: Duration,
    /// From then until the device was done.
    pub waited: Duration,
    /// Reading back.
    pub read: Duration,
}

/// Passes as they come. Copies share them.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    /// Whether dispatches are timed, each by itself; this makes a pass slower.
    pub timed: bool,
    passes: Arc<Mutex<Vec<PassTimes>>>,
}

impl Profile {
    /// One without passes.
    pub fn new(timed: bool) -> Profile {
        Profile { timed, ..Profile::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Vec<PassTimes>> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, pass: PassTimes) {
        self.inner().push(pass);
    }

    /// The passes since the last call.
    pub fn take(&self) -> Vec<PassTimes> {
        std::mem::take(&mut *self.inner())
    }
}

/// The pass that is under way.
#[derive(Debug)]
pub(crate) struct UnderWay {
    pub(crate) started: Instant,
    pub(crate) kernels: Vec<Timing>,
}
