//! Several residual streams in place of one, mixed around every block (Xie et al., "mHC: Manifold-Constrained
//! Hyper-Connections", 2025). Everything is f32; products go by column modulo 16, then the tree; sums over streams ascend.

use crate::elementwise::{over_rows, sum_of_squares};
use crate::math::{exp, sigmoid};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch, partition};

/// Most streams.
pub const MOST: usize = 16;

/// Sizes and constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StreamShape {
    /// Streams, at most [`MOST`].
    pub streams: usize,
    /// Width of each, a multiple of 16.
    pub hidden: usize,
    /// Normalisations of the mixing matrix by columns; by rows one fewer.
    pub iterations: usize,
    /// Added to weights and to what is divided by.
    pub eps: f32,
    /// Epsilon of the RMS norm before the projection.
    pub norm_eps: f32,
}

/// Weights of one place where streams meet a block, or of the end of the model.
#[derive(Debug, Clone, Copy)]
pub struct StreamWeights<'a> {
    /// `[outputs, streams * hidden]`: weights of the block's input, weights of its output, the mixing matrix `[streams,
    /// streams]`; of these only the first at the end of the model.
    pub project: &'a [f32],
    /// `[outputs]`.
    pub base: &'a [f32],
    /// One for each of the three, or one.
    pub scale: &'a [f32],
}

impl StreamShape {
    /// Projections of a place where streams meet a block.
    pub fn outputs(&self) -> usize {
        (2 + self.streams) * self.streams
    }

    /// Values that [`collapse`] leaves for [`mix`] of each row: weights of the block's output, the matrix.
    pub fn mixing(&self) -> usize {
        (1 + self.streams) * self.streams
    }
}

/// Projections of rows: `dots[row, o]` for every output and, last, the row's sum of squares.
struct Project<'a> {
    x: &'a [f32],
    project: &'a [f32],
    width: usize,
    outputs: usize,
    jobs: std::ops::Range<usize>,
    dots: *mut f32,
}

impl Kernel for Project<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.width;
        for job in self.jobs.start..self.jobs.end {
            let (row, o) = (job / (self.outputs + 1), job % (self.outputs + 1));
            let x = self.x[row * n..(row + 1) * n].as_ptr();
            // SAFETY: `n` values of each, a multiple of 16; `dots` has a place for every job.
            unsafe {
                let dot = if o == self.outputs {
                    sum_of_squares(s, x, n)
                } else {
                    let w = self.project[o * n..(o + 1) * n].as_ptr();
                    let mut acc = s.splat(0.0);
                    for c in (0..n).step_by(16) {
                        acc = s.fma(s.load(w.add(c)), s.load(x.add(c)), acc);
                    }
                    s.reduce_add(acc)
                };
                self.dots.add(job).write(dot);
            }
        }
    }
}

/// From projections to weights, and the weighted sum of the streams.
struct Collapse<'a> {
    shape: &'a StreamShape,
    weights: &'a StreamWeights<'a>,
    x: &'a [f32],
    dots: &'a [f32],
    mixing: *mut f32,
    out: *mut f32,
    first: usize,
    last: usize,
}

/// `f` of each value.
#[inline(always)]
fn each<S: Simd>(s: S, x: &mut [f32], f: impl Fn(S, S::F) -> S::F) {
    for chunk in x.chunks_mut(16) {
        let mut part = [0.0f32; 16];
        part[..chunk.len()].copy_from_slice(chunk);
        // SAFETY: 16 values.
        unsafe { s.store(part.as_mut_ptr(), f(s, s.load(part.as_ptr()))) };
        chunk.copy_from_slice(&part[..chunk.len()]);
    }
}

impl Kernel for Collapse<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let StreamShape { streams: n, hidden, iterations, eps, norm_eps } = *self.shape;
        let outputs = self.weights.base.len();
        let width = n * hidden;
        let mut m = [0.0f32; (2 + MOST) * MOST];
        for row in self.first..self.last {
            let dots = &self.dots[row * (outputs + 1)..(row + 1) * (outputs + 1)];
            let factor = 1.0 / (dots[outputs] / width as f32 + norm_eps).sqrt();
            for (o, m) in m[..outputs].iter_mut().enumerate() {
                let scale = self.weights.scale[(o / n).min(2).min(self.weights.scale.len() - 1)];
                *m = dots[o] * factor * scale + self.weights.base[o];
            }
            let (gates, matrix) = m[..outputs].split_at_mut((2 * n).min(outputs));
            each(s, gates, |s, x| sigmoid(s, x));
            let (pre, post) = gates.split_at_mut(n);
            pre.iter_mut().for_each(|w| *w += eps);
            if !matrix.is_empty() {
                post.iter_mut().for_each(|w| *w *= 2.0);
                softmax_rows(s, matrix, n);
                sinkhorn(matrix, n, iterations, eps);
                let count = self.shape.mixing();
                // SAFETY: `collapse` made room for every row's; rows are disjoint between threads.
                let to = unsafe { std::slice::from_raw_parts_mut(self.mixing.add(row * count), count) };
                to[..n].copy_from_slice(post);
                to[n..].copy_from_slice(matrix);
            }
            let x = self.x[row * width..(row + 1) * width].as_ptr();
            for c in (0..hidden).step_by(16) {
                let mut acc = s.splat(0.0);
                for (j, w) in pre.iter().enumerate() {
                    // SAFETY: a row has `streams * hidden` values.
                    acc = unsafe { s.fma(s.splat(*w), s.load(x.add(j * hidden + c)), acc) };
                }
                // SAFETY: `out` has `hidden` values a row; rows are disjoint between threads.
                unsafe { s.store(self.out.add(row * hidden + c), acc) };
            }
        }
    }
}

