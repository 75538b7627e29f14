//! The exact tokens of answers, for when a client sends an answer back as a message.
//!
//! A message that was parsed, rendered and tokenised again need not give the tokens that the model chose, and with other
//! tokens neither its state nor its words are those of the answer. What was said is therefore looked up by the text before
//! it and by the message, and the tokens themselves are put in the message's place.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::fs::{FlockOperation, flock};
use tracing::{debug, warn};

use crate::chain::Hash;
use crate::folder::{Access, Folder, Home};

/// Names an answer: whose it is, what came before it and what it said.
pub type TurnKey = Hash;

/// The name of an answer. `root` is that of its salt ([`PrefixCache::root`](crate::PrefixCache::root)): an answer to a request
/// with one salt has no name under another.
pub(crate) fn turn_key(root: &Hash, text: &Hash, digest: &Hash) -> TurnKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"turn");
    for part in [root, text, digest] {
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

/// The log's name in the directory of its namespace.
const LOG: &str = "turns";
const NEW_LOG: &str = "turns.new";

/// Tokens remembered in all; older answers are forgotten first.
const MOST_TOKENS: usize = 4 << 20;
/// Bytes of the log at which it is written anew.
const MOST_LOG: u64 = 64 << 20;
const MARK: [u8; 4] = *b"TURN";

#[derive(Debug, Default)]
struct Inner {
    turns: HashMap<TurnKey, Arc<[u32]>>,
    order: VecDeque<TurnKey>,
    tokens: usize,
}

/// Remembered answers, kept in a log if there is a place for it. A record that is torn or damaged is skipped.
#[derive(Debug, Default)]
pub struct TurnMemory {
    inner: Mutex<Inner>,
    log: OnceLock<Home>,
}

impl Inner {
    fn insert(&mut self, key: TurnKey, tokens: Arc<[u32]>) -> bool {
        if self.turns.get(&key) == Some(&tokens) {
            return false;
        }
        self.tokens += tokens.len();
        match self.turns.insert(key, tokens) {
            Some(old) => self.tokens -= old.len(),
            None => self.order.push_back(key),
        }
        while self.tokens > MOST_TOKENS && self.order.len() > 1 {
            let oldest = self.order.pop_front().and_then(|key| self.turns.remove(&key));
            self.tokens -= oldest.map_or(0, |tokens| tokens.len());
        }
        true
    }
}

fn record(key: &TurnKey, tokens: &[u32]) -> Vec<u8> {
    let mut payload = key.to_vec();
    payload.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    let mut out = MARK.to_vec();
    out.extend((payload.len() as u32).to_le_bytes());
    out.extend(crc32c::crc32c(&payload).to_le_bytes());
    out.extend(payload);
    out
}

/// The record at the start of `bytes`, and its length.
fn parse(bytes: &[u8]) -> Option<(TurnKey, Arc<[u32]>, usize)> {
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    if bytes.get(..4)? != MARK {
        return None;
    }
    let len = number(4)? as usize;
    let payload = bytes.get(12..12usize.checked_add(len)?)?;
    if crc32c::crc32c(payload) != number(8)? || len < 32 || !len.is_multiple_of(4) {
        return None;
    }
    let (key, tokens) = payload.split_at(32);
    let word = |b: &[u8]| b.try_into().map(u32::from_le_bytes).unwrap_or_default();
    Some((key.try_into().ok()?, tokens.chunks_exact(4).map(word).collect(), 12 + len))
}

/// The log, locked: nobody appends to it or replaces it meanwhile. `None` if something else has its name.
fn locked(folder: &Folder) -> io::Result<Option<(File, Vec<u8>)>> {
    loop {
        let mut file = folder.file(LOG, Access::Append)?;
        flock(&file, FlockOperation::LockExclusive)?;
        // Replaced by a shorter one while this waited.
        if file.metadata()?.nlink() == 0 {
            continue;
        }
        let mut start = Vec::new();
        Read::by_ref(&mut file).take(MARK.len() as u64).read_to_end(&mut start)?;
        return Ok((start.is_empty() || start == MARK).then_some((file, start)));
    }
}

impl TurnMemory {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives it a log, whose answers it takes in, and which gets those that are remembered already. Where the log cannot be
    /// read, or is no log, there is none.
    pub(crate) fn keep_in(&self, home: Home) {
        let taken_in = || -> io::Result<bool> {
            let folder = home.open()?;
            let Some((mut file, mut bytes)) = locked(&folder)? else { return Ok(false) };
            file.read_to_end(&mut bytes)?;
            let early: Vec<(TurnKey, Arc<[u32]>)> = {
                let inner = self.lock();
                inner.turns.iter().map(|(key, tokens)| (*key, Arc::clone(tokens))).collect()
            };
            self.load(&bytes);
            for (key, tokens) in early {
                self.lock().insert(key, Arc::clone(&tokens));
                file.write_all(&record(&key, &tokens))?;
            }
            if bytes.len() as u64 > MOST_LOG {
                self.rewrite(&folder)?;
            }
            Ok(true)
        };
        match taken_in() {
            Ok(true) => drop(self.log.set(home)),
            Ok(false) => warn!(directory = %home.path.display(), "the log of answers is none of mach's"),
            Err(error) => debug!(%error, "the log of answers cannot be used"),
        }
    }

    fn load(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        let mut at = 0;
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            match parse(rest) {
                Some((key, tokens, len)) => {
                    inner.insert(key, tokens);
                    at += len;
                }
                // Torn by a crash: the next record has a mark of its own.
                None => {
                    at += rest
                        .get(1..)
                        .and_then(|r| r.windows(4).position(|w| w == MARK))
                        .map_or(rest.len(), |n| n + 1);
                }
            }
        }
    }

    /// Keeps the half that was remembered last. The log is locked.
    fn rewrite(&self, folder: &Folder) -> io::Result<()> {
        let inner = self.lock();
        // Left by a process that ended here, and nobody else's: the log is locked.
        folder.remove(NEW_LOG)?;
        let mut file = folder.file(NEW_LOG, Access::Append)?;
        for key in inner.order.iter().skip(inner.order.len() / 2) {
            if let Some(tokens) = inner.turns.get(key) {
                file.write_all(&record(key, tokens))?;
            }
        }
        file.sync_all()?;
        folder.rename(NEW_LOG, folder, LOG)
    }

    /// The tokens of an answer.
    pub fn recall(&self, key: &TurnKey) -> Option<Arc<[u32]>> {
        self.lock().turns.get(key).cloned()
    }

    /// Remembers an answer. A log that cannot be written costs the memory of a restart, nothing else.
    pub fn remember(&self, key: TurnKey, tokens: &[u32]) {
        let new = self.lock().insert(key, tokens.into());
        if let Some(home) = self.log.get().filter(|_| new) {
            let append = || -> io::Result<()> {
                // One write under the lock: records of several servers do not mix.
                match locked(&home.open()?)? {
                    Some((mut file, _)) => file.write_all(&record(&key, tokens)),
                    None => Err(io::Error::other("something else has the log's name")),
                }
            };
            if let Err(error) = append() {
                debug!(%error, "an answer's tokens cannot be logged");
            }
        }
    }

    /// Answers remembered.
    pub fn len(&self) -> usize {
        self.lock().turns.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::folder::this_user;

    fn open(dir: &Path) -> TurnMemory {
        let memory = TurnMemory::default();
        memory.keep_in(Home { path: dir.to_owned(), owner: this_user() });
        memory
    }

    fn known(memory: &TurnMemory) -> Vec<bool> {
        (0..5u8).map(|i| memory.recall(&[i; 32]).is_some_and(|t| *t == [u32::from(i), 7])).collect()
    }

    #[test]
    fn answers_outlive_the_process_and_torn_records() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join(LOG);
        let memory = open(dir.path());
        for i in 0..5u8 {
            memory.remember([i; 32], &[u32::from(i), 7]);
        }
        memory.remember([2; 32], &[2, 7]);
        let bytes = fs::read(&log).unwrap();
        assert_eq!(bytes.len() % 5, 0, "nothing is logged twice");
        let one = bytes.len() / 5;
        // The second record is damaged, the last one torn.
        let mut bad = bytes[..bytes.len() - 3].to_vec();
        bad[one + 20] ^= 1;
        fs::write(&log, bad).unwrap();
        let again = open(dir.path());
        assert_eq!(known(&again), [true, false, true, true, false]);
        assert_eq!(again.recall(&[3; 32]).unwrap().as_ref(), [3, 7]);
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join(LOG);
        let memory = open(dir.path());
        (0..5u8).for_each(|i| memory.remember([i; 32], &[u32::from(i), 7]));
        let good = fs::read(&log).unwrap();
        let one = good.len() / 5;
        for bit in 0..8 * one {
            let mut bad = good.clone();
            bad[2 * one + bit / 8] ^= 1 << (bit % 8);
            fs::write(&log, bad).unwrap();
            let again = open(dir.path());
            assert_eq!(known(&again), [true, true, false, true, true], "bit {bit}");
            assert_eq!(again.len(), 4, "bit {bit}: nothing else is taken for an answer");
        }
    }

    #[test]
    fn what_is_no_log_is_left_alone() {
        let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (log, target) = (dir.path().join(LOG), elsewhere.path().join("target"));
        fs::write(&target, record(&[1; 32], &[1, 7])).unwrap();
        let before = fs::read(&target).unwrap();
        std::os::unix::fs::symlink(&target, &log).unwrap();
        let memory = open(dir.path());
        memory.remember([2; 32], &[2, 7]);
        assert_eq!((memory.len(), fs::read(&target).unwrap()), (1, before), "a link is not followed");
        fs::remove_file(&log).unwrap();
        fs::write(&log, "a play in five turns").unwrap();
        let memory = open(dir.path());
        memory.remember([2; 32], &[2, 7]);
        assert_eq!(fs::read(&log).unwrap(), b"a play in five turns");
    }

    #[test]
    fn a_log_that_comes_late_has_what_was_remembered_before() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).remember([0; 32], &[0, 7]);
        let memory = TurnMemory::default();
        memory.remember([1; 32], &[1, 7]);
        memory.keep_in(Home { path: dir.path().to_owned(), owner: this_user() });
        memory.remember([2; 32], &[2, 7]);
        assert_eq!(known(&memory), [true, true, true, false, false]);
        assert_eq!(known(&open(dir.path())), [true, true, true, false, false]);
    }

    #[test]
    fn two_servers_share_a_log_that_is_shortened() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (open(dir.path()), open(dir.path()));
        (0..4u8).for_each(|i| first.remember([i; 32], &[u32::from(i), 7]));
        second.remember([4; 32], &[4, 7]);
        assert_eq!(known(&open(dir.path())), [true; 5]);
        let folder = Home { path: dir.path().to_owned(), owner: this_user() }.open().unwrap();
        let lock = locked(&folder).unwrap().unwrap();
        first.rewrite(&folder).unwrap();
        drop(lock);
        second.remember([9; 32], &[9, 7]);
        let again = open(dir.path());
        assert_eq!(known(&again), [false, false, true, true, false], "the later half of the first's");
        assert!(again.recall(&[9; 32]).is_some(), "appended to the new file");
    }

    #[test]
    fn a_salt_has_names_of_its_own() {
        use crate::chain::root;
        let (text, digest) = ([1; 32], [2; 32]);
        let salts = [None, Some(""), Some("a"), Some("b")];
        let keys: Vec<_> =
            salts.iter().map(|salt| turn_key(&root(&[0; 32], *salt), &text, &digest)).collect();
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[i + 1..].contains(key), "salt {:?}", salts[i]);
            assert_ne!(*key, turn_key(&root(&[0; 32], salts[i]), &digest, &text));
            assert_ne!(*key, turn_key(&root(&[1; 32], salts[i]), &text, &digest), "another model");
        }
    }
}
