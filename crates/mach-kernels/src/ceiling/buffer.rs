//! Memory to read: far larger than the caches, on huge pages where the system gives them.

use std::io;
use std::ptr::NonNull;

const HUGE: usize = 2 << 20;

/// Anonymous memory, aligned to a huge page, every page touched.
pub(super) struct Buffer {
    map: NonNull<u8>,
    map_len: usize,
    skip: usize,
    len: usize,
    huge_bytes: u64,
}

// SAFETY: the mapping is owned by this value alone and is only written through `&mut self`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Maps `len` bytes and fills them with words that differ, `parts` threads touching one part each, so that on
    /// machines with several memory nodes a part is near its reader.
    pub(super) fn new(len: usize, parts: usize) -> io::Result<Self> {
        let len = len.max(1).checked_next_multiple_of(HUGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let map_len = len.checked_add(HUGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let before = anonymous_huge_bytes();
        // SAFETY: a fresh anonymous private mapping at an address of the kernel's choice touches no other memory.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let skip = map.as_ptr().align_offset(HUGE).min(HUGE);
        let mut buffer = Self { map, map_len, skip, len, huge_bytes: 0 };
        #[cfg(target_os = "linux")]
        // SAFETY: the range lies inside the mapping made above; the advice does not change contents.
        unsafe {
            libc::madvise(map.as_ptr().cast(), map_len, libc::MADV_HUGEPAGE);
        }
        let part = (len / parts.max(1)).next_multiple_of(8).max(8);
        std::thread::scope(|scope| {
            for (index, part_bytes) in buffer.bytes_mut().chunks_mut(part).enumerate() {
                scope.spawn(move || fill(part_bytes, (index * part / 8) as u64));
            }
        });
        buffer.huge_bytes = anonymous_huge_bytes().saturating_sub(before).min(len as u64);
        Ok(buffer)
    }

    /// All bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `skip + len <= map_len`, the mapping is readable and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(self.skip), self.len) }
    }

    /// How much of it really lies on huge pages (Linux; 0 where the system does not say).
    pub(super) fn huge_bytes(&self) -> u64 {
        self.huge_bytes
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, writable, and borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.map.as_ptr().add(self.skip), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the very mapping that `new` made; no slice of it outlives `self`.
        unsafe {
            libc::munmap(self.map.as_ptr().cast(), self.map_len);
        }
    }
}

fn fill(bytes: &mut [u8], first: u64) {
    for (word, n) in bytes.chunks_exact_mut(8).zip(first..) {
        word.copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
}

/// Bytes of this process on anonymous huge pages.
fn anonymous_huge_bytes() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/self/smaps_rollup") else { return 0 };
    text.lines()
        .find_map(|line| line.strip_prefix("AnonHugePages:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}
