//! The exact tokens of answers, for when a client sends an answer back as a message.
//!
//! A message that was parsed, rendered and tokenised again need not give the tokens that the model chose, and with other
//! tokens neither its state nor its words are those of the answer. What was said is therefore looked up by the text before
//! it and by the message, and the tokens themselves are put in the message's place.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::debug;

use crate::chain::Hash;

/// Names an answer: what came before it and what it said.
pub type TurnKey = Hash;

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
    log: Option<PathBuf>,
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

impl TurnMemory {
    /// With a log, which is read first. Without one, or where it cannot be read, nothing is known yet.
    pub fn open(log: Option<PathBuf>) -> Self {
        let memory = TurnMemory { inner: Mutex::default(), log };
        if let Some(path) = &memory.log
            && let Ok(bytes) = fs::read(path)
        {
            memory.load(&bytes);
            if bytes.len() as u64 > MOST_LOG
                && let Err(error) = memory.rewrite(path)
            {
                debug!(%error, "the log of answers cannot be shortened");
            }
        }
        memory
    }

    fn load(&self, bytes: &[u8]) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Keeps the half that was remembered last.
    fn rewrite(&self, path: &Path) -> io::Result<()> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let temporary = path.with_extension("new");
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        for key in inner.order.iter().skip(inner.order.len() / 2) {
            if let Some(tokens) = inner.turns.get(key) {
                file.write_all(&record(key, tokens))?;
            }
        }
        file.sync_all()?;
        fs::rename(&temporary, path)
    }

    /// The tokens of an answer.
    pub fn recall(&self, key: &TurnKey) -> Option<Arc<[u32]>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).turns.get(key).cloned()
    }

    /// Remembers an answer. A log that cannot be written costs the memory of a restart, nothing else.
    pub fn remember(&self, key: TurnKey, tokens: &[u32]) {
        let new = self.inner.lock().unwrap_or_else(PoisonError::into_inner).insert(key, tokens.into());
        if let Some(path) = self.log.as_ref().filter(|_| new) {
            let append = || -> io::Result<()> {
                let mut file: File = OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
                // One write: records of several servers do not mix.
                file.write_all(&record(&key, tokens))
            };
            if let Err(error) = append() {
                debug!(%error, "an answer's tokens cannot be logged");
            }
        }
    }

    /// Answers remembered.
    pub fn len(&self) -> usize {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).turns.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_outlive_the_process_and_torn_records() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("turns");
        let memory = TurnMemory::open(Some(log.clone()));
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
        let again = TurnMemory::open(Some(log));
        let known: Vec<_> = (0..5u8).map(|i| again.recall(&[i; 32]).is_some()).collect();
        assert_eq!(known, [true, false, true, true, false]);
        assert_eq!(again.recall(&[3; 32]).unwrap().as_ref(), [3, 7]);
    }
}
