//! The tables.

use std::fmt;
use std::fs::File;

use mach_api::responses::Record;
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{CACHE, Kept};
use crate::auth::Caller;

/// Responses by id, as JSON.
const RESPONSES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("responses 1");
/// Ids, sizes and times, in the order in which they came.
const ORDER: TableDefinition<'_, u64, (&str, u64, u64)> = TableDefinition::new("order 1");
/// Responses that items belong to.
const ITEMS: TableDefinition<'_, &str, &str> = TableDefinition::new("items 1");

/// Responses that are older than this many seconds are forgotten, as OpenAI does.
const LONGEST: u64 = 30 * 24 * 3600;

/// A response as it lies there.
#[derive(Serialize, Deserialize)]
struct Stored {
    owner: [u8; 32],
    at: u64,
    number: u64,
    record: Record,
}

/// What is done to the tables.
pub(super) enum Change {
    /// A response comes.
    Keep(std::sync::Arc<Kept>),
    /// A response goes.
    Forget(String),
}

/// The database.
#[derive(Debug)]
pub(super) struct Database {
    /// There until the end.
    inner: Option<redb::Database>,
    /// Bytes that may be kept.
    limit: u64,
    /// Bytes that are kept, and the number of the next response. The writer's alone.
    state: std::sync::Mutex<(u64, u64)>,
}

/// Why a file cannot be used.
#[derive(Debug)]
pub(super) enum Unusable {
    /// Another server has it.
    Taken,
    /// It is no database, or one that was damaged.
    Damaged(String),
    /// It cannot be read or written.
    Other(String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken => f.write_str("another server has it open"),
            Self::Damaged(reason) | Self::Other(reason) => f.write_str(reason),
        }
    }
}

/// Does something that a damaged file may end in the middle.
pub(super) fn unbroken<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    done.unwrap_or_else(|_| Err("the database is damaged".to_owned()))
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Drop for Database {
    fn drop(&mut self) {
        let inner = self.inner.take();
        // One that gave up in the middle does so again when it is closed; what was committed is on the drive.
        let _ = unbroken(|| {
            drop(inner);
            Ok(())
        });
    }
}

