//! Both levels together.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::chain::{Chain, Hash, hex, root};
use crate::config::PrefixConfig;
use crate::directory::Directory;
use crate::image::Blank;
use crate::memory::{Memory, Stored};
use crate::sessions::SessionTurn;
use crate::snapshot::{Kind, Level, Restored, Snapshot, WarmedPrefix};
use crate::stats::{PrefixStats, Recent};
use crate::turns::{TurnKey, TurnMemory, turn_key};
use crate::writer::SegmentWriter;

/// A segment on disk is worth reading if it reaches this many tokens further than a snapshot in memory.
const WORTH_READING: usize = 64;

/// Snapshots in memory and segments on disk, behind one lookup.
#[derive(Debug)]
pub struct PrefixCache {
    config: PrefixConfig,
    blank: Blank,
    memory: Mutex<Memory>,
    disk: OnceLock<Disk>,
    turns: Option<TurnMemory>,
    counts: Mutex<Counts>,
    /// Lookups: the clock by which hits fade.
    now: AtomicU64,
}

/// What is there once it is known which segments are the model's.
#[derive(Debug)]
struct Disk {
    directory: Arc<Directory>,
    writer: Option<SegmentWriter>,
}

#[derive(Debug, Default)]
struct Counts {
    hits: u64,
    partial_hits: u64,
    misses: u64,
    l1_hits: u64,
    l2_hits: u64,
    tokens_saved: u64,
    lookup: Recent,
    l1_restore: Recent,
    l2_restore: Recent,
}

impl PrefixCache {
    /// Opens the cache. A directory that cannot be used is no failure.
    pub fn open(config: PrefixConfig, blank: Blank) -> Self {
        let turns = config.remember_turns.then(TurnMemory::default);
        let memory = Memory::new(config.block.max(1), config.max_bytes, config.max_entries).into();
        let (counts, now) = (Mutex::default(), AtomicU64::new(0));
        let cache = PrefixCache { config, blank, memory, disk: OnceLock::new(), turns, counts, now };
        if !cache.config.disk_later {
            cache.open_disk(cache.config.namespace, Arc::new(|| true));
        }
        cache
    }

    /// Opens the configured directory for the segments of `identity`, which decides what a state on disk means beside its
    /// tokens. Nothing is read from disk or written to it before, and nothing is written while `valid` says that the model is
    /// no longer the one of that identity. Only the first call counts.
    pub fn open_disk(&self, identity: Hash, valid: Arc<dyn Fn() -> bool + Send + Sync>) {
        let Some(base) = &self.config.directory else { return };
        let mut opened = false;
        self.disk.get_or_init(|| {
            opened = true;
            let block = self.config.block.max(1);
            let directory =
                Arc::new(Directory::open(base, identity, block, self.config.disk_budget).valid_while(valid));
            let writable = directory.stats().writable;
            let writer =
                writable.then(|| SegmentWriter::start(Arc::clone(&directory), self.config.saving_bytes()));
            let writer = writer.and_then(|started| {
                started
                    .inspect_err(|error| warn!(%error, "the thread that saves prefixes cannot be started"))
                    .ok()
            });
            Disk { directory, writer }
        });
        if opened && let (Some(turns), Some(directory)) = (&self.turns, self.directory()) {
            turns.keep_in(directory.home.clone());
        }
    }

    fn directory(&self) -> Option<&Directory> {
        self.disk.get().map(|disk| disk.directory.as_ref())
    }

