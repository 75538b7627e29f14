//! Pages of keys and values: one buffer for all layers of one shape, pages handed out and given back by number.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Context, GpuError, Recorder, Storage};

/// Pages of one size. The buffer grows; numbers stay.
#[derive(Debug)]
pub(crate) struct Pool {
    context: Context,
    /// Words of a page.
    pub(crate) words: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    buffer: Option<Storage>,
    pages: u32,
    free: Vec<u32>,
}

/// A page, given back when the last of its holders lets it go.
#[derive(Debug)]
pub(crate) struct Page {
    pool: Arc<Pool>,
    pub(crate) number: u32,
}

impl Drop for Page {
    fn drop(&mut self) {
        self.pool.inner().free.push(self.number);
    }
}

/// Pages of a new pool.
const FIRST: u32 = 8;

impl Pool {
    pub(crate) fn new(context: &Context, words: u64) -> Pool {
        Pool { context: context.clone(), words, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of a page.
    pub(crate) fn page_bytes(&self) -> u64 {
        4 * self.words
    }

    /// The buffer as it is now; a page begins at its number times its words.
    pub(crate) fn buffer(&self) -> Option<Storage> {
        self.inner().buffer.clone()
    }

    /// Whether so many pages can be taken without growing.
    pub(crate) fn has(&self, pages: usize) -> bool {
        self.inner().free.len() >= pages
    }

    /// Makes room for so many more. Commands that were recorded for the old buffer must have been submitted.
    pub(crate) fn grow(&self, pages: usize) -> Result<(), GpuError> {
        let mut inner = self.inner();
        let missing = pages.saturating_sub(inner.free.len()) as u32;
        if missing == 0 {
            return Ok(());
        }
        let most =
            (self.context.largest_binding() / self.page_bytes().max(1)).min(u64::from(u32::MAX)) as u32;
        let wanted = inner.pages.saturating_add(missing);
        let count = wanted.max(inner.pages.saturating_mul(2)).max(FIRST).min(most);
        if count < wanted {
            return Err(GpuError::OutOfMemory(format!(
                "keys and values of {wanted} pages of {} bytes: a buffer takes {most}",
                self.page_bytes()
            )));
        }
        let buffer = Storage::new(&self.context, u64::from(count) * self.page_bytes())?;
        if let Some(old) = &inner.buffer {
            let mut recorder = Recorder::new(&self.context);
            recorder.copy_storage(old, 0, &buffer, 0, old.bytes());
            drop(recorder.submit());
        }
        let first = inner.pages;
        inner.free.extend((first..count).rev());
        inner.pages = count;
        inner.buffer = Some(buffer);
        Ok(())
    }

    /// A page whose content is whatever it was.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Arc<Page>, GpuError> {
        let number = self.inner().free.pop();
        let number = number.ok_or_else(|| GpuError::OutOfMemory("no page of keys and values".into()))?;
        Ok(Arc::new(Page { pool: Arc::clone(self), number }))
    }
}
