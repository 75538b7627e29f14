//! Responses that clients may go on from or ask for again: in an embedded database of bounded size, written behind the answers.

mod database;
mod folder;
mod owned;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mach_api::responses::{Record, Seal};
use tracing::warn;

use crate::auth::Caller;
use database::{Database, Unusable};
pub(crate) use owned::{Keeper, Owned};
use writer::Writer;

/// Bytes of responses that wait to be written; one that finds no room is not kept.
const WAITING: usize = 8 << 20;
/// Bytes that the database holds in memory.
const CACHE: usize = 4 << 20;

/// Where responses are kept, and how much of them.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Directory of the database and of the key; in memory if there is none.
    pub directory: Option<PathBuf>,
    /// Bytes of responses; the oldest go first.
    pub bytes: u64,
}

impl StoreConfig {
    /// Bytes of memory that a store takes; what is kept in memory alone comes on top of it.
    pub const MEMORY: usize = WAITING + CACHE;
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}", path = path.display())]
pub struct StoreError {
    path: PathBuf,
    reason: String,
}

/// Kept responses, and the key that seals what clients carry.
#[derive(Debug)]
pub struct Store {
    pub(crate) seal: Arc<Seal>,
    /// None if nothing is kept.
    kept: Option<Writer>,
    /// Where the database is, if it is on disk.
    place: Option<PathBuf>,
}

impl Store {
    /// Keeps nothing; what is sealed cannot be read by another process.
    pub fn none() -> Self {
        Self { seal: Arc::new(Seal::fleeting()), kept: None, place: None }
    }

    /// A key from the directory, and nothing kept.
    pub fn key_alone(directory: Option<&Path>) -> Self {
        Self { seal: Arc::new(seal(directory)), ..Self::none() }
    }

    /// Opens the store. A directory that cannot be used, or whose database another server has open, is told of in the log, and
    /// responses are kept in memory.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let seal = Arc::new(seal(config.directory.as_deref()));
        let on_disk = config.directory.as_ref().and_then(|directory| on_disk(directory, config.bytes));
        let (database, place) = match on_disk {
            Some((database, path)) => (database, Some(path)),
            None => {
                let failed = |reason| StoreError { path: PathBuf::from("memory"), reason };
                (Database::in_memory(config.bytes).map_err(failed)?, None)
            }
        };
        let kept = Writer::start(database, WAITING);
        let kept = kept.map_err(|e| StoreError { path: PathBuf::from("thread"), reason: e.to_string() })?;
        Ok(Self { seal, kept: Some(kept), place })
    }

    /// Where the database is, if it is on disk.
    pub fn place(&self) -> Option<&Path> {
        self.place.as_deref()
    }

    /// The store, if there is one.
    pub(crate) fn kept(&self) -> Option<&Writer> {
        self.kept.as_ref()
    }

    /// Waits until all that was kept is written.
    pub fn flush(&self) {
        if let Some(writer) = &self.kept {
            writer.flush();
        }
    }
}

/// The database of a directory; a damaged one is set aside for a new one.
fn on_disk(directory: &Path, bytes: u64) -> Option<(Database, PathBuf)> {
    let path = directory.join(folder::DATABASE);
    let open = || {
        let file = folder::file(directory, folder::DATABASE).map_err(Unusable::Other)?;
        Database::on_disk(file, bytes)
    };
    let opened = open().or_else(|error| match error {
        Unusable::Damaged(reason) => {
            warn!(path = %path.display(), reason, "kept responses cannot be read; they are set aside");
            std::fs::rename(&path, path.with_extension("damaged"))
                .map_err(|e| Unusable::Other(e.to_string()))?;
            open()
        }
        error => Err(error),
    });
    match opened {
        Ok(database) => Some((database, path)),
        Err(reason) => {
            warn!(path = %path.display(), %reason, "responses are kept in memory alone");
            None
        }
    }
}

fn seal(directory: Option<&Path>) -> Seal {
    let Some(directory) = directory else { return Seal::fleeting() };
    match folder::key(directory) {
        Ok(key) => Seal::new(&key),
        Err(reason) => {
            warn!(directory = %directory.display(), reason, "sealed texts end with this server");
            Seal::fleeting()
        }
    }
}

/// A response, and whose it is.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) owner: Caller,
    pub(crate) record: Record,
    /// Unix seconds.
    pub(crate) at: u64,
}

#[cfg(test)]
mod tests {

    use serde_json::json;

    use super::*;

    fn kept(id: &str, size: usize) -> Kept {
        let response = json!({"id": id, "output": [{"id": format!("msg-{id}"), "text": "x".repeat(size)}]});
        let input = vec![json!({"id": format!("in-{id}")})];
        let record = Record { previous: None, input, response };
        Kept { owner: Caller::with_key(Some(b"k")), record, at: now() }
    }

