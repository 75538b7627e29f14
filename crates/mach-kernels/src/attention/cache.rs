//! Keys and values of a layer, in pages.

use std::sync::Arc;

use super::turbo::{Rotation, TurboQuant, encode, padded, row_words};
use crate::simd::Simd;
use crate::{Isa, Kernel, dispatch};

/// Positions of a page.
pub const PAGE: usize = 256;

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// f32, exact.
    F32,
    /// Rotated and quantized.
    Turbo(TurboQuant),
}

/// Shape of a layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Key/value heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Element type.
    pub kind: KvType,
}

impl KvShape {
    /// Bytes of a page, keys and values.
    pub fn page_bytes(&self) -> usize {
        4 * self.heads * PAGE * self.row_words().iter().sum::<usize>()
    }

    /// 32-bit words of a row of keys and of a row of values.
    pub(super) fn row_words(&self) -> [usize; 2] {
        match self.kind {
            KvType::Bf16 => [self.head_dim / 2; 2],
            KvType::F32 => [self.head_dim; 2],
            KvType::Turbo(turbo) => row_words(turbo, self.head_dim),
        }
    }

    /// The words of a row in each head of a page in turn, first of keys, then of values.
    fn heads_of_page(&self) -> impl Iterator<Item = usize> {
        let [keys, values] = self.row_words();
        std::iter::repeat_n(keys, self.heads).chain(std::iter::repeat_n(values, self.heads))
    }

    fn rotation(&self) -> Option<Arc<Rotation>> {
        matches!(self.kind, KvType::Turbo(_)).then(|| Arc::new(Rotation::new(self.head_dim)))
    }
}

/// One page: keys `[heads, PAGE, row]`, then values likewise.
#[derive(Debug, Clone)]
pub(super) struct Page {
    pub(super) words: Vec<u32>,
}

/// Keys and values of one layer of one sequence. Full pages are immutable; a shared page is copied before it is written.
#[derive(Debug, Clone)]
pub struct KvCache {
    pub(super) shape: KvShape,
    pub(super) rotation: Option<Arc<Rotation>>,
    pub(super) pages: Vec<Arc<Page>>,
    pub(super) len: usize,
    /// Positions before this one were forgotten.
    pub(super) start: usize,
}

impl KvCache {
    /// An empty cache.
    pub fn new(shape: KvShape) -> Self {
        KvCache { shape, rotation: shape.rotation(), pages: Vec::new(), len: 0, start: 0 }
    }

