//! Filling the resident allocation with all threads.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use mach_checkpoint::{CheckpointError, LinearSource, PackedMatrix, Tensors, WeightSource};
use mach_experts::{Join, SidecarError};
use mach_io::{DirectFile, HugeBuf};
use mach_models::ModelError;
use mach_quant::{MatrixLayout, Source, TILE_ROWS};

use crate::placement::{CpuPlacement, Item};
use crate::quantize::Quantized;

/// Bytes that one job writes, so that all threads have work.
const CHUNK: usize = 1 << 20;

/// Fewest threads where files are read: reading waits more than it computes.
const READERS: usize = 4;

enum Content<'a> {
    Stored(LinearSource<'a>, Source<'a>),
    /// Laid out already: which file, and where in it.
    Packed(PackedMatrix<'a>, usize, u64),
}

/// Some units of one matrix.
struct Job<'a, 'm> {
    item: usize,
    content: Content<'a>,
    layout: MatrixLayout,
    first: usize,
    /// Whether these are the matrix's last.
    last: bool,
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
    fn run(
        self,
        tensors: &Tensors,
        files: &[DirectFile],
        buffer: &mut Option<HugeBuf>,
    ) -> Result<Option<Part>, ModelError> {
        let Job { item, content, layout, first, last, out } = self;
        let (from, file, base) = match content {
            Content::Stored(linear, source) => {
                layout.pack(&source, first, out);
                if last {
                    // These pages are not looked at again; without this they would count as this process's memory.
                    for part in [linear.weight, linear.scales, linear.biases] {
                        tensors.let_go(part);
                    }
                }
                return Ok(None);
            }
            Content::Packed(from, file, base) => (from, files.get(file), base),
        };
        let unit = from.layout.unit_bytes();
        // Jobs start at whole tiles, so their sources do not overlap.
        let (start, len) = if from.layout == layout {
            (first * unit, out.len())
        } else {
            let tiles = (out.len() / layout.unit_bytes().max(1)).div_ceil(TILE_ROWS);
            (first / TILE_ROWS * unit, tiles * unit)
        };
        let needed = DirectFile::buffer_len(len);
        if buffer.as_ref().is_none_or(|b| b.len() < needed) {
            *buffer = Some(HugeBuf::zeroed(needed).map_err(|e| ModelError::Memory(e.to_string()))?);
        }
        let (Some(file), Some(buffer)) = (file, buffer) else { return Ok(None) };
        let bytes = file.read(base + start as u64, len, buffer).map_err(SidecarError::from)?;
        let crc32c = crc32c::crc32c(bytes);
        layout.repack(&from.layout, bytes, 0, out);
        Ok(Some(Part { item, start, len, crc32c }))
    }
}

/// Lays every matrix out in one allocation, checks that stored ones are finite and laid out ones have
/// their checksums. Laid out ones are read past the page cache. `progress` hears how many bytes are placed.
pub fn fill(
    placement: &CpuPlacement<'_>,
    threads: usize,
    progress: &mut dyn FnMut(u64),
) -> Result<HugeBuf, ModelError> {
    let (items, tensors) = (&placement.items, placement.tensors);
    let mut memory = HugeBuf::zeroed(placement.bytes()).map_err(|e| ModelError::Memory(e.to_string()))?;
    let mut jobs = Vec::new();
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut rest: &mut [u8] = &mut memory;
    let mut at = 0;
    let quantized = items.iter().map(quantize).collect::<Result<Vec<_>, _>>()?;
    for (item, (Item { source, matrix, .. }, quantized)) in items.iter().zip(&quantized).enumerate() {
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
                WeightSource::Stored(linear) => Content::Stored(
                    *linear,
                    match quantized {
                        Some(quantized) => quantized.source().map_err(|e| CheckpointError::Tensor {
                            file: linear.file.to_owned(),
                            tensor: linear.module.to_owned(),
                            reason: e.to_string(),
                        })?,
                        None => linear.source()?,
                    },
                ),
                WeightSource::Packed(packed) => {
                    let (path, base) = tensors.locate(packed.data).unwrap_or((packed.file, 0));
                    let file = paths.iter().position(|p| p == path).unwrap_or_else(|| {
                        paths.push(path.to_owned());
                        paths.len() - 1
                    });
                    Content::Packed(*packed, file, base)
                }
            };
            jobs.push(Job { item, content, layout, first, last: mine.is_empty(), out });
            first += units;
        }
    }
    let files = paths.iter().map(|path| DirectFile::open(path)).collect::<Result<Vec<_>, _>>();
    let files = files.map_err(SidecarError::from)?;
    let workers = if files.is_empty() { threads } else { threads.max(READERS) };
    let workers = workers.clamp(1, jobs.len().max(1));
    let queue = Mutex::new(jobs.into_iter());
    let (parts, failure) = (Mutex::new(Vec::new()), Mutex::new(None));
    let (done, finished, stop) = (AtomicU64::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let mut buffer = None;
                while !stop.load(Ordering::Relaxed)
                    && let Some(job) = queue.lock().ok().and_then(|mut q| q.next())
                {
                    let bytes = job.out.len() as u64;
                    match job.run(tensors, &files, &mut buffer) {
                        Ok(part) => {
                            if let (Some(part), Ok(mut parts)) = (part, parts.lock()) {
                                parts.push(part);
                            }
                        }
                        Err(error) => {
                            stop.store(true, Ordering::Relaxed);
                            if let Ok(mut first) = failure.lock() {
                                first.get_or_insert(error);
                            }
                        }
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
    if let Ok(Some(error)) = failure.into_inner() {
        return Err(error);
    }
    check(items, parts.into_inner().unwrap_or_default())?;
    Ok(memory)
}

/// The matrix in fewer bits, if it is to be quantized. Values that are not finite are found before that.
fn quantize(item: &Item<'_>) -> Result<Option<Quantized>, CheckpointError> {
    let (Some(bits), WeightSource::Stored(linear)) = (item.bits, &item.source) else { return Ok(None) };
    linear.check_finite()?;
    Ok(Some(Quantized::of(&linear.source()?, bits)))
}

/// Puts the parts' checksums together and compares.
fn check(items: &[Item<'_>], mut parts: Vec<Part>) -> Result<(), CheckpointError> {
    parts.sort_by_key(|p| (p.item, p.start));
    for (item, Item { source, .. }) in items.iter().enumerate() {
        let WeightSource::Packed(packed) = source else { continue };
        let from = parts.partition_point(|p| p.item < item);
        let mine = parts.iter().skip(from).take_while(|p| p.item == item);
        let mut join = Join::new(0);
        let (mut crc, mut len) = (0, 0);
        for part in mine {
            if join.second() != part.len {
                join = Join::new(part.len);
            }
            crc = join.join(crc, part.crc32c);
            len += part.len;
        }
        let padding = packed.data.get(len..).unwrap_or_default();
        if crc32c::crc32c_append(crc, padding) != packed.crc32c {
            return Err(packed.damaged());
        }
    }
    Ok(())
}
