//! Row-wise arithmetic: norms, rotary embedding, activations, sums. Rows are independent; with many of them the pool
//! shares them out.

use crate::math::{self, exp64, gelu_tanh, ln64, sigmoid, silu, sin_cos, sloped_silu};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Isa, Kernel, dispatch, partition};

/// Rows from which the pool is worth its barrier.
const PARALLEL_ROWS: usize = 4;

/// Runs `f(first, last)` over rows, on the pool if there are enough.
pub(crate) fn over_rows(cores: &mut Cores, rows: usize, f: impl Fn(usize, usize) + Sync) {
    if rows < PARALLEL_ROWS {
        return f(0, rows);
    }
    let threads = cores.threads();
    cores.run(|t| {
        let part = partition(rows, threads, t);
        f(part.start, part.end);
    });
}

/// A function of two vectors. Not a closure: a closure is compiled without the target features unless it happens to be
/// inlined, and then every vector operation in it is a call.
pub(crate) trait Pairwise: Copy {
    fn apply<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F;
}

macro_rules! pairwise {
    ($($name:ident { $($field:ident)? } |$s:ident, $a:ident, $b:ident| $body:expr;)*) => {$(
        #[derive(Clone, Copy)]
        pub(crate) struct $name {
            $(pub(crate) $field: f32,)?
        }
        impl Pairwise for $name {
            #[inline(always)]
            fn apply<S: Simd>(self, $s: S, $a: S::F, $b: S::F) -> S::F {
                let $name { $($field)? } = self;
                $body
            }
        }
    )*};
}

pairwise! {
    Add {} |s, a, b| s.add(a, b);
    SiluMul {} |s, a, b| s.mul(silu(s, a), b);
    GeluMul {} |s, a, b| s.mul(gelu_tanh(s, a), b);
    SlopedMulPlusOne { alpha } |s, a, b| s.mul(sloped_silu(s, a, alpha), s.add(b, s.splat(1.0)));
    SigmoidMul {} |s, a, b| s.mul(a, sigmoid(s, b));
    ScaleMul { factor } |s, a, b| s.mul(s.mul(a, s.splat(factor)), b);
    Weighted { weight } |s, a, b| s.fma(s.splat(weight), b, a);
    ExpMinus { top } |s, a, _b| math::exp(s, s.sub(a, s.splat(top)));
    DivideBy { total } |s, a, _b| s.div(a, s.splat(total));
}

/// Bounds the first argument from above and the second from both sides. What is not a number stays so.
#[derive(Clone, Copy)]
struct Clamped<P> {
    limit: f32,
    then: P,
}
impl<P: Pairwise> Pairwise for Clamped<P> {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, a: S::F, b: S::F) -> S::F {
        let (most, least) = (s.splat(self.limit), s.splat(-self.limit));
        self.then.apply(s, s.min(most, a), s.max(least, s.min(most, b)))
    }
}

/// What is done to the gate's outputs before they meet those of `up`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `silu(gate) * up`.
    Silu,
    /// `gelu_tanh(gate) * up`.
    GeluTanh,
    /// `gate * sigmoid(alpha * gate) * (up + 1)`.
    SigmoidPlusOne {
        /// Slope of the sigmoid.
        alpha: f32,
    },
}

/// How the outputs of gate and up are combined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gating {
    /// The function.
    pub activation: Activation,
    /// Bounds gate from above and up from both sides before that.
    pub clamp: Option<f32>,
}

impl Gating {
    /// `silu(gate) * up`.
    pub const SILU: Gating = Gating { activation: Activation::Silu, clamp: None };

    /// `x = gated(x, y)`.
    ///
    /// # Safety
    /// As [`map2`].
    #[inline(always)]
    pub(crate) unsafe fn apply<S: Simd>(self, s: S, x: *mut f32, y: *const f32, n: usize) {
        // SAFETY: forwarded.
        unsafe {
            match self.activation {
                Activation::Silu => self.apply_with(s, x, y, n, SiluMul {}),
                Activation::GeluTanh => self.apply_with(s, x, y, n, GeluMul {}),
                Activation::SigmoidPlusOne { alpha } => {
                    self.apply_with(s, x, y, n, SlopedMulPlusOne { alpha });
                }
            }
        }
    }