    /// Positions appended and not cut off again.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no position was appended.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.pages.iter().map(|page| 4 * page.words.len()).sum()
    }

    /// The first position that was not forgotten.
    pub fn start(&self) -> usize {
        self.start
    }

    /// The pages: what tells them apart while they live (shared pages are the same page), and their bytes.
    pub fn pages(&self) -> impl Iterator<Item = (usize, usize)> {
        let held = self.pages.iter().filter(|page| !page.words.is_empty());
        held.map(|page| (Arc::as_ptr(page).addr(), 4 * page.words.len()))
    }

    /// A cache of `len` positions, those before `start` forgotten, whose [`sections_mut`](Self::sections_mut) are to be
    /// filled.
    pub fn with_len(shape: KvShape, start: usize, len: usize) -> Self {
        let start = start.min(len);
        let words = |page: usize| if page < start / PAGE { 0 } else { shape.page_bytes() / 4 };
        let pages = (0..len.div_ceil(PAGE)).map(|p| Arc::new(Page { words: vec![0; words(p)] })).collect();
        KvCache { shape, rotation: shape.rotation(), pages, len, start }
    }

    /// What a position of the cache holds.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// All that is held of `start` and what follows, piece by piece in a fixed order: full pages, then the rows in use of
    /// each head of the last page, keys before values. Depends on shape, start and length alone.
    pub fn sections(&self, start: usize) -> Vec<&[u32]> {
        let mut out = Vec::with_capacity(self.pages.len() + 2 * self.shape.heads);
        let held =
            self.pages.iter().enumerate().skip(start / PAGE).filter(|(_, page)| !page.words.is_empty());
        for (p, page) in held {
            let used = (self.len - p * PAGE).min(PAGE);
            if used == PAGE {
                out.push(page.words.as_slice());
            } else {
                let mut rest = page.words.as_slice();
                for row in self.shape.heads_of_page() {
                    let (head, after) = rest.split_at(PAGE * row);
                    out.push(&head[..used * row]);
                    rest = after;
                }
            }
        }
        out
    }

    /// As [`sections`](Self::sections) of all that is held, to be written; shared pages are copied first.
    pub fn sections_mut(&mut self) -> Vec<&mut [u32]> {
        let mut out = Vec::with_capacity(self.pages.len() + 2 * self.shape.heads);
        let shape = self.shape;
        for (p, page) in self.pages.iter_mut().enumerate().filter(|(_, page)| !page.words.is_empty()) {
            let used = (self.len - p * PAGE).min(PAGE);
            let words = &mut Arc::make_mut(page).words;
            if used == PAGE {
                out.push(words.as_mut_slice());
            } else {
                let mut rest = words.as_mut_slice();
                for row in shape.heads_of_page() {
                    let (head, after) = rest.split_at_mut(PAGE * row);
                    out.push(&mut head[..used * row]);
                    rest = after;
                }
            }
        }
        out
    }

    /// Cuts off the positions from `len` on. Pages shared with other caches stay as they are.
    pub fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.pages.truncate(len.div_ceil(PAGE));
        }
    }

    /// Frees pages that hold only positions before `start`, which no query may see any more.
    pub fn forget_before(&mut self, start: usize) {
        let start = start.min(self.len);
        if start <= self.start {
            return;
        }
        let (old, new) = (self.start / PAGE, start / PAGE);
        for page in self.pages.iter_mut().take(new).skip(old) {
            *page = Arc::new(Page { words: Vec::new() });
        }
        self.start = start;
    }

    /// Appends `rows` positions; `k` and `v` are `[rows, heads, head_dim]`.
    pub fn append(&mut self, isa: Isa, k: &[f32], v: &[f32], rows: usize) {
        let KvShape { heads, head_dim, .. } = self.shape;
        assert!(k.len() >= rows * heads * head_dim && v.len() >= rows * heads * head_dim);
        let mut row = 0;
        while row < rows {
            let slot = self.len % PAGE;
            if slot == 0 {
                self.pages.push(Arc::new(Page { words: vec![0; self.shape.page_bytes() / 4] }));
            }
            let take = (PAGE - slot).min(rows - row);
            let Some(page) = self.pages.last_mut() else { return };
            let page = Arc::make_mut(page);
            let from = row * heads * head_dim;
            let (shape, rotation) = (self.shape, self.rotation.as_deref());
            dispatch(isa, Append { shape, rotation, k: &k[from..], v: &v[from..], slot, rows: take, page });
            self.len += take;
            row += take;
        }
    }
}

struct Append<'a> {
    shape: KvShape,
    rotation: Option<&'a Rotation>,
    k: &'a [f32],
    v: &'a [f32],
    slot: usize,
    rows: usize,
    page: &'a mut Page,
}
impl Kernel for Append<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let KvShape { heads, head_dim, kind } = self.shape;
        if let (KvType::Turbo(turbo), Some(rotation)) = (kind, self.rotation) {
            return self.quantize(turbo, rotation);
        }
        let base = self.page.words.as_mut_ptr();
        for (part, x) in [self.k, self.v].into_iter().enumerate() {
            for (row, h) in (0..self.rows).flat_map(|r| (0..heads).map(move |h| (r, h))) {
                let at = ((part * heads + h) * PAGE + self.slot + row) * head_dim;
                // SAFETY: `append` checked the lengths; slots lie inside the page; head_dim is a multiple of 16.
                unsafe {
                    let x = x.as_ptr().add((row * heads + h) * head_dim);
                    for d in (0..head_dim).step_by(16) {
                        match kind {
                            KvType::F32 => s.store(base.cast::<f32>().add(at + d), s.load(x.add(d))),
                            _ => s.store_bf16(base.cast::<u16>().add(at + d), s.load(x.add(d))),
                        }
                    }
                }
            }
        }
    }
}

impl Append<'_> {
    #[inline(always)]
    fn quantize(self, turbo: TurboQuant, rotation: &Rotation) {
        let KvShape { heads, head_dim, .. } = self.shape;
        let mut rest = self.page.words.as_mut_slice();
        let mut turned = vec![0.0f32; padded(head_dim)];
        for (x, width, words) in [(self.k, turbo.keys), (self.v, turbo.values)]
            .into_iter()
            .zip(self.shape.row_words())
            .map(|((x, w), n)| (x, w, n))
        {
            let (part, after) = rest.split_at_mut(heads * PAGE * words);
            rest = after;
            for (row, h) in (0..self.rows).flat_map(|r| (0..heads).map(move |h| (r, h))) {
                let from = (row * heads + h) * head_dim;
                turned[..head_dim].copy_from_slice(&x[from..from + head_dim]);
                rotation.forward(&mut turned);
                let at = (h * PAGE + self.slot + row) * words;
                encode(width, &turned, head_dim, &mut part[at..at + words]);
            }
        }
    }
}
