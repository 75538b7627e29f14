//! The last rows of a growing list.

use std::sync::Arc;

/// Rows of 32-bit words from some position on; what lies before was forgotten.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Tail {
    /// Words of a row.
    width: usize,
    /// Position of the first row.
    first: usize,
    words: Vec<u32>,
}

impl Tail {
    /// Rows `first..end`, all zeros.
    pub(super) fn zeroed(width: usize, first: usize, end: usize) -> Self {
        Tail { width, first, words: vec![0; (end - first) * width] }
    }

    pub(super) fn bytes(&self) -> usize {
        4 * self.words.capacity()
    }

    /// The row at a position.
    pub(super) fn row(&self, position: usize) -> &[u32] {
        let at = (position - self.first) * self.width;
        &self.words[at..at + self.width]
    }

    /// Room for `rows` more rows, to be filled.
    pub(super) fn extend(&mut self, rows: usize) -> &mut [u32] {
        let at = self.words.len();
        self.words.resize(at + rows * self.width, 0);
        &mut self.words[at..]
    }

    pub(super) fn truncate(&mut self, end: usize) {
        self.words.truncate(end.saturating_sub(self.first) * self.width);
    }

    /// Lets go of the rows before `first`, at once or later: the rest is moved only when that is no more than what goes, or
    /// when a long pass left more room than twice what later ones need.
    pub(super) fn forget(&mut self, first: usize) {
        let before = first.saturating_sub(self.first) * self.width;
        let gone = before.min(self.words.len());
        let kept = self.words.len() - gone;
        if (before > 0 && gone >= kept) || self.words.capacity() > 2 * kept {
            self.words.drain(..gone);
            self.words.shrink_to(2 * kept);
            self.first = self.first.max(first);
        }
    }

    /// Rows `first..end` alone; `None` if some were forgotten or never there.
    pub(super) fn cut(&self, first: usize, end: usize) -> Option<Tail> {
        let start = first.checked_sub(self.first)? * self.width;
        let words = self.words.get(start..(end - self.first) * self.width)?.to_vec();
        Some(Tail { width: self.width, first, words })
    }

    /// The words of the rows from `first` on.
    pub(super) fn from(&self, first: usize) -> &[u32] {
        &self.words[(first - self.first) * self.width..]
    }

    pub(super) fn words_mut(&mut self) -> &mut [u32] {
        &mut self.words
    }
}

/// Entries of a page.
pub(super) const PAGE: usize = 64;

/// Rows of 32-bit words in pages that copies share. A shared page is copied before it is written.
#[derive(Debug, Clone, Default)]
pub(super) struct Pages {
    width: usize,
    len: usize,
    pages: Vec<Arc<Vec<u32>>>,
}

impl Pages {
    /// `len` rows, all zeros.
    pub(super) fn zeroed(width: usize, len: usize) -> Self {
        let pages = (0..len.div_ceil(PAGE)).map(|_| Arc::new(vec![0; PAGE * width])).collect();
        Pages { width, len, pages }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn row(&self, i: usize) -> &[u32] {
        let at = i % PAGE * self.width;
        &self.pages[i / PAGE][at..at + self.width]
    }

    /// One more row, to be filled.
    pub(super) fn push(&mut self) -> &mut [u32] {
        let slot = self.len % PAGE;
        if slot == 0 {
            self.pages.push(Arc::new(vec![0; PAGE * self.width]));
        }
        self.len += 1;
        match self.pages.last_mut() {
            Some(page) => &mut Arc::make_mut(page)[slot * self.width..(slot + 1) * self.width],
            None => &mut [],
        }
    }

    pub(super) fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.pages.truncate(len.div_ceil(PAGE));
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.pages.iter().map(|page| 4 * page.len()).sum()
    }

    /// What tells pages apart while they live, and their bytes.
    pub(super) fn pages(&self) -> impl Iterator<Item = (usize, usize)> {
        self.pages.iter().map(|page| (Arc::as_ptr(page).addr(), 4 * page.len()))
    }

    fn used(&self, page: usize) -> usize {
        (self.len - page * PAGE).min(PAGE) * self.width
    }

    /// The rows, page by page.
    pub(super) fn sections(&self) -> impl Iterator<Item = &[u32]> {
        self.pages.iter().enumerate().map(|(p, page)| &page[..self.used(p)])
    }

    /// As [`sections`](Self::sections), to be written.
    pub(super) fn sections_mut(&mut self) -> impl Iterator<Item = &mut [u32]> {
        let used: Vec<usize> = (0..self.pages.len()).map(|p| self.used(p)).collect();
        self.pages.iter_mut().zip(used).map(|(page, used)| &mut Arc::make_mut(page)[..used])
    }
}
