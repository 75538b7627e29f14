//! Filling the resident allocation with all threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use mach_checkpoint::{CheckpointError, PackedMatrix, WeightSource};
use mach_io::HugeBuf;
use mach_quant::{MatrixLayout, Source, TILE_ROWS};

use crate::cpu::Matrix;
use crate::model::ModelError;

/// Bytes that one job writes, so that all threads have work.
const CHUNK: usize = 1 << 20;

enum Content<'a> {
    Stored(Source<'a>),
    Packed(PackedMatrix<'a>),
}

/// Some units of one matrix.
struct Job<'a, 'm> {
    item: usize,
    content: Content<'a>,
    layout: MatrixLayout,
    first: usize,
    out: &'m mut [u8],
}

/// Checksum of a part of a laid out matrix.
struct Part {
    item: usize,
    start: usize,
    len: usize,
    crc32c: u32,
}

impl Job<'_, '_> {
    fn run(self) -> Option<Part> {
        let Job { item, content, layout, first, out } = self;
        match content {
            Content::Stored(source) => {
                layout.pack(&source, first, out);
                None
            }
            Content::Packed(from) => {
                let unit = from.layout.unit_bytes();
                // Jobs start at whole tiles, so their sources do not overlap.
                let (start, len) = if from.layout == layout {
                    (first * unit, out.len())
                } else {
                    let tiles = (out.len() / layout.unit_bytes().max(1)).div_ceil(TILE_ROWS);
                    (first / TILE_ROWS * unit, tiles * unit)
                };
                let crc32c = crc32c::crc32c(from.data.get(start..start + len).unwrap_or_default());
                layout.repack(&from.layout, from.data, first, out);
                Some(Part { item, start, len, crc32c })
            }
        }
    }
}

/// Lays every matrix out in one allocation of `bytes` bytes, checks that stored ones are finite and laid out ones have
/// their checksums. `progress` hears how many bytes are placed.
pub(crate) fn fill(
    items: &[(WeightSource<'_>, Matrix)],
    bytes: usize,
    threads: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<HugeBuf, ModelError> {
    let mut memory = HugeBuf::zeroed(bytes).map_err(|e| ModelError::Memory(e.to_string()))?;
    let mut jobs = Vec::new();
    let mut rest: &mut [u8] = &mut memory;
    let mut at = 0;
    for (item, (source, matrix)) in items.iter().enumerate() {
        let layout = matrix.layout;
        let (_, tail) = std::mem::take(&mut rest).split_at_mut(matrix.offset - at);
        let (mut mine, tail) = tail.split_at_mut(layout.bytes());
        rest = tail;
        at = matrix.offset + layout.bytes();
        if let WeightSource::Stored(source) = source {
            source.check_finite()?;
        }
        let units = (CHUNK / layout.unit_bytes().max(1)).next_multiple_of(TILE_ROWS).max(TILE_ROWS);
        let mut first = 0;
        while !mine.is_empty() {
            let take = (units * layout.unit_bytes()).min(mine.len());
            let (out, others) = std::mem::take(&mut mine).split_at_mut(take);
            mine = others;
            let content = match source {
                WeightSource::Stored(source) => Content::Stored(source.source()?),
                WeightSource::Packed(packed) => Content::Packed(*packed),
            };
            jobs.push(Job { item, content, layout, first, out });
            first += units;
        }
    }
    let workers = threads.clamp(1, jobs.len().max(1));
    let queue = Mutex::new(jobs.into_iter());
    let parts = Mutex::new(Vec::new());
    let (done, finished) = (AtomicU64::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = queue.lock().ok().and_then(|mut q| q.next()) {
                    let bytes = job.out.len() as u64;
                    if let (Some(part), Ok(mut parts)) = (job.run(), parts.lock()) {
                        parts.push(part);
                    }
                    done.fetch_add(bytes, Ordering::Relaxed);
                }
                finished.fetch_add(1, Ordering::Release);
            });
        }
        while finished.load(Ordering::Acquire) < workers {
            std::thread::sleep(std::time::Duration::from_millis(5));
            progress(done.load(Ordering::Relaxed));
        }
    });
    check(items, parts.into_inner().unwrap_or_default())?;
    Ok(memory)
}

/// Puts the parts' checksums together and compares.
fn check(items: &[(WeightSource<'_>, Matrix)], mut parts: Vec<Part>) -> Result<(), CheckpointError> {
    parts.sort_by_key(|p| (p.item, p.start));
    for (item, (source, _)) in items.iter().enumerate() {
        let WeightSource::Packed(packed) = source else { continue };
        let from = parts.partition_point(|p| p.item < item);
        let mine = parts.iter().skip(from).take_while(|p| p.item == item);
        let (crc, len) =
            mine.fold((0, 0), |(crc, len), p| (crc32c::crc32c_combine(crc, p.crc32c, p.len), len + p.len));
        let padding = packed.data.get(len..).unwrap_or_default();
        if crc32c::crc32c_append(crc, padding) != packed.crc32c {
            return Err(packed.damaged());
        }
    }
    Ok(())
}