impl Database {
    pub(super) fn on_disk(file: File, limit: u64) -> Result<Self, Unusable> {
        let file = FileBackend::new(file).map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => Unusable::Taken,
            error => Unusable::Other(told(error)),
        })?;
        // A file that was damaged can make the database give up in the middle.
        let open = || match redb::Database::builder().set_cache_size(CACHE).create_with_backend(file) {
            Err(DatabaseError::DatabaseAlreadyOpen) => Ok(Err(Unusable::Taken)),
            // A drive that is full or fails says nothing of the file.
            Err(DatabaseError::Storage(StorageError::Io(error))) => Ok(Err(Unusable::Other(told(error)))),
            opened => {
                let mut inner = opened.map_err(told)?;
                // Checksums of all that is kept: later on nobody looks at them.
                inner.check_integrity().map_err(told)?;
                Self::of(inner, limit).map(Ok)
            }
        };
        unbroken(open).map_err(Unusable::Damaged)?
    }

    pub(super) fn in_memory(limit: u64) -> Result<Self, String> {
        let builder =
            redb::Database::builder().set_cache_size(CACHE).create_with_backend(InMemoryBackend::new());
        Self::of(builder.map_err(told)?, limit)
    }

    fn of(inner: redb::Database, limit: u64) -> Result<Self, String> {
        let txn = inner.begin_write().map_err(told)?;
        let state = {
            txn.open_table(RESPONSES).map_err(told)?;
            txn.open_table(ITEMS).map_err(told)?;
            let order = txn.open_table(ORDER).map_err(told)?;
            let (mut bytes, mut next) = (0, 0);
            for entry in order.iter().map_err(told)? {
                let (number, value) = entry.map_err(told)?;
                bytes = value.value().1.saturating_add(bytes);
                next = number.value().saturating_add(1);
            }
            (bytes, next)
        };
        txn.commit().map_err(told)?;
        Ok(Self { inner: Some(inner), limit, state: state.into() })
    }

    fn inner(&self) -> Result<&redb::Database, String> {
        self.inner.as_ref().ok_or_else(|| "the database is closed".to_owned())
    }

    /// Does all of it, or nothing.
    pub(super) fn apply(&self, changes: &[Change], now: u64) -> Result<(), String> {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut next = *state;
        let txn = self.inner()?.begin_write().map_err(told)?;
        for change in changes {
            match change {
                Change::Keep(kept) => put(&txn, kept, &mut next)?,
                Change::Forget(id) => remove(&txn, id, &mut next)?,
            }
        }
        self.make_room(&txn, &mut next, now)?;
        txn.commit().map_err(told)?;
        *state = next;
        Ok(())
    }

    /// The oldest go, until what is left is not too much.
    fn make_room(&self, txn: &WriteTransaction, state: &mut (u64, u64), now: u64) -> Result<(), String> {
        loop {
            let oldest = {
                let order = txn.open_table(ORDER).map_err(told)?;
                let first = order.first().map_err(told)?;
                first.map(|(number, value)| (number.value(), value.value().0.to_owned(), value.value().2))
            };
            let Some((number, id, at)) = oldest else { return Ok(()) };
            if state.0 <= self.limit && at.saturating_add(LONGEST) >= now {
                return Ok(());
            }
            remove(txn, &id, state)?;
            // Its place goes even where what it names cannot be read.
            let left =
                txn.open_table(ORDER).map_err(told)?.remove(number).map_err(told)?.map(|left| left.value().1);
            state.0 = state.0.saturating_sub(left.unwrap_or(0));
        }
    }

    /// A response, and whose it is. `room` is asked before so many bytes of JSON are read.
    pub(super) fn get<E: From<String>>(
        &self,
        id: &str,
        room: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<Option<Kept>, E> {
        let read = || {
            let txn = self.inner()?.begin_read().map_err(told)?;
            let found = txn.open_table(RESPONSES).map_err(told)?.get(id).map_err(told)?;
            Ok(found.map(|found| found.value().to_vec()))
        };
        let Some(found) = unbroken(read)? else { return Ok(None) };
        room(&found)?;
        let Stored { owner, at, record, .. } = serde_json::from_slice(&found).map_err(told)?;
        Ok(Some(Kept { owner: Caller::from_hash(owner), record, at }))
    }

    /// The response that an item belongs to.
    pub(super) fn of_item(&self, id: &str) -> Result<Option<String>, String> {
        unbroken(|| {
            let txn = self.inner()?.begin_read().map_err(told)?;
            let found = txn.open_table(ITEMS).map_err(told)?.get(id).map_err(told)?;
            Ok(found.map(|found| found.value().to_owned()))
        })
    }
}

fn stored(txn: &WriteTransaction, id: &str) -> Result<Option<Stored>, String> {
    let responses = txn.open_table(RESPONSES).map_err(told)?;
    let found = responses.get(id).map_err(told)?;
    Ok(found.and_then(|found| serde_json::from_slice(found.value()).ok()))
}

fn put(txn: &WriteTransaction, kept: &Kept, state: &mut (u64, u64)) -> Result<(), String> {
    let id = kept.record.id();
    let stored =
        Stored { owner: kept.owner.hash(), at: kept.at, number: state.1, record: kept.record.clone() };
    let bytes = serde_json::to_vec(&stored).map_err(told)?;
    txn.open_table(RESPONSES).map_err(told)?.insert(id, bytes.as_slice()).map_err(told)?;
    txn.open_table(ORDER).map_err(told)?.insert(state.1, (id, bytes.len() as u64, kept.at)).map_err(told)?;
    let mut items = txn.open_table(ITEMS).map_err(told)?;
    for item in kept.record.item_ids() {
        // An item that comes back in a later turn is the one that it was.
        if items.get(item).map_err(told)?.is_none() {
            items.insert(item, id).map_err(told)?;
        }
    }
    *state = (state.0 + bytes.len() as u64, state.1 + 1);
    Ok(())
}

fn remove(txn: &WriteTransaction, id: &str, state: &mut (u64, u64)) -> Result<(), String> {
    let Some(stored) = stored(txn, id)? else { return Ok(()) };
    txn.open_table(RESPONSES).map_err(told)?.remove(id).map_err(told)?;
    let mut order = txn.open_table(ORDER).map_err(told)?;
    if let Some(entry) = order.remove(stored.number).map_err(told)? {
        state.0 = state.0.saturating_sub(entry.value().1);
    }
    let mut items = txn.open_table(ITEMS).map_err(told)?;
    for item in stored.record.item_ids() {
        let own = items.get(item).map_err(told)?.is_some_and(|owner| owner.value() == id);
        if own {
            items.remove(item).map_err(told)?;
        }
    }
    Ok(())
}
