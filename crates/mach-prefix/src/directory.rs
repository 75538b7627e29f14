//! L2: snapshots on disk, one file each, in a directory of their namespace.
//!
//! A file comes into being under a temporary name that its writer holds a lock on, is written, flushed and renamed, so
//! that what has its name is whole or damaged by the drive. Servers may share a directory: files are only ever added and
//! removed, and one that is gone is a miss. Only what has a name and a beginning that mach gives is ever removed, only in
//! the namespace's own directory, and only if that is this user's.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use mach_experts::HotExperts;
use rustix::fs::{FlockOperation, flock};
use tracing::{debug, warn};

use crate::chain::{Chain, Hash};
use crate::folder::{Access, Folder, Home, this_user};
use crate::image::{Blank, Image};
use crate::index::{Index, Reach};
use crate::memory::Stored;
use crate::names::{self, QUARANTINE};
use crate::score::{Hits, value};
use crate::segment::{ALIGN, Head, beginning, head_len, is_begun};
use crate::stats::DiskStats;
use crate::transfer::{BodyError, read_aligned, read_body, write_aligned, write_body};

/// Damaged files kept for a look at them.
const MOST_QUARANTINED: usize = 8;

#[derive(Debug)]
pub(crate) struct Segment {
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
pub(crate) struct Directory {
    pub(crate) home: Home,
    pub(crate) namespace: Hash,
    block: usize,
    pub(crate) budget: u64,
    inner: Mutex<Inner>,
    /// Whether states of the model are still those of the namespace.
    valid: Arc<dyn Fn() -> bool + Send + Sync>,
    /// The log has said that the filesystem is nearly full.
    pub(crate) told_nearly_full: AtomicBool,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Directory").field("home", &self.home).finish_non_exhaustive()
    }
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

/// Of this process: two caches in it do not take each other's names.
static TEMPORARIES: AtomicU64 = AtomicU64::new(0);

/// Whether a file is a segment, whole or begun.
pub(crate) fn is_segment(file: &File) -> bool {
    let mut start = [0; 8];
    file.read_exact_at(&mut start, 0).is_ok() && is_begun(&start)
}

impl Directory {
    /// Opens or makes the directory and reads the heads of the segments in it. Never fails: a directory that cannot be
    /// used holds nothing and takes nothing.
    pub(crate) fn open(base: &Path, namespace: Hash, block: usize, budget: u64) -> Self {
        Self::open_as(this_user(), base, namespace, block, budget)
    }

    /// For a user: what is another's is neither read nor written.
    fn open_as(owner: u32, base: &Path, namespace: Hash, block: usize, budget: u64) -> Self {
        let home = Home { path: base.join(names::namespace(&namespace)), owner };
        let stats =
            DiskStats { directory: base.display().to_string(), budget_bytes: budget, ..DiskStats::default() };
        let inner = Mutex::new(Inner { stats, ..Inner::default() });
        let told_nearly_full = AtomicBool::new(false);
        let valid = Arc::new(|| true);
        let directory = Directory { home, namespace, block, budget, inner, valid, told_nearly_full };
        let prepared = directory.prepare();
        if let Err(error) = &prepared {
            let path = directory.home.path.display();
            warn!(directory = %path, %error, "the prefix cache cannot save to disk");
        }
        directory.lock().stats.writable = prepared.is_ok();
        directory.remove_stale_temporaries();
        directory.scan(0);
        let others = directory.others_bytes(base);
        if others > budget {
            let path = base.display();
            warn!(directory = %path, bytes = others, "segments of other models and builds are never removed by this one");
        }
        directory.lock().stats.other_namespaces_bytes = others;
        directory
    }

    /// Saves nothing from when `valid` says no.
    pub(crate) fn valid_while(self, valid: Arc<dyn Fn() -> bool + Send + Sync>) -> Self {
        Directory { valid, ..self }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // The lock is never held across code that can panic halfway through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prepare(&self) -> io::Result<()> {
        let folder = self.home.make()?;
        let (_, probe) = self.create(&folder)?;
        folder.remove(&probe)
    }

