//! One anonymous mapping, aligned to a huge page.

use std::ops::{Deref, DerefMut};

use rustix::mm::{self, MapFlags, ProtFlags};

/// Size and alignment asked for: 2 MiB, the huge page of x86-64 and of Arm with 4 KiB granules.
pub const HUGE_PAGE: usize = 2 << 20;

/// Memory could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot map {bytes} bytes: {source}")]
pub struct MemoryError {
    /// Bytes asked for.
    pub bytes: usize,
    /// What the operating system said.
    pub source: std::io::Error,
}

/// Zeroed memory, aligned to [`HUGE_PAGE`], with huge pages requested. Pages are not touched before first use, so
/// they land near the thread that writes them first.
#[derive(Debug)]
pub struct HugeBuf {
    map: *mut u8,
    map_len: usize,
    data: *mut u8,
    len: usize,
}

// SAFETY: the mapping is private memory owned by this value alone; access follows Rust's borrow rules through Deref.
unsafe impl Send for HugeBuf {}
// SAFETY: as above; shared access is read-only.
unsafe impl Sync for HugeBuf {}

impl HugeBuf {
    /// Maps `len` bytes of zeros.
    pub fn zeroed(len: usize) -> Result<Self, MemoryError> {
        let map_len = (len.div_ceil(HUGE_PAGE) + 1) * HUGE_PAGE;
        let error = |e: rustix::io::Errno| MemoryError { bytes: len, source: e.into() };
        // SAFETY: a fresh private anonymous mapping, no address given.
        let map = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                map_len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(error)?
        .cast::<u8>();
        let skip = map.align_offset(HUGE_PAGE);
        // SAFETY: skip < HUGE_PAGE and the mapping is one huge page longer than the data.
        let data = unsafe { map.add(skip) };
        #[cfg(target_os = "linux")]
        {
            // SAFETY: the range lies inside the mapping just made. Without transparent huge pages it fails, which only costs speed.
            let _ = unsafe { mm::madvise(data.cast(), len.max(1), mm::Advice::LinuxHugepage) };
        }
        Ok(HugeBuf { map, map_len, data, len })
    }

    /// Makes the system provide the pages of `from..from + len` now instead of at their first use. Contents do not change, so
    /// others may use the memory meanwhile. False where the system does not do that.
    pub fn populate(&self, from: usize, len: usize) -> bool {
        let len = len.min(self.len.saturating_sub(from));
        #[cfg(target_os = "linux")]
        {
            // SAFETY: the range lies inside the mapping, which lives as long as self; populating keeps its contents.
            unsafe { mm::madvise(self.data.add(from).cast(), len, mm::Advice::LinuxPopulateWrite) }.is_ok()
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = (from, len);
            false
        }
    }

    /// Bytes of this mapping that the kernel backs with huge pages right now; `None` where it does not tell.
    pub fn huge_bytes(&self) -> Option<usize> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let (from, to) = (self.data as usize, self.data as usize + self.len);
        let mut inside = false;
        let mut total = 0;
        for line in smaps.lines() {
            if let Some((a, b)) = line.split(' ').next().and_then(|r| r.split_once('-'))
                && let (Ok(a), Ok(b)) = (usize::from_str_radix(a, 16), usize::from_str_radix(b, 16))
            {
                inside = a < to && b > from;
            } else if inside && let Some(kib) = line.strip_prefix("AnonHugePages:") {
                total += kib.trim().trim_end_matches(" kB").parse::<usize>().unwrap_or(0) * 1024;
            }
        }
        Some(total.min(self.len))
    }
}

impl Drop for HugeBuf {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `zeroed`, unmapped once.
        let _ = unsafe { mm::munmap(self.map.cast(), self.map_len) };
    }
}

impl Deref for HugeBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `data..data + len` is mapped, initialised (zeroed by the kernel) and owned by self.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl DerefMut for HugeBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_aligned_and_writable() {
        for len in [0, 1, 4096, HUGE_PAGE + 1] {
            let mut buf = HugeBuf::zeroed(len).unwrap();
            assert_eq!(buf.len(), len);
            assert_eq!(buf.as_ptr() as usize % HUGE_PAGE, 0);
            assert!(buf.iter().all(|&b| b == 0));
            buf.fill(7);
            assert!(buf.iter().all(|&b| b == 7));
        }
    }

    #[test]
    fn refuses_what_cannot_be_mapped() {
        assert!(HugeBuf::zeroed(1 << 60).is_err());
    }
}