    /// # Safety
    /// As [`map2`].
    #[inline(always)]
    unsafe fn apply_with<S: Simd, P: Pairwise>(self, s: S, x: *mut f32, y: *const f32, n: usize, then: P) {
        // SAFETY: forwarded.
        unsafe {
            match self.clamp {
                Some(limit) => map2(s, x, y, n, Clamped { limit, then }),
                None => map2(s, x, y, n, then),
            }
        }
    }
}

/// `x = f(x, y)`, 16 values at a time; the tail is padded with zeros.
///
/// # Safety
/// `x` and `y` have `n` values, `x` writable.
#[inline(always)]
pub(crate) unsafe fn map2<S: Simd, P: Pairwise>(s: S, x: *mut f32, y: *const f32, n: usize, f: P) {
    let whole = n / 16 * 16;
    // SAFETY: the caller vouches for n values; the tail goes through local arrays.
    unsafe {
        for i in (0..whole).step_by(16) {
            s.store(x.add(i), f.apply(s, s.load(x.add(i)), s.load(y.add(i))));
        }
        if whole < n {
            let (mut a, mut b) = ([0.0f32; 16], [0.0f32; 16]);
            std::ptr::copy_nonoverlapping(x.add(whole), a.as_mut_ptr(), n - whole);
            std::ptr::copy_nonoverlapping(y.add(whole), b.as_mut_ptr(), n - whole);
            s.store(a.as_mut_ptr(), f.apply(s, s.load(a.as_ptr()), s.load(b.as_ptr())));
            std::ptr::copy_nonoverlapping(a.as_ptr(), x.add(whole), n - whole);
        }
    }
}

/// Sum of squares in the canonical shape.
///
/// # Safety
/// `x` has `n` values.
#[inline(always)]
pub(crate) unsafe fn sum_of_squares<S: Simd>(s: S, x: *const f32, n: usize) -> f32 {
    let whole = n / 16 * 16;
    let mut acc = s.splat(0.0);
    // SAFETY: the caller vouches for n values.
    unsafe {
        for i in (0..whole).step_by(16) {
            let v = s.load(x.add(i));
            acc = s.fma(v, v, acc);
        }
        if whole < n {
            let mut tail = [0.0f32; 16];
            std::ptr::copy_nonoverlapping(x.add(whole), tail.as_mut_ptr(), n - whole);
            let v = s.load(tail.as_ptr());
            acc = s.fma(v, v, acc);
        }
    }
    s.reduce_add(acc)
}

/// `out = x * (1 / sqrt(mean(x^2) + eps)) * w`.
///
/// # Safety
/// `x`, `w` and `out` have `n` values; `out` may be `x`.
#[inline(always)]
pub(crate) unsafe fn norm_row<S: Simd>(
    s: S,
    x: *const f32,
    w: *const f32,
    eps: f32,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: forwarded.
    unsafe {
        let factor = 1.0 / (sum_of_squares(s, x, n) / n as f32 + eps).sqrt();
        if !std::ptr::eq(x, out) {
            std::ptr::copy_nonoverlapping(x, out, n);
        }
        map2(s, out, w, n, ScaleMul { factor });
    }
}

struct Norm<'a> {
    x: *const f32,
    w: &'a [f32],
    eps: f32,
    out: *mut f32,
    rows: usize,
}
impl Kernel for Norm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.w.len();
        for r in 0..self.rows {
            // SAFETY: `rms_norm` checked the lengths.
            unsafe { norm_row(s, self.x.add(r * n), self.w.as_ptr(), self.eps, self.out.add(r * n), n) };
        }
    }
}

/// RMS norm of rows `[rows, w.len()]`.
pub fn rms_norm(cores: &mut Cores, x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    let isa = cores.isa();
    assert_eq!(x.len(), out.len());
    let n = w.len().max(1);
    let to = SharedMut::new(out);
    over_rows(cores, x.len() / n, |first, last| {
        let x = &x[first * n..last * n];
        // SAFETY: inside `out`, which is as long as x.
        let out = unsafe { to.get().add(first * n) };
        dispatch(isa, Norm { x: x.as_ptr(), w, eps, out, rows: last - first });
    });
}

