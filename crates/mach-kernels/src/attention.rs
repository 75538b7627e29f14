//! Causal attention over paged keys and values.
//!
//! A page holds the keys and values of [`PAGE`] consecutive absolute positions. Inside a page: scores, their maximum,
//! exponentials, their sum and the weighted sum of values (positions ascending); pages are then merged in order. A
//! query's result depends on nothing but the range of positions that it sees and the cache.

use std::sync::Arc;

use crate::math::exp;
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Isa, Kernel, Pool, dispatch};

/// Positions of a page.
pub const PAGE: usize = 256;

/// Queries that share one walk over the keys.
const QUERIES: usize = 4;

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvType {
    /// bfloat16, rounded to nearest even.
    Bf16,
    /// f32, exact.
    F32,
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
        let element = if self.kind == KvType::Bf16 { 2 } else { 4 };
        2 * self.heads * PAGE * self.head_dim * element
    }

    /// 32-bit words of a row, and of all rows of a head of a page.
    fn row_words(&self) -> (usize, usize) {
        let row = self.head_dim / if self.kind == KvType::Bf16 { 2 } else { 1 };
        (row, PAGE * row)
    }
}

/// One page: keys `[heads, PAGE, head_dim]`, then values likewise.
#[derive(Debug, Clone)]
struct Page {
    words: Vec<u32>,
}

/// Keys and values of one layer of one sequence. Full pages are immutable; a shared page is copied before it is written.
#[derive(Debug, Clone)]
pub struct KvCache {
    shape: KvShape,
    pages: Vec<Arc<Page>>,
    len: usize,
    /// Positions before this one were forgotten.
    start: usize,
}

impl KvCache {
    /// An empty cache.
    pub fn new(shape: KvShape) -> Self {
        KvCache { shape, pages: Vec::new(), len: 0, start: 0 }
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
        KvCache { shape, pages, len, start }
    }

    /// The shape.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// All that is held, piece by piece in a fixed order: full pages, then the rows in use of each head of the last page,
    /// keys before values. Depends on shape, start and length alone.
    pub fn sections(&self) -> Vec<&[u32]> {
        let mut out = Vec::with_capacity(self.pages.len() + 2 * self.shape.heads);
        for (p, page) in self.pages.iter().enumerate().filter(|(_, page)| !page.words.is_empty()) {
            let used = (self.len - p * PAGE).min(PAGE);
            if used == PAGE {
                out.push(page.words.as_slice());
            } else {
                let (row, head) = self.shape.row_words();
                out.extend(page.words.chunks_exact(head).filter_map(|words| words.get(..used * row)));
            }
        }
        out
    }

    /// As [`sections`](Self::sections), to be written; shared pages are copied first.
    pub fn sections_mut(&mut self) -> Vec<&mut [u32]> {
        let mut out = Vec::with_capacity(self.pages.len() + 2 * self.shape.heads);
        let (row, head) = self.shape.row_words();
        for (p, page) in self.pages.iter_mut().enumerate().filter(|(_, page)| !page.words.is_empty()) {
            let used = (self.len - p * PAGE).min(PAGE);
            let words = &mut Arc::make_mut(page).words;
            if used == PAGE {
                out.push(words.as_mut_slice());
            } else {
                out.extend(words.chunks_exact_mut(head).filter_map(|words| words.get_mut(..used * row)));
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
            dispatch(isa, Append { shape: self.shape, k: &k[from..], v: &v[from..], slot, rows: take, page });
            self.len += take;
            row += take;
        }
    }
}

struct Append<'a> {
    shape: KvShape,
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
                            KvType::Bf16 => s.store_bf16(base.cast::<u16>().add(at + d), s.load(x.add(d))),
                        }
                    }
                }
            }
        }
    }
}

/// Per-thread working memory of [`attend`].
#[derive(Debug, Default)]
pub struct AttentionScratch {
    threads: Vec<Vec<f32>>,
    causal: Vec<(usize, usize)>,
}

