//! Room for new segments: what is deleted for them, and when there is none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use tracing::warn;

use crate::directory::{Directory, QUARANTINE, SUFFIX, Segment};
use crate::score::value;

/// Bytes that a save leaves free on the filesystem.
const LEAVE_FREE: u64 = 256 << 20;

impl Directory {
    /// Deletes until `bytes` more fit the budget: the least valuable segments of this model, and before them files of other
    /// models that nobody has touched since.
    pub(crate) fn make_room(&self, bytes: u64, worth: f64, now: u64) -> io::Result<()> {
        let full = |reason: &str| io::Error::new(io::ErrorKind::StorageFull, reason.to_owned());
        if bytes > self.budget {
            return Err(full("larger than the whole budget"));
        }
        let mut others = self.files_of_others();
        let mut total: u64 = self.lock().stats.bytes + others.iter().map(|(_, _, len)| len).sum::<u64>();
        while total + bytes > self.budget {
            let least = {
                let inner = self.lock();
                let worth = |s: &Segment| {
                    value(s.hits.at(now), s.reach.end, s.head.file_len() as usize, s.head.anchor)
                };
                let all = inner.segments.iter().map(|(key, s)| (*key, worth(s), s.head.file_len()));
                all.min_by(|a, b| a.1.total_cmp(&b.1))
            };
            let freed = if let Some((_, path, len)) = others.pop() {
                fs::remove_file(path)?;
                len
            } else if let Some((key, _, len)) = least.filter(|(_, value, _)| *value <= worth) {
                if let Some(path) = self.forget(&key) {
                    fs::remove_file(path)?;
                }
                len
            } else {
                return Err(full("everything in the budget is worth more"));
            };
            self.lock().stats.evicted_for_budget += 1;
            total = total.saturating_sub(freed);
        }
        match rustix::fs::statvfs(&self.own) {
            Ok(fs) if fs.f_bavail.saturating_mul(fs.f_frsize) < bytes.saturating_add(LEAVE_FREE) => {
                let free = fs.f_bavail.saturating_mul(fs.f_frsize);
                self.nearly_full(free);
                Err(full("the filesystem is nearly full"))
            }
            _ => {
                self.told_nearly_full.store(false, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Says so once, until there is room again: every prefix from here on meets the same.
    pub(crate) fn nearly_full(&self, free: u64) -> bool {
        let first = !self.told_nearly_full.swap(true, Ordering::Relaxed);
        if first {
            let directory = self.own.display();
            warn!(%directory, free, kept_free = LEAVE_FREE, "the filesystem is nearly full; prefixes are not saved");
        }
        first
    }

    /// Segments of other namespaces and whatever was set aside, the longest untouched last.
    fn files_of_others(&self) -> Vec<(SystemTime, PathBuf, u64)> {
        let mut found = Vec::new();
        let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
        let dirs = list(&self.base).filter(|dir| *dir != self.own).chain([self.own.join(QUARANTINE)]);
        for path in dirs.flat_map(|dir| list(&dir).collect::<Vec<_>>()) {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_file() && path.extension().is_some_and(|e| e == SUFFIX) {
                found.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), path, meta.len()));
            }
        }
        found.sort_by(|a, b| b.cmp(a));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_filesystem_is_told_once_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path(), [0; 32], 16, u64::MAX / 4);
        let too_much = u64::MAX / 8;
        assert_eq!(directory.make_room(too_much, 1.0, 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(!directory.nearly_full(0), "it was told");
        assert!(directory.make_room(too_much, 1.0, 0).is_err());
        directory.make_room(1, 1.0, 0).unwrap();
        assert!(directory.nearly_full(0), "there was room, so it is news again");
    }
}