#[derive(Clone, Copy)]
enum Op {
    Add,
    Gate(Gating),
    SigmoidMul,
}
struct Binary {
    x: *mut f32,
    y: *const f32,
    n: usize,
    op: Op,
}
impl Kernel for Binary {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `binary` checked the lengths.
        unsafe {
            match self.op {
                Op::Add => map2(s, self.x, self.y, self.n, Add {}),
                Op::Gate(gating) => gating.apply(s, self.x, self.y, self.n),
                Op::SigmoidMul => map2(s, self.x, self.y, self.n, SigmoidMul {}),
            }
        }
    }
}
fn binary(cores: &mut Cores, x: &mut [f32], y: &[f32], op: Op) {
    let isa = cores.isa();
    assert_eq!(x.len(), y.len());
    const CHUNK: usize = 2048;
    let (n, to) = (x.len(), SharedMut::new(x));
    over_rows(cores, n.div_ceil(CHUNK), |first, last| {
        let (first, last) = (first * CHUNK, (last * CHUNK).min(n));
        // SAFETY: disjoint parts of x.
        let x = unsafe { to.get().add(first) };
        dispatch(isa, Binary { x, y: y[first..last].as_ptr(), n: last - first, op });
    });
}

/// `x += y`.
pub fn add(cores: &mut Cores, x: &mut [f32], y: &[f32]) {
    binary(cores, x, y, Op::Add);
}

/// `x = gated(x, y)`, `x` being the gate's outputs.
pub fn gate(cores: &mut Cores, gating: Gating, x: &mut [f32], y: &[f32]) {
    binary(cores, x, y, Op::Gate(gating));
}

/// `x = x * sigmoid(y)`.
pub fn sigmoid_mul(cores: &mut Cores, x: &mut [f32], y: &[f32]) {
    binary(cores, x, y, Op::SigmoidMul);
}

/// Adds `bias` to every row of `x` `[rows, bias.len()]`.
pub fn add_bias(cores: &mut Cores, x: &mut [f32], bias: &[f32]) {
    let isa = cores.isa();
    let n = bias.len().max(1);
    assert!(x.len().is_multiple_of(n));
    let (rows, to) = (x.len() / n, SharedMut::new(x));
    over_rows(cores, rows, |first, last| {
        for row in first..last {
            // SAFETY: rows are disjoint between threads and inside `x`.
            let x = unsafe { to.get().add(row * n) };
            dispatch(isa, Binary { x, y: bias.as_ptr(), n, op: Op::Add });
        }
    });
}

struct Softmax<'a>(&'a mut [f32]);
impl Kernel for Softmax<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let x = self.0;
        let top = x.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
        let (n, p) = (x.len(), x.as_mut_ptr());
        // SAFETY: n values at p; the tail's padding is not stored.
        unsafe {
            map2(s, p, p, n, ExpMinus { top });
            let mut acc = s.splat(0.0);
            for i in (0..n).step_by(16) {
                let mut part = [0.0f32; 16];
                std::ptr::copy_nonoverlapping(p.add(i), part.as_mut_ptr(), 16.min(n - i));
                acc = s.add(acc, s.load(part.as_ptr()));
            }
            let total = s.reduce_add(acc);
            map2(s, p, p, n, DivideBy { total });
        }
    }
}

/// Softmax of one row, in place.
pub fn softmax(isa: Isa, x: &mut [f32]) {
    dispatch(isa, Softmax(x));
}

/// The `k` largest of `scores` by falling value, ties to the lower index.
pub fn top_k(scores: &[f32], k: usize, out: &mut Vec<u32>) {
    out.clear();
    // What a score must exceed once `k` are held.
    let mut least = f32::NEG_INFINITY;
    for (i, &v) in scores.iter().enumerate() {
        if out.len() == k && v <= least {
            continue;
        }
        out.truncate(k.saturating_sub(1));
        let at = out.partition_point(|&j| scores[j as usize] >= v);
        out.insert(at, i as u32);
        if let Some(&last) = out.last() {
            least = scores[last as usize];
        }
    }
}

