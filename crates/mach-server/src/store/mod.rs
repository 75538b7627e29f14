//! Responses that clients may go on from or ask for again: in an embedded database of bounded size, written behind the answers.

mod database;
mod folder;
mod owned;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use mach_api::responses::{Record, Seal};
use tracing::warn;

use crate::auth::Caller;
use database::Database;
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
    pub fn key_alone(directory: Option<&std::path::Path>) -> Self {
        Self { seal: Arc::new(seal(directory)), ..Self::none() }
    }

    /// Opens the store. A directory that cannot be used, or whose database another server has open, is told of in the log, and
    /// responses are kept in memory.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let seal = Arc::new(seal(config.directory.as_deref()));
        let on_disk = config.directory.as_ref().and_then(|directory| {
            let path = directory.join(folder::DATABASE);
            let opened = folder::file(directory, folder::DATABASE)
                .and_then(|file| Database::on_disk(file, config.bytes))
                .map_err(
                    |reason| warn!(path = %path.display(), reason, "responses are kept in memory alone"),
                );
            opened.ok().map(|database| (database, path))
        });
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
    pub fn place(&self) -> Option<&std::path::Path> {
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

fn seal(directory: Option<&std::path::Path>) -> Seal {
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
