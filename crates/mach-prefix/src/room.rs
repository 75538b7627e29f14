//! Room for new segments: what is deleted for them, and when there is none.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use tracing::warn;

use crate::directory::{Directory, Segment, is_segment};
use crate::folder::{Access, Folder, Home, directories};
use crate::names::{self, QUARANTINE};
use crate::score::value;

/// Bytes that a save leaves free on the filesystem.
const LEAVE_FREE: u64 = 256 << 20;

impl Directory {
    /// Deletes until `bytes` more fit the budget: what was set aside, then the least valuable segments. Other servers' count,
    /// other namespaces' do not.
    pub(crate) fn make_room(&self, folder: &Folder, bytes: u64, worth: f64, now: u64) -> io::Result<()> {
        let full = |reason: &str| io::Error::new(io::ErrorKind::StorageFull, reason.to_owned());
        if bytes > self.budget {
            return Err(full("larger than the whole budget"));
        }
        self.scan(now);
        let aside = folder.inner(QUARANTINE).ok();
        let mut set_aside = aside.as_ref().map(Self::set_aside).unwrap_or_default();
        let mut total: u64 = self.lock().stats.bytes + set_aside.iter().map(|(_, len)| len).sum::<u64>();
        while total + bytes > self.budget {
            let least = {
                let inner = self.lock();
                let worth = |s: &Segment| {
                    value(s.hits.at(now), s.reach.end, s.head.file_len() as usize, s.head.anchor)
                };
                let all = inner.segments.iter().map(|(key, s)| (*key, worth(s), s.head.file_len()));
                all.min_by(|a, b| a.1.total_cmp(&b.1))
            };
            let freed = if let Some((aside, (name, len))) = aside.as_ref().zip(set_aside.pop()) {
                aside.remove(&name)?;
                len
            } else if let Some((key, _, len)) = least.filter(|(_, value, _)| *value <= worth) {
                self.forget(&key);
                let name = names::segment(&key);
                // Gone by now, or something else has taken the name: it is none of ours to remove.
                if folder.file(&name, Access::Read).is_ok_and(|file| is_segment(&file)) {
                    folder.remove(&name)?;
                }
                len
            } else {
                return Err(full("everything in the budget is worth more"));
            };
            self.lock().stats.evicted_for_budget += 1;
            total = total.saturating_sub(freed);
        }
        match folder.free() {
            Ok(free) if free < bytes.saturating_add(LEAVE_FREE) => {
                self.nearly_full(free);
                Err(full("the filesystem is nearly full"))
            }
            _ => {
                self.told_nearly_full.store(false, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Bytes of this user's segments of other models and builds beside the namespace. They are nobody's to remove but the
    /// user's: a server that is about to start may be theirs.
    pub(crate) fn others_bytes(&self, base: &Path) -> u64 {
        let own = names::namespace(&self.namespace);
        let others = directories(base).into_iter().filter(|name| names::is_namespace(name) && *name != own);
        let homes = others.map(|name| Home { path: base.join(name), ..self.home });
        let folders = homes.filter_map(|home| home.open().ok());
        let bytes = |folder: Folder| {
            let segments = folder.names().unwrap_or_default().into_iter().filter(|n| names::is_segment(n));
            segments
                .filter_map(|name| Some(folder.file(&name, Access::Read).ok()?.metadata().ok()?.len()))
                .sum::<u64>()
        };
        folders.map(bytes).sum()
    }

    /// Says so once, until there is room again: every prefix from here on meets the same.
    pub(crate) fn nearly_full(&self, free: u64) -> bool {
        let first = !self.told_nearly_full.swap(true, Ordering::Relaxed);
        if first {
            let directory = self.home.path.display();
            warn!(%directory, free, kept_free = LEAVE_FREE, "the filesystem is nearly full; prefixes are not saved");
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_filesystem_is_told_once_until_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path(), [0; 32], 16, u64::MAX / 4);
        let folder = directory.home.open().unwrap();
        let too_much = u64::MAX / 8;
        assert_eq!(
            directory.make_room(&folder, too_much, 1.0, 0).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        assert!(!directory.nearly_full(0), "it was told");
        assert!(directory.make_room(&folder, too_much, 1.0, 0).is_err());
        directory.make_room(&folder, 1, 1.0, 0).unwrap();
        assert!(directory.nearly_full(0), "there was room, so it is news again");
    }
}
