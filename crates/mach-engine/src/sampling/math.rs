//! `exp` and `ln` that give the same bits on every machine: only IEEE additions, multiplications and divisions.

/// `e^x` for `x <= 0`; relative error below 1.5e-7; 0 below -87.
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let x = if x < -87.0 { -87.0 } else { x };
    let n = (x * std::f32::consts::LOG2_E + ROUND) - ROUND;
    let r = (x - n * 0.693_145_75) - n * 1.428_606_8e-6;
    let high = 1.388_888_9e-3 + r * 1.984_127e-4;
    let p = 1.0
        + r * (1.0 + r * (0.5 + r * (0.166_666_67 + r * (4.166_666_8e-2 + r * (8.333_334e-3 + r * high)))));
    let scale = f32::from_bits((((n as i32) + 127) << 23) as u32);
    if x <= -87.0 { 0.0 } else { p * scale }
}

/// Natural logarithm of a positive, normal `x`; relative error below 1e-15.
pub(crate) fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut e = ((bits >> 52) as i64) - 1023;
    let mut m = f64::from_bits((bits & 0x000f_ffff_ffff_ffff) | 0x3ff0_0000_0000_0000);
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    let f = (m - 1.0) / (m + 1.0);
    let f2 = f * f;
    let mut series = 0.0;
    let mut k = 23;
    while k >= 1 {
        series = series * f2 + 1.0 / k as f64;
        k -= 2;
    }
    e as f64 * std::f64::consts::LN_2 + 2.0 * f * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_libm() {
        for i in 0..200_000 {
            let x = -(i as f32) * 4.3e-4;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= 1.5e-7 * want, "{x}: {got} {want}");
        }
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn ln_is_close_to_libm() {
        for i in 1..200_000 {
            let x = f64::from(i) * 1.7e-5;
            let error = (ln(x) - x.ln()).abs();
            assert!(error <= 1e-15 * x.ln().abs().max(1.0), "{x}: {error}");
        }
        assert!((ln(1e-300) - 1e-300f64.ln()).abs() < 1e-12);
        assert_eq!(ln(1.0), 0.0);
    }
}
