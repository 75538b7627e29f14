//! Room for new segments: what is deleted for them, and when there is none.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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
                Err(full("the filesystem is nearly full"))
            }
            _ => Ok(()),
        }
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