/// Attention of the last `rows` positions of `cache` over all positions up to their own: `q` and `out` are
/// `[rows, query_heads, head_dim]`; query head `h` reads key/value head `h / (query_heads / heads)`.
#[allow(clippy::too_many_arguments)]
pub fn attend(
    pool: &mut Pool,
    isa: Isa,
    scratch: &mut AttentionScratch,
    cache: &KvCache,
    q: &[f32],
    query_heads: usize,
    rows: usize,
    scale: f32,
    out: &mut [f32],
) {
    assert!(rows <= cache.len);
    let mut ranges = std::mem::take(&mut scratch.causal);
    ranges.clear();
    ranges.extend((cache.len - rows..cache.len).map(|position| (0, position + 1)));
    attend_ranges(pool, isa, scratch, cache, q, query_heads, &ranges, scale, out);
    scratch.causal = ranges;
}

/// As [`attend`], each query row over its own range `(first, end)` of positions, which must not be empty.
#[allow(clippy::too_many_arguments)]
pub fn attend_ranges(
    pool: &mut Pool,
    isa: Isa,
    scratch: &mut AttentionScratch,
    cache: &KvCache,
    q: &[f32],
    query_heads: usize,
    ranges: &[(usize, usize)],
    scale: f32,
    out: &mut [f32],
) {
    let rows = ranges.len();
    let KvShape { heads, head_dim, .. } = cache.shape;
    assert!(query_heads.is_multiple_of(heads) && head_dim.is_multiple_of(16));
    assert!(ranges.iter().all(|&(first, end)| cache.start <= first && first < end && end <= cache.len));
    let need = rows * query_heads * head_dim;
    assert!(q.len() >= need && out.len() >= need);
    let per_head = query_heads / heads * rows;
    let units = heads * per_head.div_ceil(QUERIES);
    let threads = pool.threads();
    scratch.threads.resize_with(threads, Vec::new);
    for buffer in &mut scratch.threads {
        buffer.resize(2 * QUERIES * head_dim, 0.0);
    }
    let buffers = SharedMut::new(&mut scratch.threads);
    let to = SharedMut::new(out);
    pool.run(|t| {
        // SAFETY: one buffer for each thread.
        let buffer = unsafe { &mut *buffers.get().add(t) };
        // Later rows see more keys: units are dealt out in turn.
        for unit in (t..units).step_by(threads) {
            let per = units / heads;
            let (head, first) = (unit / per, unit % per * QUERIES);
            let count = QUERIES.min(per_head - first);
            let job = Attend {
                cache,
                q: q.as_ptr(),
                out: to.get(),
                query_heads,
                ranges,
                scale,
                head,
                first,
                count,
                buffer,
            };
            dispatch(isa, job);
        }
    });
}

/// Up to [`QUERIES`] queries of one key/value head. Query `i` of the head is row `i / group`, query head
/// `head * group + i % group`.
struct Attend<'a> {
    cache: &'a KvCache,
    q: *const f32,
    out: *mut f32,
    query_heads: usize,
    ranges: &'a [(usize, usize)],
    scale: f32,
    head: usize,
    first: usize,
    count: usize,
    buffer: &'a mut [f32],
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `attend` checked the shapes; units write disjoint heads of `out`.
        unsafe {
            match self.cache.shape.kind {
                KvType::Bf16 => self.walk::<S, true>(s),
                KvType::F32 => self.walk::<S, false>(s),
            }
        }
    }
}

#[inline(always)]
unsafe fn load<S: Simd, const BF16: bool>(s: S, base: *const u32, at: usize) -> S::F {
    // SAFETY: the caller stays inside the page.
    unsafe { if BF16 { s.load_bf16(base.cast::<u16>().add(at)) } else { s.load(base.cast::<f32>().add(at)) } }
}

