//! Batches of reads that complete in any order.

use std::collections::VecDeque;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::files::{OpenFile, open_all};
use crate::pool::PreadPool;
use crate::{Caching, READ_ALIGN, ReadError, ReadStats, Slot, SlotRegion};

/// Which system interface reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Submission {
    /// io_uring where the system has it, else a pool of threads.
    #[default]
    Auto,
    /// io_uring; an error where it is missing.
    Uring,
    /// Threads that call `pread`.
    Pread,
}

/// How a reader reads.
#[derive(Debug, Clone)]
pub struct ReaderOptions {
    /// System interface.
    pub submission: Submission,
    /// Page cache or not.
    pub caching: Caching,
    /// Most reads at the drive at one time.
    pub depth: usize,
    /// Memory to register with the kernel, which saves it the work of pinning pages for each read. Registering touches
    /// every page. Only io_uring uses it; reads into other memory work as well.
    pub registered: Vec<SlotRegion>,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        ReaderOptions {
            submission: Submission::Auto,
            caching: Caching::Direct,
            depth: 16,
            registered: Vec::new(),
        }
    }
}

/// A read: `len` bytes at `offset` of a file into the start of a slot. Offset and length are multiples of
/// [`READ_ALIGN`], the length is neither 0 nor larger than the slot.
#[derive(Debug)]
pub struct Read {
    /// Index of the file in the list that the reader was opened with.
    pub file: usize,
    /// First byte.
    pub offset: u64,
    /// Bytes to read.
    pub len: usize,
    /// Where they go.
    pub slot: Slot,
    /// Comes back with the completion.
    pub tag: u64,
}

/// The end of a read.
#[derive(Debug)]
pub struct Completion {
    /// Tag of the read.
    pub tag: u64,
    /// Bytes asked for.
    pub len: usize,
    /// From handing the read to the system to its end; zero if it was never handed over.
    pub took: Duration,
    /// The slot, its first `len` bytes those of the file; or what went wrong.
    pub result: Result<Slot, ReadFailure>,
}

/// A read that failed.
#[derive(Debug)]
pub struct ReadFailure {
    /// What went wrong.
    pub error: ReadError,
    /// The slot, its contents undefined; `None` if the kernel may still write to it, in which case it is given up.
    pub slot: Option<Slot>,
}

/// A read at the drive.
#[derive(Debug)]
pub(crate) struct Op {
    pub(crate) read: Read,
    pub(crate) started: Instant,
    /// Bytes that have come so far.
    pub(crate) done: usize,
}

/// A read that the drive has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) tag: u64,
    pub(crate) len: usize,
    pub(crate) started: Instant,
    pub(crate) finished: Instant,
    pub(crate) result: Result<Slot, ReadFailure>,
}

impl Op {
    pub(crate) fn end(self, files: &[OpenFile], result: std::io::Result<()>) -> Ended {
        let Op { read, started, done } = self;
        let result = match result {
            Ok(()) if done == read.len => Ok(read.slot),
            other => {
                let file = files.get(read.file).map_or_else(PathBuf::new, |f| f.path.clone());
                let (offset, len) = (read.offset, read.len);
                let error = match other {
                    Ok(()) => ReadError::Truncated { file, offset, len, found: done },
                    Err(source) => ReadError::Io { file, offset, len, source },
                };
                Err(ReadFailure { error, slot: Some(read.slot) })
            }
        };
        Ended { tag: read.tag, len: read.len, started, finished: Instant::now(), result }
    }
}

/// What carries reads to the drive.
pub(crate) trait Backend: Send + fmt::Debug {
    /// Takes a read; at most `depth` are given at one time.
    fn start(&mut self, op: Op);
    /// Hands what was started since the last call to the system.
    fn flush(&mut self);
    /// A read that has ended; waits for one if `block`. Called only while some run.
    fn next(&mut self, block: bool) -> Option<Ended>;
    /// Memory that many reads will go to.
    fn register(&mut self, _regions: &[SlotRegion]) {}
    /// Name in startup signals.
    fn name(&self) -> &'static str;
}

/// Reads records of a fixed set of files. Dropping it waits for the reads at the drive; their slots, and those of reads
/// not yet there, go with it.
#[derive(Debug)]
pub struct Reader {
    files: Arc<[OpenFile]>,
    caching: Caching,
    depth: usize,
    backend: Box<dyn Backend>,
    /// Reads beyond the depth.
    waiting: VecDeque<Read>,
    /// Reads refused without asking the drive.
    refused: VecDeque<Completion>,
    running: usize,
    /// When the drive was last given work after it had none.
    busy_since: Option<Instant>,
    stats: ReadStats,
}

impl Reader {
    /// Opens the files.
    pub fn open(paths: &[PathBuf], options: &ReaderOptions) -> Result<Self, ReadError> {
        let (files, caching) = open_all(paths, options.caching)?;
        let files: Arc<[OpenFile]> = files.into();
        let depth = options.depth.clamp(1, 1024);
        let backend = backend(&files, options, depth)?;
        Ok(Reader {
            files,
            caching,
            depth,
            backend,
            waiting: VecDeque::new(),
            refused: VecDeque::new(),
            running: 0,
            busy_since: None,
            stats: ReadStats::default(),
        })
    }

    /// Whether reads truly bypass the page cache.
    pub fn caching(&self) -> Caching {
        self.caching
    }