/// Routes rows of `scores` `[rows, experts]` (overwritten): softmax, the largest by falling weight into `experts` and
/// `weights` `[rows, k]`, the weights divided by their sum if `norm`.
pub fn route(
    cores: &mut Cores,
    scores: &mut [f32],
    width: usize,
    norm: bool,
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let isa = cores.isa();
    let rows = scores.len() / width.max(1);
    let k = experts.len() / rows.max(1);
    assert!(weights.len() == experts.len() && k <= width);
    let (scores, experts, weights) =
        (SharedMut::new(scores), SharedMut::new(experts), SharedMut::new(weights));
    over_rows(cores, rows, |first, last| {
        let mut best = Vec::with_capacity(k);
        for row in first..last {
            // SAFETY: rows are disjoint between threads and inside the three slices.
            let (scores, experts, weights) = unsafe {
                (
                    std::slice::from_raw_parts_mut(scores.get().add(row * width), width),
                    std::slice::from_raw_parts_mut(experts.get().add(row * k), k),
                    std::slice::from_raw_parts_mut(weights.get().add(row * k), k),
                )
            };
            softmax(isa, scores);
            top_k(scores, k, &mut best);
            experts.copy_from_slice(&best);
            let total: f32 = if norm { best.iter().map(|&e| scores[e as usize]).sum() } else { 1.0 };
            for (w, &e) in weights.iter_mut().zip(&best) {
                *w = scores[e as usize] / total;
            }
        }
    });
}

/// For each row of `x` `[rows, width]` by how much its largest value leads the second largest.
pub fn margins(cores: &mut Cores, x: &[f32], width: usize, out: &mut [f32]) {
    let isa = cores.isa();
    assert!(x.len() >= out.len() * width);
    let (rows, out) = (out.len(), SharedMut::new(out));
    over_rows(cores, rows, |first, last| {
        for row in first..last {
            let mut margin = 0.0;
            let row_of_x = &x[row * width..(row + 1) * width];
            dispatch(isa, Lead { x: row_of_x, out: &mut margin });
            // SAFETY: rows are disjoint between threads and inside `out`.
            unsafe { out.get().add(row).write(margin) };
        }
    });
}

struct Lead<'a> {
    x: &'a [f32],
    out: &'a mut f32,
}
impl Kernel for Lead<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (mut best, mut second) = (s.splat(f32::NEG_INFINITY), s.splat(f32::NEG_INFINITY));
        let (chunks, tail) = self.x.as_chunks::<16>();
        for chunk in chunks {
            // SAFETY: 16 values.
            let v = unsafe { s.load(chunk.as_ptr()) };
            second = s.max(second, s.min(best, v));
            best = s.max(best, v);
        }
        let mut all = [0.0f32; 32];
        // SAFETY: room for two vectors.
        unsafe {
            s.store(all.as_mut_ptr(), best);
            s.store(all.as_mut_ptr().add(16), second);
        }
        let lead = |(best, second): (f32, f32), &v: &f32| (best.max(v), second.max(best.min(v)));
        let (best, second) = all.iter().chain(tail).fold((f32::NEG_INFINITY, f32::NEG_INFINITY), lead);
        *self.out = best - second;
    }
}

/// Rotary frequencies (split half): pair `i` turns by `position * theta^(-2 i / dim)`, computed in f32 as the
/// references do.
#[derive(Debug, Clone)]
pub struct Rope {
    frequencies: Vec<f32>,
}

impl Rope {
    /// For `dim` rotated elements of a head.
    pub fn new(theta: f64, dim: usize) -> Rope {
        let log = ln64(theta);
        let frequency = |i: usize| exp64(-2.0 * i as f64 / dim as f64 * log) as f32;
        Rope { frequencies: (0..dim / 2).map(frequency).collect() }
    }

    /// With the frequency of every pair given.
    pub fn with_frequencies(frequencies: Vec<f32>) -> Rope {
        Rope { frequencies }
    }

    /// Rotated elements of a head.
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Appends `cos` then `sin` of every pair at `position`: `dim` values.
    pub fn angles(&self, position: usize, out: &mut Vec<f32>) {
        let at = out.len();
        let half = self.frequencies.len();
        out.resize(at + 2 * half, 0.0);
        for (i, f) in self.frequencies.iter().enumerate() {
            let (sin, cos) = sin_cos(f64::from(position as f32 * f));
            out[at + i] = cos as f32;
            out[at + half + i] = sin as f32;
        }
    }
}

