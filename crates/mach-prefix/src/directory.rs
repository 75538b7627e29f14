//! L2: snapshots on disk, one file each, below a directory of their namespace.
//!
//! A file comes into being under a temporary name that its writer holds a lock on, is written, flushed and renamed, so
//! that what has its name is whole or damaged by the drive. Servers may share a directory: files are only ever added and
//! removed, and one that is gone is a miss.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use mach_experts::HotExperts;
use rustix::fs::{FlockOperation, flock};
use tracing::warn;

use crate::chain::{Chain, Hash, hex};
use crate::image::{Blank, Image};
use crate::index::{Index, Reach};
use crate::memory::Stored;
use crate::score::{Hits, value};
use crate::segment::{ALIGN, Head, head_len};
use crate::stats::DiskStats;
use crate::transfer::{BodyError, create, open_to_read, read_aligned, read_body, write_aligned, write_body};

pub(crate) const SUFFIX: &str = "seg";
const TEMPORARY: &str = "tmp-";
pub(crate) const QUARANTINE: &str = "quarantine";
/// Damaged files kept for a look at them.
const MOST_QUARANTINED: usize = 8;

#[derive(Debug)]
pub(crate) struct Segment {
    file: PathBuf,
    pub(crate) head: Arc<Head>,
    pub(crate) reach: Reach,
    pub(crate) hits: Hits,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) segments: HashMap<Hash, Segment>,
    index: Index,
    pub(crate) stats: DiskStats,
}

/// The segments of one namespace.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) base: PathBuf,
    pub(crate) own: PathBuf,
    namespace: Hash,
    block: usize,
    pub(crate) budget: u64,
    inner: Mutex<Inner>,
    temporaries: AtomicU64,
    /// The log has said that the filesystem is nearly full.
    pub(crate) told_nearly_full: AtomicBool,
}

/// Why a segment was not brought back.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Damaged(String),
}

fn damaged(reason: impl ToString) -> LoadError {
    LoadError::Damaged(reason.to_string())
}

