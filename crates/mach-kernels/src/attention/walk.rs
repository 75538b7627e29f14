//! Scores, weights and sums: the walk over the pages.

use super::cache::{KvCache, KvShape, KvType, PAGE};
use super::turbo::{self, CHUNK, Rotation, TurboQuant, Width, padded};
use crate::math::exp;
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch};

/// Queries that share one walk over the keys.
const QUERIES: usize = 4;

/// Per-thread working memory of [`attend`].
#[derive(Debug, Default)]
pub struct AttentionScratch {
    threads: Vec<Vec<f32>>,
    causal: Vec<(usize, usize)>,
    /// Queries as the keys lie.
    rotated: Vec<f32>,
}

/// From products of queries and keys to weights.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    /// Multiplies products.
    pub scale: f32,
    /// `[query_heads]`: for each query head a score without a value, which takes part in the softmax.
    pub sinks: Option<&'a [f32]>,
}

impl From<f32> for Scores<'_> {
    fn from(scale: f32) -> Self {
        Scores { scale, sinks: None }
    }
}

/// Attention of the last `rows` positions of `cache` over all positions up to their own: `q` and `out` are
/// `[rows, query_heads, head_dim]`; query head `h` reads key/value head `h / (query_heads / heads)`.
#[allow(clippy::too_many_arguments)]
pub fn attend<'s>(
    cores: &mut Cores,
    scratch: &mut AttentionScratch,
    cache: &KvCache,
    q: &[f32],
    query_heads: usize,
    rows: usize,
    scores: impl Into<Scores<'s>>,
    out: &mut [f32],
) {
    assert!(rows <= cache.len);
    let mut ranges = std::mem::take(&mut scratch.causal);
    ranges.clear();
    ranges.extend((cache.len - rows..cache.len).map(|position| (0, position + 1)));
    attend_ranges(cores, scratch, cache, q, query_heads, &ranges, scores, out);
    scratch.causal = ranges;
}

/// As [`attend`], each query row over its own range `(first, end)` of positions, which must not be empty.
#[allow(clippy::too_many_arguments)]
pub fn attend_ranges<'s>(
    cores: &mut Cores,
    scratch: &mut AttentionScratch,
    cache: &KvCache,
    q: &[f32],
    query_heads: usize,
    ranges: &[(usize, usize)],
    scores: impl Into<Scores<'s>>,
    out: &mut [f32],
) {
    let isa = cores.isa();
    let scores = scores.into();
    assert!(scores.sinks.is_none_or(|sinks| sinks.len() == query_heads));
    let rows = ranges.len();
    let KvShape { heads, head_dim, .. } = cache.shape;
    assert!(query_heads.is_multiple_of(heads) && head_dim.is_multiple_of(16));
    assert!(ranges.iter().all(|&(first, end)| cache.start <= first && first < end && end <= cache.len));
    let need = rows * query_heads * head_dim;
    assert!(q.len() >= need && out.len() >= need);
    let per_head = query_heads / heads * rows;
    let units = heads * per_head.div_ceil(QUERIES);
    let threads = cores.threads();
    let mut width = head_dim;
    let mut rotated = std::mem::take(&mut scratch.rotated);
    if let Some(rotation) = &cache.rotation {
        width = padded(head_dim);
        rotated.resize(rows * query_heads * width, 0.0);
        let (from, to) = (q, SharedMut::new(&mut rotated));
        cores.run(|t| {
            for i in (t..rows * query_heads).step_by(threads) {
                // SAFETY: each vector is one thread's.
                let x = unsafe { std::slice::from_raw_parts_mut(to.get().add(i * width), width) };
                x[..head_dim].copy_from_slice(&from[i * head_dim..(i + 1) * head_dim]);
                dispatch(isa, Rotate { rotation, x });
            }
        });
    }
    let turned = if cache.rotation.is_some() { rotated.as_slice() } else { q };
    scratch.threads.resize_with(threads, Vec::new);
    for buffer in &mut scratch.threads {
        buffer.resize(2 * QUERIES * width, 0.0);
    }
    let buffers = SharedMut::new(&mut scratch.threads);
    let to = SharedMut::new(out);
    cores.run(|t| {
        // SAFETY: one buffer for each thread.
        let buffer = unsafe { &mut *buffers.get().add(t) };
        // Later rows see more keys: units are dealt out in turn.
        for unit in (t..units).step_by(threads) {
            let per = units / heads;
            let (head, first) = (unit / per, unit % per * QUERIES);
            let count = QUERIES.min(per_head - first);
            let job = Attend {
                cache,
                q: turned.as_ptr(),
                width,
                out: to.get(),
                query_heads,
                ranges,
                scores,
                head,
                first,
                count,
                buffer,
            };
            dispatch(isa, job);
        }
    });
    scratch.rotated = rotated;
}