    /// `uring` or `pread`.
    pub fn submission(&self) -> &'static str {
        self.backend.name()
    }

    /// Most reads at the drive at one time.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Path of a file.
    pub fn path(&self, file: usize) -> Option<&Path> {
        self.files.get(file).map(|f| f.path.as_path())
    }

    /// Length that a file had when it was opened.
    pub fn file_len(&self, file: usize) -> Option<u64> {
        self.files.get(file).map(|f| f.len)
    }

    /// Counters so far.
    pub fn stats(&self) -> &ReadStats {
        &self.stats
    }

    /// Reads submitted whose completion has not been taken.
    pub fn pending(&self) -> usize {
        self.running + self.waiting.len() + self.refused.len()
    }

    /// Registers memory with the kernel, as [`ReaderOptions::registered`] does; once at most, before the first read.
    pub fn register(&mut self, regions: &[SlotRegion]) {
        self.backend.register(regions);
    }

    /// Replaces the backend by one that wraps it.
    pub(crate) fn wrap(
        mut self,
        by: impl FnOnce(Box<dyn Backend>, Arc<[OpenFile]>) -> Box<dyn Backend>,
    ) -> Self {
        self.backend = by(self.backend, Arc::clone(&self.files));
        self
    }

    /// Submits reads; each completes exactly once, in any order. As many as the depth allows go to the drive at once,
    /// the others follow as [`poll`](Self::poll) and [`wait_any`](Self::wait_any) take completions.
    pub fn submit(&mut self, reads: impl IntoIterator<Item = Read>) {
        for read in reads {
            match self.check(&read) {
                None => self.waiting.push_back(read),
                Some(reason) => {
                    let (file, offset, len) = (read.file, read.offset, read.len);
                    let error = ReadError::Invalid { file, offset, len, reason };
                    let result = Err(ReadFailure { error, slot: Some(read.slot) });
                    self.stats.failures += 1;
                    self.refused.push_back(Completion {
                        tag: read.tag,
                        len: read.len,
                        took: Duration::ZERO,
                        result,
                    });
                }
            }
        }
        self.fill();
    }

    /// Asks the system to drop pages of a file from its cache.
    #[cfg(target_os = "linux")]
    pub(crate) fn forget_pages(&self, file: usize, offset: u64, len: usize) {
        if let (Some(file), Some(len)) = (self.files.get(file), std::num::NonZeroU64::new(len as u64)) {
            // Pages that stay only make a measurement look better than it is.
            let _ = rustix::fs::fadvise(&file.file, offset, Some(len), rustix::fs::Advice::DontNeed);
        }
    }

    fn check(&self, read: &Read) -> Option<&'static str> {
        if read.file >= self.files.len() {
            Some("no such file")
        } else if read.len == 0 || read.len > read.slot.len() {
            Some("the length is 0 or more than the slot holds")
        } else if !read.len.is_multiple_of(READ_ALIGN) || !read.offset.is_multiple_of(READ_ALIGN as u64) {
            Some("offset and length must be multiples of 4096")
        } else if !read.slot.as_ptr().addr().is_multiple_of(READ_ALIGN) {
            Some("the slot is not aligned to 4096")
        } else if read.offset.checked_add(read.len as u64).is_none_or(|end| end > i64::MAX as u64) {
            Some("the offset is too large")
        } else {
            None
        }
    }

    fn fill(&mut self) {
        let mut started = false;
        while self.running < self.depth
            && let Some(read) = self.waiting.pop_front()
        {
            let now = Instant::now();
            self.busy_since.get_or_insert(now);
            self.backend.start(Op { read, started: now, done: 0 });
            self.running += 1;
            started = true;
        }
        if started {
            self.backend.flush();
            self.stats.in_flight_high_water = self.stats.in_flight_high_water.max(self.running);
        }
    }

    /// A completion, if one is there.
    pub fn poll(&mut self) -> Option<Completion> {
        self.take(false)
    }

    /// The next completion, waiting for it; `None` if nothing is pending.
    pub fn wait_any(&mut self) -> Option<Completion> {
        if let Some(done) = self.take(false) {
            return Some(done);
        }
        let from = Instant::now();
        let done = self.take(true);
        self.stats.stall += from.elapsed();
        done
    }

    fn take(&mut self, block: bool) -> Option<Completion> {
        if let Some(refused) = self.refused.pop_front() {
            return Some(refused);
        }
        if self.running == 0 {
            return None;
        }
        let Ended { tag, len, started, finished, result } = self.backend.next(block)?;
        self.running -= 1;
        match &result {
            Ok(_) => {
                self.stats.reads += 1;
                self.stats.bytes += len as u64;
                self.stats.latency.record(finished - started);
            }
            Err(_) => self.stats.failures += 1,
        }
        self.fill();
        if self.running == 0
            && let Some(since) = self.busy_since.take()
        {
            self.stats.busy += finished.saturating_duration_since(since);
        }
        Some(Completion { tag, len, took: finished.saturating_duration_since(started), result })
    }
}

#[cfg(target_os = "linux")]
fn backend(
    files: &Arc<[OpenFile]>,
    options: &ReaderOptions,
    depth: usize,
) -> Result<Box<dyn Backend>, ReadError> {
    use crate::uring::Uring;
    if options.submission != Submission::Pread {
        match Uring::new(Arc::clone(files), depth, &options.registered) {
            Ok(ring) => return Ok(Box::new(ring)),
            Err(e) if options.submission == Submission::Uring => {
                return Err(ReadError::Setup(format!("io_uring: {e}")));
            }
            Err(e) => tracing::debug!(error = %e, "no io_uring; reading with a pool of threads"),
        }
    }
    Ok(Box::new(PreadPool::new(Arc::clone(files), depth)?))
}

#[cfg(not(target_os = "linux"))]
fn backend(
    files: &Arc<[OpenFile]>,
    options: &ReaderOptions,
    depth: usize,
) -> Result<Box<dyn Backend>, ReadError> {
    if options.submission == Submission::Uring {
        return Err(ReadError::Setup("io_uring: not on this system".to_owned()));
    }
    Ok(Box::new(PreadPool::new(Arc::clone(files), depth)?))
}