impl Directory {
    /// Opens or makes the directory and reads the heads of the segments in it. Never fails: a directory that cannot be
    /// used holds nothing and takes nothing.
    pub(crate) fn open(base: &Path, namespace: Hash, block: usize, budget: u64) -> Self {
        let own = base.join(hex(namespace.get(..16).unwrap_or_default()));
        let stats =
            DiskStats { directory: base.display().to_string(), budget_bytes: budget, ..DiskStats::default() };
        let inner = Mutex::new(Inner { stats, ..Inner::default() });
        let directory = Directory {
            base: base.to_owned(),
            own,
            namespace,
            block,
            budget,
            inner,
            temporaries: AtomicU64::new(0),
            told_nearly_full: AtomicBool::new(false),
        };
        let prepared = directory.prepare();
        if let Err(error) = &prepared {
            warn!(directory = %directory.own.display(), %error, "the prefix cache cannot save to disk");
        }
        directory.lock().stats.writable = prepared.is_ok();
        directory.remove_stale_temporaries();
        directory.scan(0);
        directory
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // The lock is never held across code that can panic halfway through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepare(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.own)?;
        let meta = fs::symlink_metadata(&self.own)?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("it belongs to somebody else"));
        }
        if meta.permissions().mode() & 0o077 != 0 {
            fs::set_permissions(&self.own, Permissions::from_mode(0o700))?;
        }
        let probe = self.temporary();
        create(&probe)?;
        fs::remove_file(&probe)
    }

    fn temporary(&self) -> PathBuf {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        self.own.join(format!("{TEMPORARY}{}-{number}", std::process::id()))
    }

    pub(crate) fn file(&self, key: &Hash) -> PathBuf {
        self.own.join(hex(key.get(..20).unwrap_or_default())).with_extension(SUFFIX)
    }

    /// A temporary file whose lock can be had has lost its writer.
    fn remove_stale_temporaries(&self) {
        for entry in fs::read_dir(&self.own).into_iter().flatten().flatten() {
            if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                continue;
            }
            let free = File::open(entry.path())
                .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
            if free {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Takes in segments that are not known yet.
    pub(crate) fn scan(&self, now: u64) {
        let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
        let known: Vec<PathBuf> = self.lock().segments.values().map(|s| s.file.clone()).collect();
        let known: std::collections::HashSet<PathBuf> = known.into_iter().collect();
        for entry in fs::read_dir(&self.own).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_some_and(|e| e == SUFFIX) && !known.contains(&path) {
                let modified = entry.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                found.push((modified, path));
            }
        }
        found.sort();
        for (_, path) in found {
            match self.read_head(&path) {
                Ok(head) => self.insert(path, head, now),
                Err(LoadError::Io(error)) => {
                    // Removed by another server, or not readable: not there.
                    tracing::debug!(file = %path.display(), %error, "a segment cannot be read");
                }
                Err(LoadError::Damaged(reason)) => self.quarantine(&path, &reason),
            }
        }
    }

    fn read_head(&self, path: &Path) -> Result<Head, LoadError> {
        let file = open_to_read(path)?;
        let len = file.metadata()?.len();
        if len < ALIGN as u64 {
            return Err(damaged("truncated"));
        }
        let first = read_aligned(&file, 0, ALIGN)?;
        let size = head_len(&first).map_err(damaged)?;
        if (size as u64) > len {
            return Err(damaged("truncated"));
        }
        let bytes = if size > ALIGN { read_aligned(&file, 0, size)? } else { first };
        let head = Head::parse(&bytes).map_err(damaged)?;
        if head.namespace != self.namespace {
            return Err(damaged("of another model"));
        }
        if head.file_len() != len {
            return Err(damaged(format!("{len} bytes long, not {}", head.file_len())));
        }
        Ok(head)
    }

    fn insert(&self, file: PathBuf, head: Head, now: u64) {
        let reach = Reach { end: head.tokens.len(), cut: head.cut, logits: head.logits > 0 };
        let chain = Chain::new(&head.root, &head.tokens, self.block);
        let mut inner = self.lock();
        let key = head.key;
        if inner.segments.contains_key(&key) {
            return;
        }
        inner.index.insert(&chain, &reach, key);
        inner.stats.files += 1;
        inner.stats.bytes += head.file_len();
        inner.segments.insert(key, Segment { file, head: Arc::new(head), reach, hits: Hits::new(now) });
    }

    /// Forgets a segment; gives its file.
    pub(crate) fn forget(&self, key: &Hash) -> Option<PathBuf> {
        let mut inner = self.lock();
        let segment = inner.segments.remove(key)?;
        let chain = Chain::new(&segment.head.root, &segment.head.tokens, self.block);
        inner.index.remove(&chain, &segment.reach, key);
        inner.stats.files -= 1;
        inner.stats.bytes -= segment.head.file_len();
        Some(segment.file)
    }

    fn quarantine(&self, path: &Path, reason: &str) {
        warn!(file = %path.display(), reason, "a damaged segment of the prefix cache is set aside");
        self.lock().stats.quarantined += 1;
        let aside = self.own.join(QUARANTINE);
        // Failing leaves the file where it is, out of the index.
        let _ = DirBuilder::new().mode(0o700).create(&aside);
        let mut kept: Vec<_> =
            fs::read_dir(&aside).into_iter().flatten().flatten().map(|e| e.path()).collect();
        kept.sort_by_key(|path| fs::metadata(path).and_then(|m| m.modified()).ok());
        for old in kept.iter().take((kept.len() + 1).saturating_sub(MOST_QUARANTINED)) {
            let _ = fs::remove_file(old);
        }
        if let Some(name) = path.file_name() {
            let _ = fs::rename(path, aside.join(name));
        }
    }

    pub(crate) fn stats(&self) -> DiskStats {
        self.lock().stats.clone()
    }

    pub(crate) fn contains(&self, key: &Hash) -> bool {
        self.lock().segments.contains_key(key)
    }

    /// Heads of the segments that were warmed.
    pub(crate) fn warmed(&self) -> Vec<Arc<Head>> {
        let inner = self.lock();
        inner.segments.values().filter(|s| s.head.warmed).map(|s| Arc::clone(&s.head)).collect()
    }

    /// The segment that reaches furthest into the prompt.
    pub(crate) fn longest(&self, chain: &Chain, prompt: &[u32]) -> Option<(Hash, usize)> {
        let inner = self.lock();
        inner.index.longest(chain, |key| {
            let segment = inner.segments.get(key)?;
            segment.reach.furthest(&segment.head.tokens, prompt)
        })
    }

    /// Brings a segment back. One that is damaged is set aside, one that is gone forgotten.
    pub(crate) fn load(&self, key: &Hash, blank: &Blank, now: u64) -> Option<(Image, Arc<Head>)> {
        let (file, head) = {
            let mut inner = self.lock();
            let segment = inner.segments.get_mut(key)?;
            segment.hits.hit(now);
            (segment.file.clone(), Arc::clone(&segment.head))
        };
        match self.read(&file, &head, blank) {
            Ok(image) => {
                // Other servers and the next start see that it was of use.
                if let Ok(file) = File::options().write(true).open(&file) {
                    let _ = file.set_modified(SystemTime::now());
                }
                Some((image, head))
            }
            Err(error) => {
                self.forget(key);
                match error {
                    LoadError::Io(error) if error.kind() == io::ErrorKind::NotFound => {}
                    LoadError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        self.quarantine(&file, "truncated");
                    }
                    LoadError::Io(error) => {
                        warn!(file = %file.display(), %error, "a segment cannot be read");
                    }
                    LoadError::Damaged(reason) => self.quarantine(&file, &reason),
                }
                None
            }
        }
    }

    fn read(&self, path: &Path, known: &Head, blank: &Blank) -> Result<Image, LoadError> {
        let file = open_to_read(path)?;
        if file.metadata()?.len() != known.file_len() {
            return Err(damaged("its length has changed"));
        }
        // The head once more: another file may have taken the name.
        if Head::parse(&read_aligned(&file, 0, known.len())?).map_err(damaged)? != *known {
            return Err(damaged("its head has changed"));
        }
        let unfilled = blank.image(known.tokens.len(), known.draft, known.logits as usize);
        let mut image = unfilled.ok_or_else(|| damaged("it holds another draft's context"))?;
        let sections = image.import();
        let total: usize = sections.iter().map(|section| section.len()).sum();
        if total as u64 != known.body {
            return Err(damaged("its body has another size than the model's state"));
        }
        read_body(&file, known.len() as u64, &known.checksums, sections).map_err(|error| match error {
            BodyError::Io(error) => LoadError::Io(error),
            damage => damaged(damage),
        })?;
        let hot = HotExperts::from_words(&known.hot).filter(|hot| !hot.is_empty());
        let image = image.filled().map_err(io::Error::other)?;
        Ok(Image { hot: hot.map(Arc::new), ..image })
    }

    /// Writes a snapshot, after making room for it.
    pub(crate) fn save(
        &self,
        stored: &Stored,
        now: u64,
        pause: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        let result = self.try_save(stored, now, pause);
        let mut inner = self.lock();
        match &result {
            Ok(bytes) => {
                inner.stats.saved += 1;
                inner.stats.saved_bytes += bytes;
            }
            Err(_) => inner.stats.save_failures += 1,
        }
        drop(inner);
        if let Err(error) = &result
            && error.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error())
        {
            self.nearly_full(0);
        }
        result.map(|_| ())
    }

    fn try_save(
        &self,
        stored: &Stored,
        now: u64,
        pause: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<u64> {
        let image = &stored.image;
        let pieces = image.export().map_err(io::Error::other)?;
        let sections: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
        let body = sections.iter().map(|section| section.len() as u64).sum::<u64>();
        let chunks =
            usize::try_from(body.div_ceil(crate::segment::CHUNK as u64)).map_err(io::Error::other)?;
        let mut head = Head {
            namespace: self.namespace,
            root: stored.root,
            key: stored.key,
            created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            draft: image.draft.is_some(),
            cut: image.can_be_cut(),
            anchor: stored.kind.anchor(),
            warmed: stored.kind == crate::Kind::Warmed,
            block: self.block as u32,
            logits: image.logits.as_ref().map_or(0, |logits| logits.len() as u32),
            tokens: stored.tokens().to_vec(),
            body,
            checksums: vec![0; chunks],
            hot: image.hot.as_ref().map(|hot| hot.to_words()).unwrap_or_default(),
        };
        let worth = value(1.0, head.tokens.len(), head.file_len() as usize, head.anchor);
        self.make_room(head.file_len(), worth, now)?;
        let temporary = self.temporary();
        let written = (|| {
            let file = create(&temporary)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            head.checksums = write_body(&file, head.len() as u64, &sections, pause)?;
            write_aligned(&file, 0, &head.to_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, self.file(&head.key))?;
            File::open(&self.own)?.sync_all()
        })();
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        let bytes = head.file_len();
        self.forget(&head.key);
        self.insert(self.file(&head.key), head, now);
        Ok(bytes)
    }

    pub(crate) fn turn_log(&self) -> PathBuf {
        self.own.join("turns")
    }
}