    fn writer(&self) -> Option<&SegmentWriter> {
        self.disk.get()?.writer.as_ref()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // The lock is never held across code that can panic halfway through a change.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The settings that the cache was opened with.
    pub fn config(&self) -> &PrefixConfig {
        &self.config
    }

    /// The name of an answer to a request with this salt: the digest of the text before it, and that of what it says.
    pub fn turn_key(&self, salt: Option<&str>, text: &Hash, digest: &Hash) -> TurnKey {
        turn_key(&self.root(salt), text, digest)
    }

    /// Exact tokens of answers, if they are remembered.
    pub fn turns(&self) -> Option<&TurnMemory> {
        self.turns.as_ref()
    }

    /// Where the hashes of a prompt with this salt begin.
    pub fn root(&self, salt: Option<&str>) -> Hash {
        root(&self.config.namespace, salt)
    }

    fn chain(&self, root: &Hash, tokens: &[u32]) -> Chain {
        Chain::new(root, tokens, self.config.block)
    }

    /// The longest beginning of a prompt that is known. At least the last token is left to compute, unless the logits
    /// after it are known as well.
    pub fn lookup(&self, root: &Hash, prompt: &[u32]) -> Option<Restored> {
        let now = self.now.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let chain = self.chain(root, prompt);
        let in_memory = self.memory().longest(&chain, prompt);
        let mut looked = started.elapsed();
        let mut restored = None;
        while let Some(directory) = self.directory() {
            let started = Instant::now();
            let on_disk = directory.longest(&chain, prompt);
            looked += started.elapsed();
            let enough = in_memory.map_or(0, |(_, end)| end + WORTH_READING);
            let Some((key, end)) = on_disk.filter(|&(_, end)| end >= enough.max(1)) else { break };
            // One that cannot be brought back is forgotten, and the next best is tried.
            restored = self.load(directory, &chain, root, key, end, now);
            if restored.is_some() {
                break;
            }
        }
        let restored = restored.or_else(|| self.share(in_memory?, now));
        self.count(prompt.len(), restored.as_ref(), looked);
        restored
    }

    /// Whether [`lookup`](Self::lookup) would read from disk.
    pub fn reads_disk(&self, root: &Hash, prompt: &[u32]) -> bool {
        let chain = self.chain(root, prompt);
        self.worth_reading(&chain, prompt).is_some()
    }

    /// Brings into memory what a lookup would read from disk, so that it need not.
    pub fn preload(&self, root: &Hash, prompt: &[u32]) {
        let (now, chain) = (self.now.load(Ordering::Relaxed), self.chain(root, prompt));
        while let (Some(directory), Some((key, end))) = (self.directory(), self.worth_reading(&chain, prompt))
        {
            if self.load(directory, &chain, root, key, end, now).is_some() {
                return;
            }
        }
    }

    /// The segment that reaches enough further than what is in memory.
    fn worth_reading(&self, chain: &Chain, prompt: &[u32]) -> Option<(Hash, usize)> {
        let (key, end) = self.directory()?.longest(chain, prompt)?;
        let enough = self.memory().longest(chain, prompt).map_or(0, |(_, end)| end + WORTH_READING);
        (end >= enough.max(1)).then_some((key, end))
    }

    fn share(&self, (key, end): (Hash, usize), now: u64) -> Option<Restored> {
        let started = Instant::now();
        let stored = {
            let mut memory = self.memory();
            memory.hit(&key, now);
            Arc::clone(&memory.get(&key)?.image)
        };
        let image = stored.cut(end)?;
        self.counts().l1_restore.push(started.elapsed());
        Some(Restored { image, level: Level::L1, key })
    }

    fn load(
        &self,
        directory: &Directory,
        chain: &Chain,
        root: &Hash,
        key: Hash,
        end: usize,
        now: u64,
    ) -> Option<Restored> {
        let started = Instant::now();
        let (image, head) = directory.load(&key, &self.blank, now)?;
        self.counts().l2_restore.push(started.elapsed());
        let Some(cut) = image.cut(end) else {
            // It would be found again, and again in vain.
            directory.forget(&key);
            return None;
        };
        let kind = match (head.warmed, head.anchor) {
            (true, _) => Kind::Warmed,
            (_, true) => Kind::System,
            _ => Kind::PromptEnd,
        };
        let tokens: Arc<[u32]> = head.tokens.as_slice().into();
        let stored = Stored { key, root: *root, tokens, image: Arc::new(image), kind, turn: None };
        let chain = if end == stored.tokens.len() { chain } else { &self.chain(root, &stored.tokens) };
        let gone = self.memory().insert(stored, chain, now);
        self.displaced(gone, now);
        Some(Restored { image: cut, level: Level::L2, key })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, prompt: usize, restored: Option<&Restored>, looked: Duration) {
        let mut counts = self.counts();
        counts.lookup.push(looked);
        let Some(restored) = restored else {
            counts.misses += 1;
            drop(counts);
            if let Some(writer) = self.writer() {
                writer.look_around();
            }
            return;
        };
        let position = restored.image.position();
        counts.tokens_saved += position as u64;
        match restored.level {
            Level::L1 => counts.l1_hits += 1,
            Level::L2 => counts.l2_hits += 1,
        }
        if prompt - position < self.config.block { counts.hits += 1 } else { counts.partial_hits += 1 }
    }

    /// Keeps a snapshot in memory; returns its key.
    pub fn insert(&self, snapshot: Snapshot) -> Hash {
        self.insert_of(snapshot, None)
    }

    /// A request of a conversation comes: what is kept of the one before is less worth from now on.
    pub fn turn(&self, session: Hash) -> SessionTurn {
        self.memory().sessions.turn(session)
    }

    /// Takes in a snapshot that was taken of a request.
    pub fn insert_of(&self, snapshot: Snapshot, turn: Option<SessionTurn>) -> Hash {
        let now = self.now.load(Ordering::Relaxed);
        let Snapshot { root, tokens, image, kind } = snapshot;
        let own = tokens.get(..image.position()).unwrap_or_default();
        let chain = self.chain(&root, own);
        let key = chain.key(own);
        let stored = Stored { key, root, tokens, image: Arc::new(image), kind, turn };
        let gone = self.memory().insert(stored, &chain, now);
        self.displaced(gone, now);
        key
    }

    /// What was pushed out of memory goes to disk.
    fn displaced(&self, gone: Vec<Stored>, now: u64) {
        for stored in gone.into_iter().filter(|stored| stored.kind.outlives_memory()) {
            self.enqueue(stored, now);
        }
    }

    fn enqueue(&self, stored: Stored, now: u64) {
        if let (Some(writer), Some(directory)) = (self.writer(), self.directory())
            && !directory.contains(&stored.key)
        {
            writer.save(stored, now);
        }
    }

    /// Has a snapshot in memory saved in the background, unless it is on disk.
    pub fn save(&self, key: &Hash) {
        let now = self.now.load(Ordering::Relaxed);
        let stored = self.memory().get(key).cloned();
        if let Some(stored) = stored {
            self.enqueue(stored, now);
        }
    }

    /// Pins a prefix that is in memory and saves it, waiting for at most `at_most`.
    pub fn warm(&self, key: &Hash, at_most: Duration) -> Option<WarmedPrefix> {
        if !self.memory().warm(key) {
            return self.warmed().into_iter().find(|warmed| warmed.key == hex(key));
        }
        let known = self.directory().is_some_and(|d| d.warmed().iter().any(|head| head.key == *key));
        if let (Some(writer), false) = (self.writer(), known) {
            let now = self.now.load(Ordering::Relaxed);
            let stored = self.memory().get(key).cloned();
            if let Some(stored) = stored {
                writer.save(stored, now);
            }
            writer.wait_for(key, at_most);
        }
        self.warmed().into_iter().find(|warmed| warmed.key == hex(key))
    }

    /// The prefixes that were asked for and are still there.
    pub fn warmed(&self) -> Vec<WarmedPrefix> {
        let mut all: Vec<WarmedPrefix> = Vec::new();
        for stored in self.memory().all().into_iter().filter(|s| s.kind == Kind::Warmed) {
            let bytes = stored.image.exported_bytes() as u64;
            let tokens = stored.tokens().len();
            let (key, root) = (hex(&stored.key), stored.root);
            all.push(WarmedPrefix { key, root, tokens, bytes, levels: vec![Level::L1] });
        }
        for head in self.directory().into_iter().flat_map(|directory| directory.warmed()) {
            let key = hex(&head.key);
            match all.iter_mut().find(|warmed| warmed.key == key) {
                Some(warmed) => {
                    warmed.levels.push(Level::L2);
                    warmed.bytes = warmed.bytes.max(head.file_len());
                }
                None => all.push(WarmedPrefix {
                    key,
                    root: head.root,
                    tokens: head.tokens.len(),
                    bytes: head.file_len(),
                    levels: vec![Level::L2],
                }),
            }
        }
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }

    /// Whether exactly this prefix is known at any level.
    pub fn contains(&self, key: &Hash) -> bool {
        self.memory().get(key).is_some() || self.directory().is_some_and(|d| d.contains(key))
    }

    /// The segment file of a snapshot that is on disk.
    pub fn file(&self, key: &Hash) -> Option<PathBuf> {
        self.directory().filter(|d| d.contains(key)).map(|d| d.file(key))
    }

    /// The key of a prefix.
    pub fn key(&self, root: &Hash, tokens: &[u32]) -> Hash {
        self.chain(root, tokens).key(tokens)
    }

    /// What it did and holds.
    pub fn stats(&self) -> PrefixStats {
        let l1 = self.memory().stats();
        let l2 = self.directory().map(|directory| {
            let mut stats = directory.stats();
            if let Some(writer) = self.writer() {
                (stats.pending, stats.dropped) = writer.pending();
            }
            stats
        });
        let counts = self.counts();
        PrefixStats {
            lookups: counts.hits + counts.partial_hits + counts.misses,
            hits: counts.hits,
            partial_hits: counts.partial_hits,
            misses: counts.misses,
            l1_hits: counts.l1_hits,
            l2_hits: counts.l2_hits,
            tokens_saved: counts.tokens_saved,
            lookup: counts.lookup.summary(),
            l1_restore: counts.l1_restore.summary(),
            l2_restore: counts.l2_restore.summary(),
            l1,
            l2,
            remembered_turns: self.turns.as_ref().map(TurnMemory::len),
        }
    }

    /// Saves what is worth it, for at most the configured time, and ends the thread that saves.
    pub fn close(&self) {
        let Some(writer) = self.writer() else { return };
        let now = self.now.load(Ordering::Relaxed);
        let all = self.memory().all();
        let continued = |of: &Stored| {
            let longer = all.iter().filter(|o| o.root == of.root && o.tokens().len() > of.tokens().len());
            longer.into_iter().any(|o| o.tokens().starts_with(of.tokens()))
        };
        let mut left: Vec<_> = all
            .iter()
            .filter(|s| s.kind.anchor() || (s.kind.outlives_memory() && !continued(s)))
            .cloned()
            .collect();
        left.sort_by_key(|stored| std::cmp::Reverse((stored.kind, stored.tokens().len())));
        let deadline = Instant::now() + self.config.close_timeout;
        for stored in left {
            // The queue is short; waiting for each keeps it from giving any up.
            let key = stored.key;
            self.enqueue(stored, now);
            writer.wait_for(&key, deadline.saturating_duration_since(Instant::now()));
        }
        writer.close(deadline.saturating_duration_since(Instant::now()));
    }

    /// Forgets everything in memory, as a restart would; for measurements.
    pub fn clear_memory(&self) {
        let mut memory = self.memory();
        for stored in memory.all() {
            memory.remove(&stored.key);
        }
    }

    /// Waits until nothing is left to save, for at most this long.
    pub fn wait_saved(&self, at_most: Duration) {
        let deadline = Instant::now() + at_most;
        while self.writer().is_some_and(|w| w.pending().0 > 0) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