/// Rotates the first `2 * half` elements of a head in place; `angles` are `cos` then `sin`.
///
/// # Safety
/// `x` has `2 * half` values, `angles` too.
#[inline(always)]
unsafe fn rotate<S: Simd>(s: S, x: *mut f32, angles: *const f32, half: usize) {
    let mut i = 0;
    // SAFETY: the caller vouches for the lengths; the tail goes through local arrays.
    unsafe {
        while i < half {
            let n = 16.min(half - i);
            let mut part = [[0.0f32; 16]; 4];
            std::ptr::copy_nonoverlapping(x.add(i), part[0].as_mut_ptr(), n);
            std::ptr::copy_nonoverlapping(x.add(half + i), part[1].as_mut_ptr(), n);
            std::ptr::copy_nonoverlapping(angles.add(i), part[2].as_mut_ptr(), n);
            std::ptr::copy_nonoverlapping(angles.add(half + i), part[3].as_mut_ptr(), n);
            let (a, b) = (s.load(part[0].as_ptr()), s.load(part[1].as_ptr()));
            let (cos, sin) = (s.load(part[2].as_ptr()), s.load(part[3].as_ptr()));
            let minus = s.sub(s.splat(0.0), s.mul(b, sin));
            let mut out = [0.0f32; 16];
            s.store(out.as_mut_ptr(), s.fma(a, cos, minus));
            std::ptr::copy_nonoverlapping(out.as_ptr(), x.add(i), n);
            s.store(out.as_mut_ptr(), s.fma(b, cos, s.mul(a, sin)));
            std::ptr::copy_nonoverlapping(out.as_ptr(), x.add(half + i), n);
            i += n;
        }
    }
}

/// Query or key heads on their way to attention.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// Heads of a row.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Distance of heads in the input (twice `head_dim` where a gate follows each query).
    pub head_stride: usize,
    /// RMS norm weight `[head_dim]`, if heads are normed.
    pub norm: Option<&'a [f32]>,
    /// Epsilon of that norm.
    pub eps: f32,
    /// Rotated elements.
    pub rotary_dim: usize,
}

struct PrepareHeads<'a> {
    spec: Heads<'a>,
    x: *const f32,
    angles: &'a [f32],
    out: *mut f32,
    first: usize,
    last: usize,
}
impl Kernel for PrepareHeads<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Heads { heads, head_dim, head_stride, norm, eps, rotary_dim } = self.spec;
        for row in self.first..self.last {
            for h in 0..heads {
                // SAFETY: `prepare_heads` checked the lengths.
                unsafe {
                    let x = self.x.add((row * heads + h) * head_stride);
                    let out = self.out.add((row * heads + h) * head_dim);
                    match norm {
                        Some(w) => norm_row(s, x, w.as_ptr(), eps, out, head_dim),
                        None => std::ptr::copy_nonoverlapping(x, out, head_dim),
                    }
                    rotate(s, out, self.angles.as_ptr().add(row * rotary_dim), rotary_dim / 2);
                }
            }
        }
    }
}

/// Norms and rotates the heads of rows `[rows, heads, head_stride]` into `[rows, heads, head_dim]`. `angles` has
/// `rotary_dim` values a row (see [`Rope::angles`]).
pub fn prepare_heads(cores: &mut Cores, spec: Heads<'_>, x: &[f32], angles: &[f32], out: &mut [f32]) {
    let isa = cores.isa();
    let rows = out.len() / (spec.heads * spec.head_dim).max(1);
    assert!(x.len() >= rows * spec.heads * spec.head_stride && spec.head_stride >= spec.head_dim);
    assert!(angles.len() >= rows * spec.rotary_dim && spec.rotary_dim <= spec.head_dim);
    assert!(spec.norm.is_none_or(|w| w.len() == spec.head_dim));
    let to = SharedMut::new(out);
    over_rows(cores, rows, |first, last| {
        dispatch(isa, PrepareHeads { spec, x: x.as_ptr(), angles, out: to.get(), first, last });
    });
}