impl Attend<'_> {
    #[inline(always)]
    unsafe fn walk<S: Simd, const BF16: bool>(self, s: S) {
        let KvShape { heads, head_dim, .. } = self.cache.shape;
        let group = self.query_heads / heads;
        // Unused places repeat the last query; their results are dropped.
        let query = |i: usize| self.first + i.min(self.count - 1);
        let offset = |i: usize| {
            let i = query(i);
            (i / group * self.query_heads + self.head * group + i % group) * head_dim
        };
        let offsets: [usize; QUERIES] = std::array::from_fn(offset);
        let mut from = [0usize; QUERIES];
        let mut visible = [0usize; QUERIES];
        for i in 0..QUERIES {
            (from[i], visible[i]) = self.ranges[query(i) / group];
        }
        let (sums, parts) = self.buffer.split_at_mut(QUERIES * head_dim);
        let mut top = [0.0f32; QUERIES];
        let mut total = [0.0f32; QUERIES];
        let mut scores = [[0.0f32; PAGE]; QUERIES];
        let mut started = [false; QUERIES];
        let last = visible.into_iter().max().unwrap_or(0);
        let first = from.into_iter().min().unwrap_or(0) / PAGE;
        for (p, page) in self.cache.pages.iter().enumerate().take(last.div_ceil(PAGE)).skip(first) {
            let base = page.words.as_ptr();
            let mut here: [usize; QUERIES] =
                std::array::from_fn(|i| visible[i].saturating_sub(p * PAGE).min(PAGE));
            let skipped: [usize; QUERIES] = std::array::from_fn(|i| from[i].saturating_sub(p * PAGE));
            for i in 0..QUERIES {
                if skipped[i] >= here[i] {
                    here[i] = 0;
                }
            }
            let most = here.into_iter().max().unwrap_or(0);
            // SAFETY: positions below `most` are inside the page, queries and results inside their arrays.
            unsafe {
                let keys = self.head * PAGE * head_dim;
                for j in (0..most).step_by(4) {
                    let mut acc = [s.splat(0.0); 16];
                    for d in (0..head_dim).step_by(16) {
                        let mut k = [s.splat(0.0); 4];
                        for c in 0..4 {
                            k[c] = load::<S, BF16>(s, base, keys + (j + c) * head_dim + d);
                        }
                        for i in 0..QUERIES {
                            let q = s.load(self.q.add(offsets[i] + d));
                            for c in 0..4 {
                                acc[4 * i + c] = s.fma(q, k[c], acc[4 * i + c]);
                            }
                        }
                    }
                    let mut flat = [0.0f32; 16];
                    s.store(flat.as_mut_ptr(), s.mul(s.reduce_add_16(acc), s.splat(self.scale)));
                    for i in 0..QUERIES {
                        scores[i][j..j + 4].copy_from_slice(&flat[4 * i..4 * i + 4]);
                    }
                }
                let mut page_top = [0.0f32; QUERIES];
                let mut page_total = [0.0f32; QUERIES];
                for i in 0..QUERIES {
                    if here[i] > 0 {
                        scores[i][..skipped[i]].fill(f32::MIN);
                    }
                    (page_top[i], page_total[i]) = weigh(s, &mut scores[i], here[i]);
                }
                let values = (heads + self.head) * PAGE * head_dim;
                let shared = here.into_iter().min().unwrap_or(0);
                for d in (0..head_dim).step_by(32) {
                    if head_dim - d >= 32 {
                        weighted::<S, BF16, 2>(
                            s,
                            base,
                            values + d,
                            head_dim,
                            &scores,
                            &here,
                            shared,
                            parts,
                            d,
                        );
                    } else {
                        weighted::<S, BF16, 1>(
                            s,
                            base,
                            values + d,
                            head_dim,
                            &scores,
                            &here,
                            shared,
                            parts,
                            d,
                        );
                    }
                }
                for i in 0..self.count {
                    if here[i] == 0 {
                        continue;
                    }
                    let (sum, part) = (sums.as_mut_ptr().add(i * head_dim), parts.as_ptr().add(i * head_dim));
                    if !started[i] {
                        started[i] = true;
                        std::ptr::copy_nonoverlapping(part, sum, head_dim);
                        (top[i], total[i]) = (page_top[i], page_total[i]);
                    } else {
                        let best = if page_top[i] > top[i] { page_top[i] } else { top[i] };
                        let factors = exp_pair(s, top[i] - best, page_top[i] - best);
                        let (a, b) = (s.splat(factors.0), s.splat(factors.1));
                        for d in (0..head_dim).step_by(16) {
                            let scaled = s.mul(s.load(sum.add(d)), a);
                            s.store(sum.add(d), s.fma(s.load(part.add(d)), b, scaled));
                        }
                        total[i] = total[i] * factors.0 + page_total[i] * factors.1;
                        top[i] = best;
                    }
                }
            }
        }
        for i in 0..self.count {
            let inverse = s.splat(1.0 / total[i]);
            for d in (0..head_dim).step_by(16) {
                // SAFETY: this unit's own head of `out`.
                unsafe {
                    let v = s.load(sums.as_ptr().add(i * head_dim + d));
                    s.store(self.out.add(offsets[i] + d), s.mul(v, inverse));
                }
            }
        }
    }
}