struct Rotate<'a> {
    rotation: &'a Rotation,
    x: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        self.rotation.forward(self.x);
    }
}

/// Up to [`QUERIES`] queries of one key/value head. Query `i` of the head is row `i / group`, query head
/// `head * group + i % group`.
struct Attend<'a> {
    cache: &'a KvCache,
    /// `[rows, query_heads, width]`, rotated if the keys are.
    q: *const f32,
    width: usize,
    out: *mut f32,
    query_heads: usize,
    ranges: &'a [(usize, usize)],
    scores: Scores<'a>,
    head: usize,
    first: usize,
    count: usize,
    buffer: &'a mut [f32],
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `attend` checked the shapes; units write disjoint heads of `out`.
        unsafe { self.walk(s) }
    }
}

#[inline(always)]
unsafe fn load<S: Simd, const BF16: bool>(s: S, base: *const u32, at: usize) -> S::F {
    // SAFETY: the caller stays inside the page.
    unsafe { if BF16 { s.load_bf16(base.cast::<u16>().add(at)) } else { s.load(base.cast::<f32>().add(at)) } }
}

impl Attend<'_> {
    #[inline(always)]
    unsafe fn walk<S: Simd>(self, s: S) {
        let KvShape { heads, head_dim, kind } = self.cache.shape;
        let (width, [key_words, value_words]) = (self.width, self.cache.shape.row_words());
        let group = self.query_heads / heads;
        // Unused places repeat the last query; their results are dropped.
        let query = |i: usize| self.first + i.min(self.count - 1);
        let offset = |i: usize| {
            let i = query(i);
            i / group * self.query_heads + self.head * group + i % group
        };
        let heads_at: [usize; QUERIES] = std::array::from_fn(offset);
        // SAFETY: queries lie one after the other.
        let queries = heads_at.map(|at| unsafe { self.q.add(at * width) });
        let mut from = [0usize; QUERIES];
        let mut visible = [0usize; QUERIES];
        for i in 0..QUERIES {
            (from[i], visible[i]) = self.ranges[query(i) / group];
        }
        let (sums, parts) = self.buffer.split_at_mut(QUERIES * width);
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
                let keys = base.add(self.head * PAGE * key_words);
                let values = base.add(PAGE * (heads * key_words + self.head * value_words));
                let (scale, into) = (self.scores.scale, &mut scores);
                match kind {
                    KvType::Bf16 => products::<S, true>(s, keys, &queries, head_dim, most, scale, into),
                    KvType::F32 => products::<S, false>(s, keys, &queries, head_dim, most, scale, into),
                    KvType::Turbo(TurboQuant { keys: bits, .. }) => {
                        let all = (keys, key_words, width / CHUNK);
                        match bits {
                            Width::Two => turbo_products::<S, 2>(s, all, &queries, most, scale, into),
                            Width::Three => turbo_products::<S, 3>(s, all, &queries, most, scale, into),
                            Width::Four => turbo_products::<S, 4>(s, all, &queries, most, scale, into),
                            Width::Eight => turbo_products::<S, 8>(s, all, &queries, most, scale, into),
                        }
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
                let shared = here.into_iter().min().unwrap_or(0);
                let span = (&here, shared);
                match kind {
                    KvType::Bf16 => sums_of::<S, true>(s, values, head_dim, &scores, span, parts),
                    KvType::F32 => sums_of::<S, false>(s, values, head_dim, &scores, span, parts),
                    KvType::Turbo(TurboQuant { values: bits, .. }) => {
                        for j in 0..most {
                            let scale = turbo::scale(values.add(j * value_words));
                            scores.iter_mut().for_each(|scores| scores[j] *= scale);
                        }
                        let all = (values, value_words, width);
                        match bits {
                            Width::Two => turbo_weighted::<S, 2>(s, all, &scores, span, parts),
                            Width::Three => turbo_weighted::<S, 3>(s, all, &scores, span, parts),
                            Width::Four => turbo_weighted::<S, 4>(s, all, &scores, span, parts),
                            Width::Eight => turbo_weighted::<S, 8>(s, all, &scores, span, parts),
                        }
                    }
                }
                for i in 0..self.count {
                    if here[i] == 0 {
                        continue;
                    }
                    let (sum, part) = (sums.as_mut_ptr().add(i * width), parts.as_ptr().add(i * width));
                    if !started[i] {
                        started[i] = true;
                        std::ptr::copy_nonoverlapping(part, sum, width);
                        (top[i], total[i]) = (page_top[i], page_total[i]);
                    } else {
                        let best = if page_top[i] > top[i] { page_top[i] } else { top[i] };
                        let factors = exp_pair(s, top[i] - best, page_top[i] - best);
                        let (a, b) = (s.splat(factors.0), s.splat(factors.1));
                        for d in (0..width).step_by(16) {
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
            let mut inverse = 1.0 / total[i];
            if let Some(sinks) = self.scores.sinks {
                // Behind all pages, whatever they were: a query's result depends on nothing else.
                let sink = sinks[heads_at[i] % self.query_heads];
                let best = if sink > top[i] { sink } else { top[i] };
                let factors = exp_pair(s, top[i] - best, sink - best);
                inverse = factors.0 / (total[i] * factors.0 + factors.1);
            }
            let inverse = s.splat(inverse);
            if let Some(rotation) = &self.cache.rotation {
                rotation.backward(&mut sums[i * width..(i + 1) * width]);
            }
            for d in (0..head_dim).step_by(16) {
                // SAFETY: this unit's own head of `out`.
                unsafe {
                    let v = s.load(sums.as_ptr().add(i * width + d));
                    s.store(self.out.add(heads_at[i] * head_dim + d), s.mul(v, inverse));
                }
            }
        }
    }
}

/// `scores[i][j] = scale * <query i, key j>` for the first `most` keys, rounded up to fours.
///
/// # Safety
/// Keys and queries are there.
#[inline(always)]
unsafe fn products<S: Simd, const BF16: bool>(
    s: S,
    keys: *const u32,
    queries: &[*const f32; QUERIES],
    head_dim: usize,
    most: usize,
    scale: f32,
    scores: &mut [[f32; PAGE]; QUERIES],
) {
    // SAFETY: forwarded; positions below `most` are inside the page.
    unsafe {
        for j in (0..most).step_by(4) {
            let mut acc = [s.splat(0.0); 16];
            for d in (0..head_dim).step_by(16) {
                let mut k = [s.splat(0.0); 4];
                for c in 0..4 {
                    k[c] = load::<S, BF16>(s, keys, (j + c) * head_dim + d);
                }
                for i in 0..QUERIES {
                    let q = s.load(queries[i].add(d));
                    for c in 0..4 {
                        acc[4 * i + c] = s.fma(q, k[c], acc[4 * i + c]);
                    }
                }
            }
            let mut flat = [0.0f32; 16];
            s.store(flat.as_mut_ptr(), s.mul(s.reduce_add_16(acc), s.splat(scale)));
            for i in 0..QUERIES {
                scores[i][j..j + 4].copy_from_slice(&flat[4 * i..4 * i + 4]);
            }
        }
    }
}

/// As [`products`], of quantized keys: where they are, words of a row, chunks of a row.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn turbo_products<S: Simd, const BITS: usize>(
    s: S,
    (keys, words, chunks): (*const u32, usize, usize),
    queries: &[*const f32; QUERIES],
    most: usize,
    scale: f32,
    scores: &mut [[f32; PAGE]; QUERIES],
) {
    // SAFETY: forwarded; positions below `most` are inside the page.
    unsafe {
        for j in (0..most).step_by(4) {
            let mut acc = [s.splat(0.0); 16];
            for chunk in 0..chunks {
                for c in 0..4 {
                    let k = turbo::decode::<S, BITS>(s, keys.add((j + c) * words), chunk);
                    for i in 0..QUERIES {
                        for v in 0..4 {
                            let q = s.load(queries[i].add(chunk * CHUNK + 16 * v));
                            acc[4 * i + c] = s.fma(q, k[v], acc[4 * i + c]);
                        }
                    }
                }
            }
            let scales: [f32; 16] = std::array::from_fn(|i| turbo::scale(keys.add((j + i % 4) * words)));
            let mut flat = [0.0f32; 16];
            let dots = s.mul(s.reduce_add_16(acc), s.splat(scale));
            s.store(flat.as_mut_ptr(), s.mul(dots, s.load(scales.as_ptr())));
            for i in 0..QUERIES {
                scores[i][j..j + 4].copy_from_slice(&flat[4 * i..4 * i + 4]);
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

/// [`weighted`] over the whole width.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn sums_of<S: Simd, const BF16: bool>(
    s: S,
    values: *const u32,
    head_dim: usize,
    scores: &[[f32; PAGE]; QUERIES],
    (here, shared): (&[usize; QUERIES], usize),
    parts: &mut [f32],
) {
    for d in (0..head_dim).step_by(32) {
        // SAFETY: forwarded.
        unsafe {
            if head_dim - d >= 32 {
                weighted::<S, BF16, 2>(s, values, d, head_dim, scores, here, shared, parts, d);
            } else {
                weighted::<S, BF16, 1>(s, values, d, head_dim, scores, here, shared, parts, d);
            }
        }
    }
}

/// As [`sums_of`], of quantized values (where they are, words of a row, coordinates of a row), whose scales are in the scores already.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn turbo_weighted<S: Simd, const BITS: usize>(
    s: S,
    (values, words, width): (*const u32, usize, usize),
    scores: &[[f32; PAGE]; QUERIES],
    (here, shared): (&[usize; QUERIES], usize),
    parts: &mut [f32],
) {
    for chunk in 0..width / CHUNK {
        let mut acc = [[s.splat(0.0); 4]; QUERIES];
        // SAFETY: forwarded.
        unsafe {
            for j in 0..shared {
                let value = turbo::decode::<S, BITS>(s, values.add(j * words), chunk);
                for i in 0..QUERIES {
                    let w = s.splat(*scores[i].get_unchecked(j));
                    for v in 0..4 {
                        acc[i][v] = s.fma(w, value[v], acc[i][v]);
                    }
                }
            }
            // Positions that only some queries see.
            for i in 0..QUERIES {
                for j in shared..here[i] {
                    let w = s.splat(scores[i][j]);
                    let value = turbo::decode::<S, BITS>(s, values.add(j * words), chunk);
                    for v in 0..4 {
                        acc[i][v] = s.fma(w, value[v], acc[i][v]);
                    }
                }
                for v in 0..4 {
                    s.store(parts.as_mut_ptr().add(i * width + chunk * CHUNK + 16 * v), acc[i][v]);
                }
            }
        }
    }
}
