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

/// Reads through the page cache must be this many times as fast, twice, to be chosen: they take memory that the experts could have,
/// and a drive that others use as well makes any single measurement a matter of chance.
const CLEARLY: f64 = 1.5;

/// Whether reads bypass the page cache, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirectReads {
    /// They do.
    Used,
    /// The filesystem cannot.
    Unavailable,
    /// Reads through the page cache were clearly faster, twice.
    Slower,
}

impl DirectReads {
    /// Why they do not, in words; `None` if they do.
    pub fn why_off(self) -> Option<&'static str> {
        match self {
            Self::Used => None,
            Self::Unavailable => Some("the filesystem has no direct reads"),
            Self::Slower => Some("reads through the page cache were clearly faster, twice"),
        }
    }

    /// The same as one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Unavailable => "unavailable",
            Self::Slower => "slower",
        }
    }
}

/// Bytes a second that both ways reached at about the same time; `None` where one cannot be measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Round {
    direct: Option<f64>,
    buffered: Option<f64>,
}

impl Round {
    fn clearly_buffered(self) -> bool {
        match (self.direct, self.buffered) {
            (Some(direct), Some(buffered)) => buffered > direct * CLEARLY,
            _ => false,
        }
    }
}

/// What the first round says, and the second, which is asked for only where the first speaks against direct reads.
fn decide(first: Round, second: impl FnOnce() -> Result<Round, ReadError>) -> Result<DirectReads, ReadError> {
    Ok(match first.direct {
        None => DirectReads::Unavailable,
        Some(_) if first.clearly_buffered() && second()?.clearly_buffered() => DirectReads::Slower,
        Some(_) => DirectReads::Used,
    })
}

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
    /// Why it was chosen.
    pub direct: DirectReads,
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
    let best = |table: &[ProbeRow], caching: Caching| -> Option<ProbeRow> {
        let rows = table.iter().filter(|row| row.caching == caching).copied();
        rows.max_by(|a, b| a.bandwidth.total_cmp(&b.bandwidth))
    };
    let (direct, buffered) = (best(&table, Caching::Direct), best(&table, Caching::Buffered));
    let rate = |row: Option<ProbeRow>| row.map(|row| row.bandwidth);
    let first = Round { direct: rate(direct), buffered: rate(buffered) };
    let mut again = |row: Option<ProbeRow>| -> Result<Option<f64>, ReadError> {
        let Some(ProbeRow { caching, depth, .. }) = row else { return Ok(None) };
        let options = ReaderOptions { submission, caching, depth, registered: Vec::new() };
        let mut reader = Reader::open(files, &options)?;
        Ok(Some(measure(&mut reader, record_len, &mut memory, budget / 4)?.bandwidth))
    };
    let direct = decide(first, || {
        // In turn with the first round, so that what gets slower with time is not taken for what is slower.
        let buffered = again(buffered)?;
        Ok(Round { direct: again(direct)?, buffered })
    })?;
    let caching = if direct == DirectReads::Used { Caching::Direct } else { Caching::Buffered };
    let top = best(&table, caching).map_or(0.0, |row| row.bandwidth);
    let chosen = table.iter().find(|r| r.caching == caching && r.bandwidth * WORTH >= top);
    let Some(chosen) = chosen.copied() else {
        return Err(ReadError::Setup("no record could be read".to_owned()));
    };
    Ok(ProbeReport {
        submission: name,
        caching,
        direct,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn round(direct: f64, buffered: f64) -> Round {
        Round { direct: Some(direct), buffered: Some(buffered) }
    }

    #[test]
    fn direct_reads_are_left_only_if_the_cache_is_clearly_faster_twice() {
        let decided = |first: Round, second: Round| decide(first, || Ok(second)).unwrap();
        let unasked = |first: Round| decide(first, || panic!("not asked for")).unwrap();
        assert_eq!(unasked(round(2.0, 1.0)), DirectReads::Used);
        // Faster, but by what chance may bring.
        assert_eq!(unasked(round(2.0, 2.9)), DirectReads::Used);
        // Clearly faster, but only once.
        assert_eq!(decided(round(2.0, 9.0), round(2.0, 2.1)), DirectReads::Used);
        assert_eq!(decided(round(2.0, 9.0), round(2.0, 3.1)), DirectReads::Slower);
        assert_eq!(unasked(Round { direct: None, buffered: Some(1.0) }), DirectReads::Unavailable);
        assert_eq!(unasked(Round { direct: Some(1.0), buffered: None }), DirectReads::Used);
        assert!(decide(round(1.0, 9.0), || Err(ReadError::Setup("gone".to_owned()))).is_err());
    }

    #[test]
    fn what_is_off_says_why() {
        assert_eq!(DirectReads::Used.why_off(), None);
        for off in [DirectReads::Unavailable, DirectReads::Slower] {
            assert!(off.why_off().is_some() && !off.name().is_empty());
        }
    }
}
