//! The store as one caller sees it.

use std::cell::RefCell;
use std::sync::Arc;

use mach_api::responses::{Keep, Past, Record};
use mach_api::{ApiError, ErrorKind, memory};

use super::{Kept, Store};
use crate::auth::Caller;
use crate::chat_model::unix_time;
use crate::job::Job;

fn failed(reason: String) -> ApiError {
    tracing::warn!(reason, "kept responses cannot be read");
    ApiError::new(ErrorKind::Internal, "kept responses cannot be read")
}

/// An error of the database's, or one that a request meets.
struct Failed(ApiError);

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self(failed(reason))
    }
}

/// Reads what one caller has kept, in memory that is charged to a piece of work.
pub(crate) struct Owned<'a> {
    store: &'a Store,
    caller: Caller,
    job: RefCell<&'a mut Job>,
    /// Bytes charged, the work's own included.
    charged: RefCell<usize>,
}

impl<'a> Owned<'a> {
    /// For work that takes `bytes` by itself.
    pub(crate) fn new(store: &'a Store, caller: Caller, job: &'a mut Job, bytes: usize) -> Self {
        Self { store, caller, job: RefCell::new(job), charged: RefCell::new(bytes) }
    }

    fn get(&self, id: &str) -> Result<Option<Arc<Kept>>, ApiError> {
        let Some(kept) = self.store.kept() else { return Ok(None) };
        let room = |json: &[u8]| {
            let mut charged = self.charged.borrow_mut();
            *charged = charged.saturating_add(memory::of_json(json));
            self.job.borrow_mut().needs(*charged).map_err(Failed)
        };
        let found = kept.get(id, room).map_err(|Failed(error)| error)?;
        Ok(found.filter(|kept| kept.owner == self.caller))
    }

    /// Forgets a response; whether there was one.
    pub(crate) fn forget(&self, id: &str) -> Result<bool, ApiError> {
        let there = self.get(id)?.is_some();
        if let (true, Some(kept)) = (there, self.store.kept()) {
            kept.forget(id);
        }
        Ok(there)
    }
}

impl Past for Owned<'_> {
    fn response(&self, id: &str) -> Result<Option<Record>, ApiError> {
        Ok(self.get(id)?.map(|kept| kept.record.clone()))
    }

    fn response_of_item(&self, id: &str) -> Result<Option<Record>, ApiError> {
        let Some(kept) = self.store.kept() else { return Ok(None) };
        match kept.of_item(id).map_err(failed)? {
            Some(response) => self.response(&response),
            None => Ok(None),
        }
    }
}

/// Keeps responses for one caller.
#[derive(Debug)]
pub(crate) struct Keeper {
    pub(crate) store: Arc<Store>,
    pub(crate) caller: Caller,
}

impl Keep for Keeper {
    fn keep(&self, record: Record) {
        if let Some(kept) = self.store.kept() {
            kept.keep(Kept { owner: self.caller, record, at: unix_time() });
        }
    }
}
