//! What the drive likes: measured on the very files that will be read.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::{Caching, HugeBuf, READ_ALIGN, Read, ReadError, Reader, ReaderOptions, Submission};

/// Numbers of reads in flight that are tried.
const DEPTHS: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// A smaller depth is preferred over one that is less than this much faster: it only adds latency.
const WORTH: f64 = 1.05;

/// One measurement.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProbeRow {
    /// Page cache or not.
    pub caching: Caching,
    /// Reads in flight.
    pub depth: usize,
    /// Bytes a second.
    pub bandwidth: f64,
    /// Median latency of a read.
    pub latency: Duration,
}

/// What was measured, and the choice that follows.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeReport {
    /// `uring` or `pread`.
    pub submission: &'static str,
    /// Chosen mode.
    pub caching: Caching,
    /// Size of a read in KiB.
    pub read_kib: usize,
    /// Chosen reads in flight: the fewest within 5 % of the best.
    pub depth: usize,
    /// Bytes a second of the choice.
    pub bandwidth: f64,
    /// Everything measured.
    pub table: Vec<ProbeRow>,
}

/// Reads random records of `record_len` bytes (a multiple of 4096) of the files in several ways, for about `budget`
/// in all, and chooses. Where the filesystem cannot bypass the page cache, only reads through it are measured.
pub fn probe(
    files: &[PathBuf],
    record_len: usize,
    submission: Submission,
    budget: Duration,
) -> Result<ProbeReport, ReadError> {
    let deadline = Instant::now() + budget;
    let mut memory = Vec::new();
    let mut table: Vec<ProbeRow> = Vec::new();
    let mut name = "";
    'modes: for caching in [Caching::Direct, Caching::Buffered] {
        for (i, depth) in DEPTHS.into_iter().enumerate() {
            // Each measurement gets an equal part of what is left; the direct mode comes first and is the likelier choice.
            let left = deadline.saturating_duration_since(Instant::now());
            let remaining = DEPTHS.len() - i + if caching == Caching::Direct { DEPTHS.len() / 2 } else { 0 };
            if left.is_zero() && table.iter().any(|r| r.caching == caching) {
                continue 'modes;
            }
            let options = ReaderOptions { submission, caching, depth, registered: Vec::new() };
            let mut reader = Reader::open(files, &options)?;
            if reader.caching() != caching {
                continue 'modes;
            }
            name = reader.submission();
            if memory.len() < depth {
                memory = HugeBuf::zeroed(depth * record_len)
                    .map_err(|e| ReadError::Setup(e.to_string()))?
                    .into_slots(record_len);
            }
            table.push(measure(&mut reader, record_len, &mut memory, left / remaining as u32)?);
        }
        // Reads that hit memory say nothing of the drive: where pages cannot be evicted, the cache is not measured.
        if caching == Caching::Direct && !table.is_empty() && !cfg!(target_os = "linux") {
            break;
        }
    }
    let best = |rows: &mut dyn Iterator<Item = &ProbeRow>| rows.map(|r| r.bandwidth).fold(0.0, f64::max);
    let direct = best(&mut table.iter().filter(|r| r.caching == Caching::Direct));
    let buffered = best(&mut table.iter().filter(|r| r.caching == Caching::Buffered));
    let caching = if direct * WORTH >= buffered { Caching::Direct } else { Caching::Buffered };
    let top = direct.max(buffered).min(if caching == Caching::Direct { direct } else { buffered });
    let chosen = table.iter().find(|r| r.caching == caching && r.bandwidth * WORTH >= top);
    let Some(chosen) = chosen.copied() else {
        return Err(ReadError::Setup("no record could be read".to_owned()));
    };
    Ok(ProbeReport {
        submission: name,
        caching,
        read_kib: record_len >> 10,
        depth: chosen.depth,
        bandwidth: chosen.bandwidth,
        table,
    })
}

/// Keeps `depth` reads in flight for `time`, each slot being read into at least once.
fn measure(
    reader: &mut Reader,
    len: usize,
    memory: &mut Vec<crate::Slot>,
    time: Duration,
) -> Result<ProbeRow, ReadError> {
    let records: Vec<u64> =
        (0..).map_while(|f| reader.file_len(f)).map(|bytes| bytes / len.max(1) as u64).collect();
    let total: u64 = records.iter().sum();
    if len == 0 || !len.is_multiple_of(READ_ALIGN) || total == 0 {
        return Err(ReadError::Setup(format!("no record of {len} bytes to probe")));
    }
    let mut random = RandomState::new().build_hasher().finish() | 1;
    let mut next = |slot: crate::Slot| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut record = random % total;
        let mut file = 0;
        while let Some(&n) = records.get(file)
            && record >= n
        {
            record -= n;
            file += 1;
        }
        Read { file, offset: record * len as u64, len, slot, tag: 0 }
    };
    let depth = reader.depth();
    let spare = memory.split_off(depth.min(memory.len()));
    let started = Instant::now();
    let mut first = Vec::with_capacity(depth);
    for slot in memory.drain(..) {
        let read = next(slot);
        reader.evict(&read);
        first.push(read);
    }
    reader.submit(first);
    let mut failure = None;
    while let Some(done) = reader.wait_any() {
        match done.result {
            Ok(slot) if failure.is_none() && started.elapsed() < time => {
                let read = next(slot);
                reader.evict(&read);
                reader.submit([read]);
            }
            Ok(slot) => memory.push(slot),
            Err(e) => {
                failure.get_or_insert(e.error);
                memory.extend(e.slot);
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    memory.extend(spare);
    match failure {
        Some(error) => Err(error),
        None => Ok(ProbeRow {
            caching: reader.caching(),
            depth,
            bandwidth: reader.stats().bytes as f64 / seconds.max(1e-9),
            latency: reader.stats().latency.quantile(0.5).unwrap_or_default(),
        }),
    }
}

impl Reader {
    /// Drops a record from the page cache, so that a buffered measurement meets the drive.
    fn evict(&self, read: &Read) {
        #[cfg(target_os = "linux")]
        if self.caching() == Caching::Buffered {
            self.forget_pages(read.file, read.offset, read.len);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = read;
    }
}
