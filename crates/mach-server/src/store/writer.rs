//! Writes behind the answers: what was kept can be read at once, and is on the drive soon.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tracing::warn;

use super::Kept;
use super::database::{Change, Database, unbroken};
use crate::chat_model::unix_time;

/// Changes that share a commit.
const TOGETHER: usize = 64;

/// What waits.
#[derive(Debug, Default)]
struct Waiting {
    /// Responses that are to come, and those that are to go.
    by_id: HashMap<String, Option<Arc<Kept>>>,
    order: VecDeque<String>,
    bytes: usize,
    writing: bool,
    ends: bool,
}

#[derive(Debug)]
struct Shared {
    database: Database,
    most: usize,
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// A database with a thread that writes to it.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().ends = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has told so.
            let _ = thread.join();
        }
    }
}

impl Writer {
    pub(super) fn start(database: Database, most: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { database, most, waiting: Mutex::default(), changed: Condvar::new() });
        let own = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("responses".into()).spawn(move || own.write())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Keeps a response, if there is room for it to wait.
    pub(super) fn keep(&self, kept: Kept) {
        let size = size(&kept);
        let mut waiting = self.shared.lock();
        if waiting.bytes + size > self.shared.most {
            warn!(
                id = kept.record.id(),
                size, "a response is not kept: the drive is too slow, or it is too large"
            );
            return;
        }
        let id = kept.record.id().to_owned();
        waiting.bytes += size;
        waiting.order.push_back(id.clone());
        waiting.by_id.insert(id, Some(Arc::new(kept)));
        self.shared.changed.notify_all();
    }

    /// Forgets a response.
    pub(super) fn forget(&self, id: &str) {
        let mut waiting = self.shared.lock();
        if let Some(Some(old)) = waiting.by_id.insert(id.to_owned(), None) {
            waiting.bytes = waiting.bytes.saturating_sub(size(&old));
        }
        waiting.order.push_back(id.to_owned());
        self.shared.changed.notify_all();
    }

    /// A response. `room` is asked before it is read.
    pub(super) fn get<E: From<String>>(
        &self,
        id: &str,
        room: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<Option<Arc<Kept>>, E> {
        if let Some(found) = self.shared.lock().by_id.get(id) {
            return Ok(found.clone());
        }
        Ok(self.shared.database.get(id, room)?.map(Arc::new))
    }

    /// The response that an item belongs to.
    pub(super) fn of_item(&self, id: &str) -> Result<Option<String>, String> {
        let waiting = self.shared.lock();
        let owner = |kept: &&Arc<Kept>| kept.record.item(id).is_some();
        let found = waiting.by_id.values().flatten().find(owner).map(|kept| kept.record.id().to_owned());
        drop(waiting);
        found.map_or_else(|| self.shared.database.of_item(id), |id| Ok(Some(id)))
    }

    /// Waits until everything is written, or could not be.
    pub(super) fn flush(&self) {
        let mut waiting = self.shared.lock();
        while !waiting.order.is_empty() || waiting.writing {
            waiting = self.shared.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) {
        loop {
            let mut waiting = self.lock();
            while waiting.order.is_empty() && !waiting.ends {
                waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            if waiting.order.is_empty() {
                return;
            }
            let count = waiting.order.len().min(TOGETHER);
            let mut ids: Vec<String> = waiting.order.drain(..count).collect();
            ids.sort_unstable();
            ids.dedup();
            // As it stands now: what was forgotten meanwhile is not written first.
            let changes: Vec<_> = ids
                .iter()
                .filter_map(|id| waiting.by_id.get(id).map(|kept| (id, kept.clone())))
                .map(|(id, kept)| kept.map_or_else(|| Change::Forget(id.clone()), Change::Keep))
                .collect();
            waiting.writing = true;
            drop(waiting);
            if let Err(reason) = unbroken(|| self.database.apply(&changes, unix_time())) {
                warn!(reason, responses = changes.len(), "responses could not be written, and are not kept");
            }
            self.done(&changes);
        }
    }

    /// What is written is read from the drive; what changed meanwhile waits for its turn.
    fn done(&self, changes: &[Change]) {
        let mut waiting = self.lock();
        for change in changes {
            match change {
                Change::Keep(kept) => {
                    let id = kept.record.id();
                    if matches!(waiting.by_id.get(id), Some(Some(now)) if Arc::ptr_eq(now, kept)) {
                        waiting.by_id.remove(id);
                        waiting.bytes = waiting.bytes.saturating_sub(size(kept));
                    }
                }
                Change::Forget(id) => {
                    if matches!(waiting.by_id.get(id), Some(None)) {
                        waiting.by_id.remove(id);
                    }
                }
            }
        }
        waiting.writing = false;
        self.changed.notify_all();
    }
}

/// Bytes of a response, about.
fn size(kept: &Kept) -> usize {
    let input: usize = kept.record.input.iter().map(weight).sum();
    input + weight(&kept.record.response)
}

fn weight(value: &serde_json::Value) -> usize {
    mach_api::memory::Weight::of_json(value).memory()
}
