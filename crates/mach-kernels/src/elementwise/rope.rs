//! Rotary embedding, and the norm of heads that goes before it.

use crate::math::{exp64, ln64, sin_cos};
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch};

use super::{norm_row, over_rows};

/// Rotary frequencies (split half): pair `i` turns by `position * theta^(-2 i / dim)`, computed in f32 as the
/// references do.
#[derive(Debug, Clone)]
pub struct Rope {
    frequencies: Vec<f32>,
    /// Multiplies cosines and sines.
    magnitude: f32,
}

/// How a rotary embedding is stretched over a longer context (Peng et al., "YaRN", 2023).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stretch {
    /// By how much.
    pub factor: f64,
    /// Positions before it.
    pub original: usize,
    /// Rotations over those positions above which a frequency stays as it is.
    pub beta_fast: f64,
    /// Rotations below which it is divided in full.
    pub beta_slow: f64,
    /// Whether the bounds between these are whole pairs.
    pub truncate: bool,
    /// Multiplies cosines and sines.
    pub magnitude: f64,
}

impl Stretch {
    /// How much of pair `i` of `dim / 2` is divided, for each pair: 0 nothing, 1 all of it.
    fn ramp(&self, theta: f64, dim: usize) -> impl Fn(usize) -> f64 {
        // The pair that turns `rotations` times over the original positions.
        let pair = |rotations: f64| {
            dim as f64 * ln64(self.original as f64 / (std::f64::consts::TAU * rotations))
                / (2.0 * ln64(theta))
        };
        let (mut low, mut high) = (pair(self.beta_fast), pair(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        move |i| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)
    }
}

impl Rope {
    /// For `dim` rotated elements of a head.
    pub fn new(theta: f64, dim: usize) -> Rope {
        let log = ln64(theta);
        let frequency = |i: usize| exp64(-2.0 * i as f64 / dim as f64 * log) as f32;
        Rope { frequencies: (0..dim / 2).map(frequency).collect(), magnitude: 1.0 }
    }

    /// As [`new`](Self::new), low frequencies divided.
    pub fn stretched(theta: f64, dim: usize, stretch: &Stretch) -> Rope {
        let (log, ramp) = (ln64(theta), stretch.ramp(theta, dim));
        let frequency = |i: usize| {
            let (plain, share) = (exp64(-2.0 * i as f64 / dim as f64 * log), ramp(i));
            (plain / stretch.factor * share + plain * (1.0 - share)) as f32
        };
        let frequencies = (0..dim / 2).map(frequency).collect();
        Rope { frequencies, magnitude: stretch.magnitude as f32 }
    }

    /// By the frequencies of the pairs.
    pub fn of(frequencies: Vec<f32>) -> Rope {
        Rope { frequencies, magnitude: 1.0 }
    }

    /// Rotated elements of a head.
    pub fn dim(&self) -> usize {
        2 * self.frequencies.len()
    }

    /// Appends `cos` then `sin` of every pair at `position`, times the magnitude: `dim` values.
    pub fn angles(&self, position: usize, out: &mut Vec<f32>) {
        let at = out.len();
        let half = self.frequencies.len();
        out.resize(at + 2 * half, 0.0);
        for (i, f) in self.frequencies.iter().enumerate() {
            let (sin, cos) = sin_cos(f64::from(position as f32 * f));
            out[at + i] = cos as f32 * self.magnitude;
            out[at + half + i] = sin as f32 * self.magnitude;
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
