//! A reader that fails on purpose, so that what is built on it can be tested against failing drives.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::files::OpenFile;
use crate::reader::{Backend, Ended, Op, ReadFailure};
use crate::{ReadError, Reader};

/// What goes wrong with a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The drive reports an error.
    Eio,
    /// Only so many bytes come.
    Short(usize),
    /// One bit of the record arrives flipped: byte, bit.
    Flip(usize, u8),
    /// The read takes longer.
    Delay(Duration),
}

/// Decides what happens to a read, given the index of its file, its offset and its length.
pub type FaultPlan = Arc<dyn Fn(usize, u64, usize) -> Option<Fault> + Send + Sync>;

/// A [`FaultPlan`] that can be part of other settings.
#[derive(Clone)]
pub struct Faults(pub FaultPlan);

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faults")
    }
}

impl Reader {
    /// The same reader, with faults.
    pub fn with_faults(self, plan: FaultPlan) -> Reader {
        self.wrap(|inner, files| {
            Box::new(Faulty { inner, files, plan, faults: Vec::new(), held: Vec::new() })
        })
    }
}

struct Faulty {
    inner: Box<dyn Backend>,
    files: Arc<[OpenFile]>,
    plan: FaultPlan,
    /// Faults of running reads: tag of the read as the inner backend sees it, and its own.
    faults: Vec<Option<Planned>>,
    /// Reads that have ended but are not told yet.
    held: Vec<(Instant, Ended)>,
}

#[derive(Debug)]
struct Planned {
    tag: u64,
    file: usize,
    offset: u64,
    fault: Option<Fault>,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Faulty {
    fn damage(&self, planned: &Planned, mut ended: Ended) -> Ended {
        let path = || self.files.get(planned.file).map(|f| f.path.clone()).unwrap_or_default();
        let (offset, len) = (planned.offset, ended.len);
        ended.result = match (planned.fault, ended.result) {
            (Some(Fault::Eio), Ok(slot)) => {
                let source = std::io::Error::from_raw_os_error(libc::EIO);
                let error = ReadError::Io { file: path(), offset, len, source };
                Err(ReadFailure { error, slot: Some(slot) })
            }
            (Some(Fault::Short(found)), Ok(slot)) => {
                let error = ReadError::Truncated { file: path(), offset, len, found: found.min(len) };
                Err(ReadFailure { error, slot: Some(slot) })
            }
            (Some(Fault::Flip(byte, bit)), Ok(mut slot)) => {
                if let Some(b) = slot.get_mut(byte) {
                    *b ^= 1 << (bit % 8);
                }
                Ok(slot)
            }
            (_, result) => result,
        };
        ended
    }
}

impl Backend for Faulty {
    fn start(&mut self, mut op: Op) {
        let fault = (self.plan)(op.read.file, op.read.offset, op.read.len);
        let planned = Planned { tag: op.read.tag, file: op.read.file, offset: op.read.offset, fault };
        let place = self.faults.iter().position(Option::is_none).unwrap_or(self.faults.len());
        op.read.tag = place as u64;
        if place == self.faults.len() {
            self.faults.push(Some(planned));
        } else if let Some(free) = self.faults.get_mut(place) {
            *free = Some(planned);
        }
        self.inner.start(op);
    }

    fn flush(&mut self) {
        self.inner.flush();
    }

    fn next(&mut self, block: bool) -> Option<Ended> {
        loop {
            let now = Instant::now();
            if let Some(i) = self.held.iter().position(|(due, _)| *due <= now) {
                let (_, mut ended) = self.held.swap_remove(i);
                ended.finished = now;
                return Some(ended);
            }
            let running = self.faults.iter().any(Option::is_some);
            let Some(mut ended) = (running.then(|| self.inner.next(block && self.held.is_empty()))).flatten()
            else {
                match self.held.iter().map(|(due, _)| *due).min() {
                    Some(due) if block => std::thread::sleep((due - now).min(Duration::from_millis(1))),
                    _ => return None,
                }
                continue;
            };
            let Some(planned) = self.faults.get_mut(ended.tag as usize).and_then(Option::take) else {
                continue;
            };
            ended.tag = planned.tag;
            let ended = self.damage(&planned, ended);
            match planned.fault {
                Some(Fault::Delay(by)) => self.held.push((now + by, ended)),
                _ => return Some(ended),
            }
        }
    }

    fn register(&mut self, regions: &[crate::SlotRegion]) {
        self.inner.register(regions);
    }

    fn name(&self) -> &'static str {
        self.inner.name()
    }
}