    fn now() -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
    }

    fn open(directory: &Path, bytes: u64) -> Store {
        Store::open(&StoreConfig { directory: Some(directory.to_owned()), bytes }).unwrap()
    }

    fn has(store: &Store, id: &str) -> bool {
        store.kept().unwrap().get::<String>(id, |_| Ok(())).unwrap().is_some()
    }

    fn item(store: &Store, id: &str) -> Option<String> {
        store.kept().unwrap().of_item(id).unwrap()
    }

    #[test]
    fn what_was_kept_outlives_the_server_and_can_be_read_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), 1 << 20);
        for i in 0..10 {
            store.kept().unwrap().keep(kept(&format!("r{i}"), 100));
            assert!(has(&store, &format!("r{i}")));
            assert_eq!(item(&store, &format!("msg-r{i}")), Some(format!("r{i}")));
        }
        store.kept().unwrap().forget("r3");
        assert!(!has(&store, "r3"));
        store.flush();
        assert!(!has(&store, "r3") && has(&store, "r4"));
        assert_eq!((item(&store, "in-r3"), item(&store, "in-r4")), (None, Some("r4".into())));
        let sealed = store.seal.close(mach_api::responses::Kind::Reasoning, "t");
        // A second one on the same directory has its own in memory, and the same key.
        let second = open(dir.path(), 1 << 20);
        assert!(second.place().is_none() && !has(&second, "r4"));
        second.kept().unwrap().keep(kept("own", 10));
        second.flush();
        assert!(has(&second, "own"));
        drop((store, second));
        let store = open(dir.path(), 1 << 20);
        assert!(store.place().is_some() && has(&store, "r4") && !has(&store, "r3") && !has(&store, "own"));
        assert_eq!(store.seal.open(mach_api::responses::Kind::Reasoning, &sealed).as_deref(), Some("t"));
    }

    #[test]
    fn the_oldest_go_when_there_is_too_much() {
        let dir = tempfile::tempdir().unwrap();
        for round in 0..2 {
            let store = open(dir.path(), 50_000);
            for i in 0..20 {
                store.kept().unwrap().keep(kept(&format!("r{round}-{i}"), 10_000));
                store.flush();
            }
            let there = (0..20).filter(|i| has(&store, &format!("r{round}-{i}"))).collect::<Vec<_>>();
            assert_eq!(there, [16, 17, 18, 19]);
            assert_eq!(item(&store, &format!("msg-r{round}-15")), None);
            assert!(!has(&store, "r0-15"));
        }
        // What is too old goes as well.
        let store = open(dir.path(), 50_000);
        let old = Kept { at: now() - 31 * 24 * 3600, ..kept("old", 10) };
        assert!(has(&store, "r1-19"));
        for i in 16..20 {
            store.kept().unwrap().forget(&format!("r1-{i}"));
        }
        store.kept().unwrap().keep(old);
        store.flush();
        assert!(!has(&store, "old"));
    }

    #[test]
    fn a_response_that_finds_no_room_to_wait_is_not_kept() {
        let store = Store::open(&StoreConfig { directory: None, bytes: 1 << 30 }).unwrap();
        store.kept().unwrap().keep(kept("large", WAITING + 1));
        assert!(!has(&store, "large"));
        store.kept().unwrap().keep(kept("small", 1));
        store.flush();
        assert!(has(&store, "small"));
    }

    #[test]
    fn a_directory_or_file_that_cannot_be_used_leaves_the_memory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        let store = open(&dir.path().join("file"), 1 << 20);
        assert!(store.place().is_none());
        store.kept().unwrap().keep(kept("r", 1));
        assert!(has(&store, "r"));
    }

    #[test]
    fn a_damaged_database_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(folder::DATABASE);
        let fill = |store: &Store| {
            for i in 0..50 {
                store.kept().unwrap().keep(kept(&format!("r{i}"), 2000));
            }
            store.flush();
        };
        fill(&open(dir.path(), 1 << 20));
        let whole = std::fs::read(&path).unwrap();
        let mut files = vec![vec![7; 100_000], whole[..whole.len() / 2].to_vec(), Vec::new()];
        for seed in 1..20usize {
            let mut flipped = whole.clone();
            for i in 0..50 {
                let at = (seed * 7919 + i * 104_729 * seed) % flipped.len();
                flipped[at] ^= 0xff;
            }
            files.push(flipped);
        }
        for bytes in files {
            std::fs::write(&path, bytes).unwrap();
            // Whether the damage is seen at the start, later or never: nothing wrong is read, and the server goes on.
            let store = open(dir.path(), 1 << 20);
            for i in 0..50 {
                let id = format!("r{i}");
                let read =
                    std::panic::AssertUnwindSafe(|| store.kept().unwrap().get::<String>(&id, |_| Ok(())));
                if let Ok(Ok(Some(found))) = std::panic::catch_unwind(read) {
                    assert_eq!(found.record.id(), id);
                }
            }
            fill(&store);
        }
        std::fs::write(&path, &whole[..5000]).unwrap();
        let store = open(dir.path(), 1 << 20);
        assert!(store.place().is_some() && path.with_extension("damaged").exists());
        fill(&store);
        assert!(has(&store, "r1"));
    }
}
