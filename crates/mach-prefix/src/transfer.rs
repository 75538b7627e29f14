//! Bodies of segments, between memory and files: in chunks, past the page cache where the filesystem takes that.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mach_io::HugeBuf;

use crate::segment::{ALIGN, CHUNK};

/// Chunks in flight while a body is read. Each has a thread: while one waits for the drive, others check and copy.
const READERS: usize = 4;

fn buffer(len: usize) -> io::Result<HugeBuf> {
    HugeBuf::zeroed(len).map_err(|e| io::Error::other(e.to_string()))
}

/// Reads `len` bytes (a multiple of [`ALIGN`]) at an aligned offset.
pub(crate) fn read_aligned(file: &File, offset: u64, len: usize) -> io::Result<HugeBuf> {
    let mut buf = buffer(len)?;
    file.read_exact_at(&mut buf, offset)?;
    Ok(buf)
}

/// Writes bytes whose number is a multiple of [`ALIGN`].
pub(crate) fn write_aligned(file: &File, offset: u64, bytes: &[u8]) -> io::Result<()> {
    let mut buf = buffer(bytes.len())?;
    buf.copy_from_slice(bytes);
    file.write_all_at(&buf, offset)
}

/// Writes a body; returns the checksums of its chunks. `pause` is called between chunks and may refuse to go on.
pub(crate) fn write_body(
    file: &File,
    offset: u64,
    sections: &[&[u8]],
    pause: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<Vec<u32>> {
    let mut buf = buffer(CHUNK)?;
    let (mut checksums, mut filled, mut at) = (Vec::new(), 0, offset);
    let mut flush = |buf: &mut HugeBuf, filled: usize, at: &mut u64| -> io::Result<()> {
        checksums.push(crc32c::crc32c(buf.get(..filled).unwrap_or_default()));
        let padded = filled.next_multiple_of(ALIGN);
        if let Some(padding) = buf.get_mut(filled..padded) {
            padding.fill(0);
        }
        file.write_all_at(buf.get(..padded).unwrap_or_default(), *at)?;
        *at += padded as u64;
        pause()
    };
    for section in sections {
        let mut rest = *section;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(CHUNK - filled));
            if let Some(target) = buf.get_mut(filled..filled + now.len()) {
                target.copy_from_slice(now);
            }
            filled += now.len();
            rest = later;
            if filled == CHUNK {
                flush(&mut buf, filled, &mut at)?;
                filled = 0;
            }
        }
    }
    if filled > 0 {
        flush(&mut buf, filled, &mut at)?;
    }
    Ok(checksums)
}

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("chunk {0} is damaged")]
    Damaged(usize),
}

/// One chunk: where it lies, what it is to be, where it goes.
struct Chunk<'a> {
    index: usize,
    len: usize,
    checksum: u32,
    pieces: Vec<&'a mut [u8]>,
}

/// Reads a body into its sections, every chunk verified before it is copied.
pub(crate) fn read_body(
    file: &File,
    offset: u64,
    checksums: &[u32],
    sections: Vec<&mut [u8]>,
) -> Result<(), BodyError> {
    let chunks = cut(checksums, sections);
    let threads = READERS.min(chunks.len());
    let work = Mutex::new(chunks.into_iter());
    let failure: Mutex<Option<BodyError>> = Mutex::new(None);
    let read = || -> Result<(), BodyError> {
        let mut buf = buffer(CHUNK)?;
        loop {
            let stopped = failure.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            let next = work.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(chunk) = next.filter(|_| !stopped) else { return Ok(()) };
            let padded = chunk.len.next_multiple_of(ALIGN);
            let at = offset + (chunk.index * CHUNK) as u64;
            file.read_exact_at(buf.get_mut(..padded).unwrap_or_default(), at)?;
            let mut bytes = buf.get(..chunk.len).unwrap_or_default();
            if crc32c::crc32c(bytes) != chunk.checksum {
                return Err(BodyError::Damaged(chunk.index));
            }
            for piece in chunk.pieces {
                let (now, later) = bytes.split_at(piece.len());
                piece.copy_from_slice(now);
                bytes = later;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(error) = read() {
                    failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn cut<'a>(checksums: &[u32], sections: Vec<&'a mut [u8]>) -> Vec<Chunk<'a>> {
    let mut chunks: Vec<Chunk<'a>> = Vec::with_capacity(checksums.len());
    for mut rest in sections {
        while !rest.is_empty() {
            if chunks.last().is_none_or(|chunk| chunk.len == CHUNK) {
                let index = chunks.len();
                let checksum = checksums.get(index).copied().unwrap_or_default();
                chunks.push(Chunk { index, len: 0, checksum, pieces: Vec::new() });
            }
            let Some(chunk) = chunks.last_mut() else { break };
            let (now, later) = rest.split_at_mut(rest.len().min(CHUNK - chunk.len));
            chunk.len += now.len();
            chunk.pieces.push(now);
            rest = later;
        }
    }
    chunks
}

/// Reads a file in order, as many chunks in flight as a restore has, and does nothing with it: the drive's limit.
pub fn read_speed(path: &Path) -> io::Result<(u64, Duration)> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_DIRECT);
    }
    let file = match options.open(path) {
        // Filesystems without direct access refuse the flag.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => File::open(path)?,
        result => result?,
    };
    let len = file.metadata()?.len() / ALIGN as u64 * ALIGN as u64;
    let next = AtomicU64::new(0);
    let started = Instant::now();
    let read = || -> io::Result<()> {
        let mut buf = buffer(CHUNK)?;
        loop {
            let at = next.fetch_add(CHUNK as u64, Ordering::Relaxed);
            if at >= len {
                return Ok(());
            }
            let here = (len - at).min(CHUNK as u64) as usize;
            file.read_exact_at(buf.get_mut(..here).unwrap_or_default(), at)?;
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..READERS).map(|_| scope.spawn(read)).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|_| Err(io::Error::other("panicked"))))
    })?;
    Ok((len, started.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_cut_into_chunks_of_one_size() {
        let lengths = [CHUNK / 2, CHUNK, 1, 2 * CHUNK + 7, 0, 5];
        let mut memory: Vec<Vec<u8>> = lengths.iter().map(|&len| vec![0; len]).collect();
        let all: usize = lengths.iter().sum();
        let checksums: Vec<u32> = (1..).take(all.div_ceil(CHUNK)).collect();
        let chunks = cut(&checksums, memory.iter_mut().map(Vec::as_mut_slice).collect());
        assert_eq!(chunks.len(), checksums.len());
        for (i, chunk) in chunks.iter().enumerate() {
            assert_eq!((chunk.index, chunk.checksum), (i, checksums[i]));
            assert_eq!(chunk.len, CHUNK.min(all - i * CHUNK), "chunk {i}");
            assert_eq!(chunk.pieces.iter().map(|piece| piece.len()).sum::<usize>(), chunk.len);
        }
    }
}