/// Turns the first `n` scores into `e^(score - max)`, the rest into zeros; returns maximum and sum.
#[inline(always)]
fn weigh<S: Simd>(s: S, scores: &mut [f32; PAGE], n: usize) -> (f32, f32) {
    if n == 0 {
        return (0.0, 0.0);
    }
    let lanes = n.div_ceil(16) * 16;
    scores[n..lanes].fill(f32::MIN);
    // SAFETY: `lanes` is at most PAGE, a multiple of 16.
    unsafe {
        let mut top = s.splat(f32::MIN);
        for j in (0..lanes).step_by(16) {
            top = s.max(s.load(scores.as_ptr().add(j)), top);
        }
        let top = s.reduce_max(top);
        let mut sum = s.splat(0.0);
        for j in (0..lanes).step_by(16) {
            let e = exp(s, s.sub(s.load(scores.as_ptr().add(j)), s.splat(top)));
            s.store(scores.as_mut_ptr().add(j), e);
            if j + 16 > n {
                scores[n..lanes].fill(0.0);
            }
            sum = s.add(sum, s.load(scores.as_ptr().add(j)));
        }
        (top, s.reduce_add(sum))
    }
}

/// `parts[i][d..d + 16 N] = sum_j scores[i][j] * value_j`, positions ascending.
///
/// # Safety
/// Positions below `max(here)` are inside the page; `parts` holds `QUERIES` heads.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn weighted<S: Simd, const BF16: bool, const N: usize>(
    s: S,
    base: *const u32,
    values: usize,
    head_dim: usize,
    scores: &[[f32; PAGE]; QUERIES],
    here: &[usize; QUERIES],
    shared: usize,
    parts: &mut [f32],
    d: usize,
) {
    let mut acc = [[s.splat(0.0); N]; QUERIES];
    // SAFETY: forwarded.
    unsafe {
        for j in 0..shared {
            let mut v = [s.splat(0.0); N];
            for n in 0..N {
                v[n] = load::<S, BF16>(s, base, values + j * head_dim + 16 * n);
            }
            for i in 0..QUERIES {
                let w = s.splat(*scores[i].get_unchecked(j));
                for n in 0..N {
                    acc[i][n] = s.fma(w, v[n], acc[i][n]);
                }
            }
        }
        // Positions that only some queries see.
        for i in 0..QUERIES {
            for j in shared..here[i] {
                let w = s.splat(scores[i][j]);
                for n in 0..N {
                    let v = load::<S, BF16>(s, base, values + j * head_dim + 16 * n);
                    acc[i][n] = s.fma(w, v, acc[i][n]);
                }
            }
            for n in 0..N {
                s.store(parts.as_mut_ptr().add(i * head_dim + d + 16 * n), acc[i][n]);
            }
        }
    }
}

#[inline(always)]
fn exp_pair<S: Simd>(s: S, a: f32, b: f32) -> (f32, f32) {
    let mut both = [0.0f32; 16];
    (both[0], both[1]) = (a, b);
    // SAFETY: an array of 16.
    unsafe { s.store(both.as_mut_ptr(), exp(s, s.load(both.as_ptr()))) };
    (both[0], both[1])
}