#[inline(always)]
fn softmax_rows<S: Simd>(s: S, matrix: &mut [f32], n: usize) {
    for row in matrix.chunks_exact_mut(n) {
        let top = row.iter().fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m });
        each(s, row, |s, x| exp(s, s.sub(x, s.splat(top))));
        let total: f32 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= total);
    }
}

/// Makes rows and columns sum to one, nearly.
#[inline(always)]
fn sinkhorn(matrix: &mut [f32], n: usize, iterations: usize, eps: f32) {
    matrix.iter_mut().for_each(|v| *v += eps);
    columns(matrix, n, eps);
    for _ in 1..iterations {
        for row in matrix.chunks_exact_mut(n) {
            let total = row.iter().sum::<f32>() + eps;
            row.iter_mut().for_each(|v| *v /= total);
        }
        columns(matrix, n, eps);
    }
}

#[inline(always)]
fn columns(matrix: &mut [f32], n: usize, eps: f32) {
    for k in 0..n {
        let total = (0..n).map(|j| matrix[j * n + k]).sum::<f32>() + eps;
        (0..n).for_each(|j| matrix[j * n + k] /= total);
    }
}

/// Working memory of [`collapse`].
#[derive(Debug, Default)]
pub struct StreamScratch {
    dots: Vec<f32>,
}

/// From streams `[rows, streams, hidden]` to a block's input `[rows, hidden]`, and to what [`mix`] needs after it; at the
/// end of the model (as many outputs as streams) `mixing` is left alone.
///
/// # Panics
/// If shape, weights and rows do not fit each other: a programming error.
pub fn collapse(
    cores: &mut Cores,
    shape: &StreamShape,
    weights: &StreamWeights<'_>,
    x: &[f32],
    scratch: &mut StreamScratch,
    mixing: &mut Vec<f32>,
    out: &mut [f32],
) {
    let (isa, threads) = (cores.isa(), cores.threads());
    let StreamShape { streams, hidden, .. } = *shape;
    let (width, outputs) = (streams * hidden, weights.base.len());
    let rows = out.len() / hidden;
    let whole = outputs == shape.outputs();
    assert!(hidden.is_multiple_of(16) && streams <= MOST && x.len() >= rows * width);
    assert!(whole || outputs == streams);
    assert!(weights.project.len() == outputs * width && weights.scale.len() == if whole { 3 } else { 1 });
    if whole {
        mixing.resize(rows * shape.mixing(), 0.0);
    }
    scratch.dots.resize(rows * (outputs + 1), 0.0);
    let (dots, project) = (SharedMut::new(&mut scratch.dots), weights.project);
    cores.run(|t| {
        let jobs = partition(rows * (outputs + 1), threads, t);
        dispatch(isa, Project { x, project, width, outputs, jobs, dots: dots.get() });
    });
    let (dots, mixing, out) = (&scratch.dots, SharedMut::new(mixing), SharedMut::new(out));
    over_rows(cores, rows, |first, last| {
        let (mixing, out) = (mixing.get(), out.get());
        dispatch(isa, Collapse { shape, weights, x, dots, mixing, out, first, last });
    });
}

struct Mix<'a> {
    shape: &'a StreamShape,
    mixing: &'a [f32],
    y: &'a [f32],
    x: *mut f32,
    first: usize,
    last: usize,
}

impl Kernel for Mix<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let StreamShape { streams: n, hidden, .. } = *self.shape;
        for row in self.first..self.last {
            let (post, matrix) = self.mixing[row * (1 + n) * n..(row + 1) * (1 + n) * n].split_at(n);
            let y = self.y[row * hidden..(row + 1) * hidden].as_ptr();
            // SAFETY: `mix` checked the lengths; rows are disjoint between threads.
            unsafe {
                let x = self.x.add(row * n * hidden);
                for c in (0..hidden).step_by(16) {
                    let y = s.load(y.add(c));
                    let mut before = [s.splat(0.0); MOST];
                    for j in 0..n {
                        before[j] = s.load(x.add(j * hidden + c));
                    }
                    for k in 0..n {
                        let mut acc = s.mul(s.splat(post[k]), y);
                        for j in 0..n {
                            acc = s.fma(s.splat(matrix[j * n + k]), before[j], acc);
                        }
                        s.store(x.add(k * hidden + c), acc);
                    }
                }
            }
        }
    }
}

/// After a block: stream `k` becomes `post_k y + sum_j C[j, k] X_j`.
///
/// # Panics
/// If shape and rows do not fit each other: a programming error.
pub fn mix(cores: &mut Cores, shape: &StreamShape, mixing: &[f32], y: &[f32], x: &mut [f32]) {
    let isa = cores.isa();
    let rows = y.len() / shape.hidden;
    assert!(shape.streams <= MOST && shape.hidden.is_multiple_of(16));
    assert!(mixing.len() >= rows * shape.mixing() && x.len() >= rows * shape.streams * shape.hidden);
    let to = SharedMut::new(x);
    over_rows(cores, rows, |first, last| {
        dispatch(isa, Mix { shape, mixing, y, x: to.get(), first, last });
    });
}
