//! Row-wise arithmetic: norms, activations, sums, choices; rotary embedding in a module of its own. Rows are independent; with many of them the pool
//! shares them out.

use crate::math::{self, gelu_tanh, sigmoid, silu, sloped_silu};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Isa, Kernel, dispatch, partition};

mod rope;

pub use rope::{Heads, Rope, Stretch, prepare_heads};

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
    Scale { factor } |s, a, _b| s.mul(a, s.splat(factor));
    Cap { cap } |s, a, _b| s.mul(s.splat(cap), math::tanh(s, s.div(a, s.splat(cap))));
    Softplus {} |s, a, _b| math::softplus(s, a);
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
    Scale(f32),
    Cap(f32),
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
                Op::Scale(factor) => map2(s, self.x, self.x, self.n, Scale { factor }),
                Op::Cap(cap) => map2(s, self.x, self.x, self.n, Cap { cap }),
            }
        }
    }
}
/// An operation that looks at no second argument takes an empty one.
fn binary(cores: &mut Cores, x: &mut [f32], y: &[f32], op: Op) {
    let isa = cores.isa();
    assert!(x.len() == y.len() || matches!(op, Op::Scale(_) | Op::Cap(_)));
    const CHUNK: usize = 2048;
    let (n, to) = (x.len(), SharedMut::new(x));
    over_rows(cores, n.div_ceil(CHUNK), |first, last| {
        let (first, last) = (first * CHUNK, (last * CHUNK).min(n));
        // SAFETY: disjoint parts of x.
        let x = unsafe { to.get().add(first) };
        let y = y.get(first..last).unwrap_or_default().as_ptr();
        dispatch(isa, Binary { x, y, n: last - first, op });
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

/// `x = cap * tanh(scale * x / cap)`; without a cap, `x = scale * x`.
pub fn cap(cores: &mut Cores, x: &mut [f32], scale: f32, cap: Option<f32>) {
    if scale != 1.0 {
        binary(cores, x, &[], Op::Scale(scale));
    }
    if let Some(cap) = cap {
        binary(cores, x, &[], Op::Cap(cap));
    }
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

/// Over which experts a router's scores are softmaxed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SoftmaxOver {
    /// All of them; the chosen ones' weights are then divided by their sum if `norm`.
    All {
        /// Whether they are.
        norm: bool,
    },
    /// The chosen ones.
    Chosen,
}

/// Routes rows of `scores` `[rows, experts]` (overwritten): softmax, the largest by falling weight into `experts` and
/// `weights` `[rows, k]`.
pub fn route(
    cores: &mut Cores,
    scores: &mut [f32],
    width: usize,
    over: SoftmaxOver,
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
            if over != SoftmaxOver::Chosen {
                softmax(isa, scores);
            }
            top_k(scores, k, &mut best);
            experts.copy_from_slice(&best);
            let norm = over == SoftmaxOver::All { norm: true };
            let total: f32 = if norm { best.iter().map(|&e| scores[e as usize]).sum() } else { 1.0 };
            for (w, &e) in weights.iter_mut().zip(&best) {
                *w = scores[e as usize] / total;
            }
            if over == SoftmaxOver::Chosen {
                softmax(isa, weights);
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