    /// A new file that this process holds the lock of, and its name.
    fn create(&self, folder: &Folder) -> io::Result<(File, String)> {
        loop {
            let number = TEMPORARIES.fetch_add(1, Ordering::Relaxed);
            let name = names::temporary(std::process::id(), number);
            let file = match folder.file(&name, Access::CreateDirect) {
                // Of a process that has the same number elsewhere, or had it before.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                file => file?,
            };
            // Another server that starts just now may have taken it for a dead writer's.
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) => continue,
                locked => locked?,
            }
            if file.metadata()?.nlink() > 0 {
                return Ok((file, name));
            }
        }
    }

    /// Where the file of a segment is.
    pub(crate) fn file(&self, key: &Hash) -> PathBuf {
        self.home.path.join(names::segment(key))
    }

    /// A temporary file whose lock can be had has lost its writer.
    fn remove_stale_temporaries(&self) {
        let Ok(folder) = self.home.open() else { return };
        for name in folder.names().unwrap_or_default().iter().filter(|name| names::is_temporary(name)) {
            let Ok(file) = folder.file(name, Access::Read) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && is_segment(&file) {
                let _ = folder.remove(name);
            }
        }
    }

    /// Takes in segments that are not known yet, and forgets those that another server has removed.
    pub(crate) fn scan(&self, now: u64) {
        let known: HashMap<String, Hash> =
            self.lock().segments.keys().map(|key| (names::segment(key), *key)).collect();
        let folder = match self.home.open() {
            Ok(folder) => folder,
            Err(error) => {
                debug!(directory = %self.home.path.display(), %error, "no segments can be read");
                known.values().for_each(|key| self.forget(key));
                return;
            }
        };
        let Ok(names) = folder.names() else { return };
        let names: HashSet<String> = names.into_iter().filter(|name| names::is_segment(name)).collect();
        known.iter().filter(|(name, _)| !names.contains(*name)).for_each(|(_, key)| self.forget(key));
        // Removed by another server, or not this user's: not there.
        let modified = |name: String| {
            let file = folder.file(&name, Access::Read).ok()?;
            let modified = file.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            Some((modified, name))
        };
        let mut found: Vec<(SystemTime, String)> =
            names.into_iter().filter(|name| !known.contains_key(name)).filter_map(modified).collect();
        found.sort();
        for (_, name) in found {
            let Ok(file) = folder.file(&name, Access::ReadDirect) else { continue };
            match self.read_head(&file, &name) {
                Ok(head) => self.insert(head, now),
                Err(LoadError::Io(error)) => debug!(file = name, %error, "a segment cannot be read"),
                Err(LoadError::Damaged(reason)) => self.quarantine(&name, &reason),
            }
        }
    }

    fn read_head(&self, file: &File, name: &str) -> Result<Head, LoadError> {
        let len = file.metadata()?.len();
        if len < ALIGN as u64 {
            return Err(damaged("truncated"));
        }
        let first = read_aligned(file, 0, ALIGN)?;
        let size = head_len(&first).map_err(damaged)?;
        if (size as u64) > len {
            return Err(damaged("truncated"));
        }
        let bytes = if size > ALIGN { read_aligned(file, 0, size)? } else { first };
        let head = Head::parse(&bytes).map_err(damaged)?;
        if head.namespace != self.namespace {
            return Err(damaged("of another model"));
        }
        if head.file_len() != len {
            return Err(damaged(format!("{len} bytes long, not {}", head.file_len())));
        }
        if names::segment(&head.key) != name {
            return Err(damaged("under the name of another"));
        }
        Ok(head)
    }

    fn insert(&self, head: Head, now: u64) {
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
        inner.segments.insert(key, Segment { head: Arc::new(head), reach, hits: Hits::new(now) });
    }

    /// Forgets a segment, whose file stays.
    pub(crate) fn forget(&self, key: &Hash) {
        let mut inner = self.lock();
        let Some(segment) = inner.segments.remove(key) else { return };
        let chain = Chain::new(&segment.head.root, &segment.head.tokens, self.block);
        inner.index.remove(&chain, &segment.reach, key);
        inner.stats.files -= 1;
        inner.stats.bytes -= segment.head.file_len();
    }

    /// Sets a file aside that has a segment's name and is none, or is damaged.
    fn quarantine(&self, name: &str, reason: &str) {
        let file = self.home.path.join(name);
        warn!(file = %file.display(), reason, "a damaged segment of the prefix cache is set aside");
        self.lock().stats.quarantined += 1;
        let set_aside = || -> io::Result<()> {
            let folder = self.home.open()?;
            // Another server may have been quicker.
            drop(folder.file(name, Access::Read)?);
            let aside = folder.make_inner(QUARANTINE)?;
            let kept = Self::set_aside(&aside);
            for (old, _) in kept.iter().skip(MOST_QUARANTINED - 1) {
                aside.remove(old)?;
            }
            let number = TEMPORARIES.fetch_add(1, Ordering::Relaxed);
            folder.rename(name, &aside, &names::set_aside(name, std::process::id(), number))
        };
        // Failing leaves the file where it is, out of the index.
        if let Err(error) = set_aside() {
            debug!(file = %file.display(), %error, "it stays where it is");
        }
    }

    /// Segments that were set aside and their bytes, the latest first. Files whose beginning is not a segment's are not among
    /// them: they are never removed.
    pub(crate) fn set_aside(aside: &Folder) -> Vec<(String, u64)> {
        let names = aside.names().unwrap_or_default().into_iter().filter(|name| names::is_set_aside(name));
        let mut kept: Vec<(SystemTime, String, u64)> = names
            .filter_map(|name| {
                let file = aside.file(&name, Access::Read).ok().filter(is_segment)?;
                let meta = file.metadata().ok()?;
                Some((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), name, meta.len()))
            })
            .collect();
        kept.sort_by(|a, b| b.cmp(a));
        kept.into_iter().map(|(_, name, len)| (name, len)).collect()
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
        let known = {
            let mut inner = self.lock();
            let segment = inner.segments.get_mut(key)?;
            segment.hits.hit(now);
            Arc::clone(&segment.head)
        };
        let name = names::segment(key);
        match self.read(&name, &known, blank) {
            Ok((image, None)) => Some((image, known)),
            Ok((image, Some(head))) => {
                // Another server has saved the same tokens anew.
                self.forget(key);
                self.insert(head.clone(), now);
                Some((image, Arc::new(head)))
            }
            Err(error) => {
                self.forget(key);
                match error {
                    LoadError::Io(error) if error.kind() == io::ErrorKind::NotFound => {}
                    LoadError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        self.quarantine(&name, "truncated");
                    }
                    LoadError::Io(error) => warn!(file = name, %error, "a segment cannot be read"),
                    LoadError::Damaged(reason) => self.quarantine(&name, &reason),
                }
                None
            }
        }
    }

    /// The image, and the head if it is not the one that was known.
    fn read(&self, name: &str, known: &Head, blank: &Blank) -> Result<(Image, Option<Head>), LoadError> {
        let file = self.home.open()?.file(name, Access::ReadDirect)?;
        let head = self.read_head(&file, name)?;
        if (&head.root, &head.tokens) != (&known.root, &known.tokens) {
            return Err(damaged("its head has changed"));
        }
        let unfilled = blank.image(head.tokens.len(), head.draft, head.logits as usize);
        let mut image = unfilled.ok_or_else(|| damaged("it holds another draft's context"))?;
        let sections = image.import();
        let total: usize = sections.iter().map(|section| section.len()).sum();
        if total as u64 != head.body {
            return Err(damaged("its body has another size than the model's state"));
        }
        read_body(&file, head.len() as u64, &head.checksums, sections).map_err(|error| match error {
            BodyError::Io(error) => LoadError::Io(error),
            damage => damaged(damage),
        })?;
        let hot = HotExperts::from_words(&head.hot).filter(|hot| !hot.is_empty());
        let image = image.filled().map_err(io::Error::other)?;
        if head.cut && !image.can_be_cut() {
            return Err(damaged("it says that it can be cut, and it cannot"));
        }
        // Other servers and the next start see that it was of use.
        let _ = file.set_modified(SystemTime::now());
        let image = Image { hot: hot.map(Arc::new), ..image };
        Ok((image, Some(head).filter(|head| head != known)))
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

    fn check_valid(&self) -> io::Result<()> {
        match (self.valid)() {
            true => Ok(()),
            false => Err(io::Error::other("the model's files have changed since it was loaded")),
        }
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
        self.check_valid()?;
        let folder = self.home.open()?;
        self.make_room(&folder, head.file_len(), worth, now)?;
        let (file, temporary) = self.create(&folder)?;
        let written = (|| {
            write_aligned(&file, 0, &beginning())?;
            head.checksums = write_body(&file, head.len() as u64, &sections, pause)?;
            write_aligned(&file, 0, &head.to_bytes())?;
            file.sync_all()?;
            self.check_valid()?;
            folder.rename(&temporary, &folder, &names::segment(&head.key))?;
            folder.sync()
        })();
        if let Err(error) = written {
            let _ = folder.remove(&temporary);
            return Err(error);
        }
        let bytes = head.file_len();
        self.forget(&head.key);
        self.insert(head, now);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use mach_models::SequenceState;

    use super::*;
    use crate::Kind;

    /// A snapshot of a model without layers.
    fn stored(directory: &Directory, seed: u32) -> Stored {
        let mut state = SequenceState::without_layers();
        state.advance(3);
        let tokens = [seed, 1, 2];
        let root = crate::chain::root(&directory.namespace, None);
        let key = Chain::new(&root, &tokens, directory.block).key(&tokens);
        let image = Image { state, draft: None, logits: Some(vec![1.0; 8].into()), hot: None };
        Stored { key, root, tokens: tokens.into(), image: Arc::new(image), kind: Kind::PromptEnd, turn: None }
    }

    #[test]
    fn a_namespace_of_another_user_is_neither_read_nor_written() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Directory::open(dir.path(), [0; 32], 16, 1 << 20);
        let saved = stored(&ours, 1);
        ours.save(&saved, 0, &mut || Ok(())).unwrap();
        fs::write(ours.home.path.join("tmp-1-1"), beginning()).unwrap();
        let list = || {
            let files = fs::read_dir(&ours.home.path).unwrap().map(|e| e.unwrap().file_name());
            files.collect::<std::collections::BTreeSet<_>>()
        };
        let before = list();
        // As another user would see it.
        let theirs = Directory::open_as(this_user() + 1, dir.path(), [0; 32], 16, 1 << 20);
        assert!(!theirs.stats().writable && theirs.stats().files == 0 && !theirs.contains(&saved.key));
        let error = theirs.save(&stored(&theirs, 2), 0, &mut || Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        // Not even what is known by name is read.
        let head = ours.lock().segments[&saved.key].head.as_ref().clone();
        theirs.insert(head, 0);
        let blank = Blank { state: SequenceState::without_layers(), draft: None };
        assert!(theirs.load(&saved.key, &blank, 0).is_none() && !theirs.contains(&saved.key));
        theirs.scan(0);
        assert_eq!((theirs.stats().files, theirs.stats().quarantined), (0, 0));
        assert_eq!(list(), before);
        let again = Directory::open(dir.path(), [0; 32], 16, 1 << 20);
        assert!(again.load(&saved.key, &blank, 0).is_some() && list().len() == before.len() - 1);
    }

    #[test]
    fn nothing_is_saved_for_a_model_that_is_no_longer_valid() {
        let dir = tempfile::tempdir().unwrap();
        let valid = Arc::new(AtomicBool::new(true));
        let flag = Arc::clone(&valid);
        let directory = Directory::open(dir.path(), [0; 32], 16, 1 << 20)
            .valid_while(Arc::new(move || flag.load(Ordering::Relaxed)));
        directory.save(&stored(&directory, 1), 0, &mut || Ok(())).unwrap();
        // It changes while the body is written.
        let mut pause = || {
            valid.store(false, Ordering::Relaxed);
            Ok(())
        };
        assert!(directory.save(&stored(&directory, 2), 0, &mut pause).is_err());
        assert!(directory.save(&stored(&directory, 3), 0, &mut || Ok(())).is_err());
        assert_eq!(fs::read_dir(&directory.home.path).unwrap().count(), 1);
    }

    #[test]
    fn a_temporary_name_that_is_taken_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path(), [0; 32], 16, 1 << 20);
        let next = TEMPORARIES.load(Ordering::Relaxed);
        for number in next..next + 50 {
            fs::write(directory.home.path.join(names::temporary(std::process::id(), number)), "").unwrap();
        }
        directory.save(&stored(&directory, 1), 0, &mut || Ok(())).unwrap();
        assert_eq!(directory.stats().files, 1);
    }
}
