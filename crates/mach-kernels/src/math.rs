//! Elementary functions of our own, so that no result depends on a platform's libm: vector `exp` and its relatives in
//! f32, and scalar f64 functions (plain sums and products only) for tables of the host's.

use crate::simd::Simd;

/// Below this `exp` returns 0. Far from where values become subnormal: devices may flush those.
const EXP_MIN: f32 = -64.0;
/// From here on `exp` stays what it is; its reciprocal is still a normal number.
const EXP_MAX: f32 = 87.0;

/// `e^x` for x up to 87, relative error below 2e-7; 0 below -64. Range reduction by ln 2 and a polynomial of degree 6
/// (coefficients: the Cephes library's minimax fit of `expf`).
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    let clamped = s.max(s.min(x, s.splat(EXP_MAX)), s.splat(EXP_MIN));
    let n = s.to_int(s.mul(clamped, s.splat(std::f32::consts::LOG2_E)));
    let nf = s.to_float(n);
    let r = s.fma(nf, s.splat(-0.693_359_4), clamped);
    let r = s.fma(nf, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    p = s.fma(p, r, s.splat(1.398_199_9e-3));
    p = s.fma(p, r, s.splat(8.333_452e-3));
    p = s.fma(p, r, s.splat(4.166_579_6e-2));
    p = s.fma(p, r, s.splat(0.166_666_65));
    p = s.fma(p, r, s.splat(0.5));
    let p = s.fma(p, s.mul(r, r), s.add(r, s.splat(1.0)));
    s.zero_below(x, EXP_MIN, s.mul(p, s.exp2_int(n)))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(one, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// `x * sigmoid(x)`.
#[inline(always)]
pub fn silu<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.div(x, s.add(one, exp(s, s.sub(s.splat(0.0), x))))
}

/// `x * sigmoid(alpha * x)`.
#[inline(always)]
pub fn sloped_silu<S: Simd>(s: S, x: S::F, alpha: f32) -> S::F {
    let one = s.splat(1.0);
    s.div(x, s.add(one, exp(s, s.sub(s.splat(0.0), s.mul(x, s.splat(alpha))))))
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`, by way of `(1 + tanh z) / 2 = sigmoid(2 z)`.
#[inline(always)]
pub fn gelu_tanh<S: Simd>(s: S, x: S::F) -> S::F {
    // 2 sqrt(2 / pi).
    const SLOPE: f32 = 1.595_769;
    let cubic = s.fma(s.mul(x, x), s.splat(0.044_715), s.splat(1.0));
    let z = s.mul(s.mul(x, s.splat(SLOPE)), cubic);
    let one = s.splat(1.0);
    s.div(x, s.add(one, exp(s, s.sub(s.splat(0.0), z))))
}

/// `ln(1 + e^x)`, relative error below 4e-7; 0 below -64. With `t = e^-|x|` it is `max(x, 0) + ln(1 + t)`, and
/// `ln(1 + t) = 2 artanh(t / (2 + t))` by seven terms of the series.
#[inline(always)]
pub fn softplus<S: Simd>(s: S, x: S::F) -> S::F {
    let zero = s.splat(0.0);
    let t = exp(s, s.sub(zero, s.abs(x)));
    let z = s.div(t, s.add(t, s.splat(2.0)));
    let z2 = s.mul(z, z);
    let mut p = s.splat(1.0 / 13.0);
    for term in [1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 1.0 / 5.0, 1.0 / 3.0] {
        p = s.fma(p, z2, s.splat(term));
    }
    let twice = s.add(z, z);
    s.add(s.max(x, zero), s.fma(s.mul(twice, z2), p, twice))
}

/// `tanh(x)`, absolute error below 2e-7, by way of `1 - 2 / (1 + e^2x)`.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let one = s.splat(1.0);
    s.sub(one, s.div(s.splat(2.0), s.add(one, exp(s, s.add(x, x)))))
}

/// `1 / k!`.
const INVERSE_FACTORIALS: [f64; 18] = {
    let mut table = [1.0; 18];
    let mut k = 1;
    while k < table.len() {
        table[k] = table[k - 1] / k as f64;
        k += 1;
    }
    table
};

/// `1 / (2 k + 1)`.
const INVERSE_ODD: [f64; 14] = {
    let mut table = [1.0; 14];
    let mut k = 1;
    while k < table.len() {
        table[k] = 1.0 / (2 * k + 1) as f64;
        k += 1;
    }
    table
};

/// `e^x` in f64 by plain arithmetic; relative error about 1e-16 for |x| < 700.
pub fn exp64(x: f64) -> f64 {
    let x = x.clamp(-700.0, 700.0);
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = (x - n * 6.931_471_803_691_238e-1) - n * 1.908_214_929_270_587_7e-10;
    let p = INVERSE_FACTORIALS[..15].iter().rev().fold(0.0, |p, c| p * r + c);
    p * f64::from_bits(((1023 + n as i64) as u64) << 52)
}

/// Natural logarithm of a positive normal f64 by plain arithmetic; other arguments give NaN or minus infinity.
pub fn ln64(x: f64) -> f64 {
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if !(x >= f64::MIN_POSITIVE && x.is_finite()) {
        return if x == f64::INFINITY { x } else { f64::NAN };
    }
    let bits = x.to_bits();
    let mut e = ((bits >> 52) as i64) - 1023;
    let mut m = f64::from_bits((bits & 0x000F_FFFF_FFFF_FFFF) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    // ln m = 2 artanh((m - 1) / (m + 1))
    let t = (m - 1.0) / (m + 1.0);
    let t2 = t * t;
    let sum = INVERSE_ODD.iter().rev().fold(0.0, |sum, c| sum * t2 + c);
    e as f64 * 6.931_471_803_691_238e-1 + (2.0 * t * sum + e as f64 * 1.908_214_929_270_587_7e-10)
}

/// Sine and cosine of an angle up to 2^20 or so, by plain arithmetic.
pub fn sin_cos(x: f64) -> (f64, f64) {
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    // pi/2 in three parts of 33 bits: the products with n are exact.
    let r =
        ((x - n * 1.570_796_326_734_125_6) - n * 6.077_100_506_303_966e-11) - n * 2.022_266_248_795_950_7e-21;
    let r2 = r * r;
    let (mut s, mut c) = (0.0, 0.0);
    for k in (0..8).rev() {
        // Alternating signs: 1/(2k+1)! - r^2 (...), 1/(2k)! - r^2 (...).
        s = INVERSE_FACTORIALS[2 * k + 1] - r2 * s;
        c = INVERSE_FACTORIALS[2 * k] - r2 * c;
    }
    let s = s * r;
    match (n as i64).rem_euclid(4) {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, Kernel, dispatch};

    #[test]
    fn scalar_functions_are_close_to_libm() {
        for i in -4000..4000 {
            let x = f64::from(i) * 0.01;
            assert!((exp64(x) - x.exp()).abs() <= 1e-15 * x.exp() * 4.0, "exp {x}");
            let p = x.exp();
            assert!((ln64(p) - x).abs() <= 1e-14 * x.abs().max(1.0), "ln {p}");
        }
        for i in 0..200_000 {
            let x = f64::from(i) * 1.3;
            let (s, c) = sin_cos(x);
            assert!((s - x.sin()).abs() < 1e-12 && (c - x.cos()).abs() < 1e-12, "sin_cos {x}: {s} {c}");
        }
        assert_eq!(ln64(0.0), f64::NEG_INFINITY);
        assert!(ln64(-1.0).is_nan());
    }

    struct Exp<'a>(&'a [f32], &'a mut [f32]);
    impl Kernel for Exp<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks_exact(16).zip(self.1.chunks_exact_mut(16)) {
                // SAFETY: chunks of 16.
                unsafe { s.store(y.as_mut_ptr(), exp(s, s.load(x.as_ptr()))) };
            }
        }
    }

    struct Bends<'a>(&'a [f32], &'a mut [f32]);
    impl Kernel for Bends<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks_exact(16).zip(self.1.chunks_exact_mut(32)) {
                // SAFETY: chunks of 16 and of twice as many.
                unsafe {
                    let x = s.load(x.as_ptr());
                    s.store(y.as_mut_ptr(), softplus(s, x));
                    s.store(y.as_mut_ptr().add(16), tanh(s, x));
                }
            }
        }
    }

    #[test]
    fn softplus_and_tanh_are_accurate_and_the_same_everywhere() {
        let x: Vec<f32> = (0..64_000)
            .map(|i| -80.0 + i as f32 * 0.0025)
            .chain([-1e20, -1e9, -200.0, -0.0, 0.0, 200.0, 1e9, 1e20])
            .chain([0.0; 8])
            .collect();
        let mut reference = vec![0.0; 2 * x.len()];
        dispatch(Isa::SCALAR, Bends(&x, &mut reference));
        for (i, &x) in x.iter().enumerate() {
            let at = i / 16 * 32 + i % 16;
            let (plus, tanh) = (f64::from(reference[at]), f64::from(reference[at + 16]));
            let wide = f64::from(x);
            let exact = if x < EXP_MIN { 0.0 } else { wide.max(0.0) + (-wide.abs()).exp().ln_1p() };
            assert!((plus - exact).abs() <= 4e-7 * exact, "softplus {x}: {plus} {exact}");
            assert!((tanh - wide.tanh()).abs() <= 2e-7, "tanh {x}: {tanh}");
        }
        for isa in Isa::available() {
            let mut y = vec![0.0; 2 * x.len()];
            dispatch(isa, Bends(&x, &mut y));
            assert!(y.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
        }
    }

    struct Gates<'a>(&'a [f32], &'a mut [f32]);
    impl Kernel for Gates<'_> {
        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            for (x, y) in self.0.chunks_exact(16).zip(self.1.chunks_exact_mut(32)) {
                // SAFETY: chunks of 16 and of twice as many.
                unsafe {
                    let x = s.load(x.as_ptr());
                    s.store(y.as_mut_ptr(), gelu_tanh(s, x));
                    s.store(y.as_mut_ptr().add(16), sloped_silu(s, x, 1.702));
                }
            }
        }
    }

    #[test]
    fn gates_are_accurate_and_the_same_everywhere() {
        let x: Vec<f32> = (0..64_000)
            .map(|i| -40.0 + i as f32 * 0.00125)
            .chain([-1e20, -1e9, -200.0, -0.0, 0.0, 200.0, 1e9, 1e20])
            .chain([0.0; 8])
            .collect();
        let mut reference = vec![0.0; 2 * x.len()];
        dispatch(Isa::SCALAR, Gates(&x, &mut reference));
        for (i, x) in x.iter().enumerate() {
            let at = i / 16 * 32 + i % 16;
            let wide = f64::from(*x);
            let gelu = 0.5
                * wide
                * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3))).tanh());
            let sloped = wide / (1.0 + (-1.702 * wide).exp());
            for (y, exact) in [(reference[at], gelu), (reference[at + 16], sloped)] {
                let error = (f64::from(y) - exact).abs();
                assert!(error <= 4e-6 * exact.abs().max(1e-3), "{x}: {y} {exact}");
            }
        }
        for isa in Isa::available() {
            let mut y = vec![0.0; 2 * x.len()];
            dispatch(isa, Gates(&x, &mut y));
            assert!(y.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
        }
    }

    #[test]
    fn vector_exp_is_accurate_and_the_same_everywhere() {
        let x: Vec<f32> = (0..64_000).map(|i| -100.0 + i as f32 * 0.0029).collect();
        let mut reference = vec![0.0; x.len()];
        dispatch(Isa::SCALAR, Exp(&x, &mut reference));
        for (x, y) in x.iter().zip(&reference) {
            let exact = if *x < EXP_MIN { 0.0 } else { f64::from(*x).exp() };
            assert!((f64::from(*y) - exact).abs() <= 2e-7 * exact, "{x}: {y} {exact}");
        }
        for isa in Isa::available() {
            let mut y = vec![0.0; x.len()];
            dispatch(isa, Exp(&x, &mut y));
            assert!(y.iter().zip(&reference).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa}");
        }
    }
}
