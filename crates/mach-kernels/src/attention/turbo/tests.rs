use super::*;
use crate::{Isa, Kernel, dispatch};

/// `n` values, the sums of twelve uniform ones: close to normal.
fn normal(seed: u64, n: usize) -> Vec<f32> {
    let uniform = |i: u64| (mix(seed ^ i) >> 40) as f32 / (1u64 << 24) as f32;
    (0..n as u64).map(|i| (0..12).map(|k| uniform(12 * i + k)).sum::<f32>() - 6.0).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

struct Decode<'a>(Width, &'a [u32], &'a mut [f32]);

impl Kernel for Decode<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (chunk, out) in self.2.chunks_exact_mut(CHUNK).enumerate() {
            let row = self.1.as_ptr();
            // SAFETY: the row has as many chunks as `out`.
            unsafe {
                let levels = match self.0 {
                    Width::Two => decode::<S, 2>(s, row, chunk),
                    Width::Three => decode::<S, 3>(s, row, chunk),
                    Width::Four => decode::<S, 4>(s, row, chunk),
                    Width::Eight => decode::<S, 8>(s, row, chunk),
                };
                for (v, level) in levels.into_iter().enumerate() {
                    s.store(out.as_mut_ptr().add(16 * v), s.mul(level, s.splat(scale(row))));
                }
            }
        }
    }
}

/// What a rotated vector becomes.
fn through(isa: Isa, width: Width, x: &[f32], dim: usize) -> Vec<f32> {
    let mut row = vec![0; 1 + x.len() * width.bits() / 32];
    encode(width, x, dim, &mut row);
    let mut out = vec![f32::NAN; x.len()];
    dispatch(isa, Decode(width, &row, &mut out));
    out
}

/// Lloyd's condition: a level is the mean of what is nearest to it.
#[test]
fn levels_are_the_means_of_their_cells() {
    for levels in [&LEVELS_2[..], &LEVELS_3, &LEVELS_4] {
        for (i, &level) in levels.iter().enumerate() {
            let edge = |i: usize| f64::from(levels[i] + levels[i + 1]) / 2.0;
            let low = if i == 0 { 0.0 } else { edge(i - 1) };
            let high = if i + 1 == levels.len() { 12.0 } else { edge(i) };
            let steps = 400_000;
            let (mut mass, mut moment) = (0.0, 0.0);
            for step in 0..steps {
                let x = low + (high - low) * (f64::from(step) + 0.5) / f64::from(steps);
                let density = (-x * x / 2.0).exp();
                mass += density;
                moment += x * density;
            }
            assert!((moment / mass - f64::from(level)).abs() < 1e-6, "level {level}: {}", moment / mass);
        }
    }
}

#[test]
fn rotations_keep_lengths_and_are_undone() {
    for dim in [16, 64, 80, 96, 128, 192, 256] {
        let rotation = Rotation::new(dim);
        let x = normal(dim as u64, dim);
        let mut turned = x.clone();
        turned.resize(padded(dim), 1.0);
        rotation.forward(&mut turned);
        assert!((dot(&turned, &turned) / dot(&x, &x) - 1.0).abs() < 1e-5, "{dim}");
        rotation.backward(&mut turned);
        assert!(x.iter().zip(&turned).all(|(a, b)| (a - b).abs() < 1e-5), "{dim}");
    }
}

/// A vector with one large coordinate has coordinates like those of any other afterwards.
#[test]
fn one_large_coordinate_is_spread() {
    for dim in [64, 128, 256] {
        let mut x = vec![0.0; dim];
        x[dim / 3] = 1.0;
        Rotation::new(dim).forward(&mut x);
        let fourth: f64 = x.iter().map(|&x| f64::from(x).powi(4)).sum::<f64>() * dim as f64;
        // 3 for a normal distribution, 1 where all magnitudes are equal.
        assert!((1.8..4.5).contains(&fourth), "{dim}: {fourth}");
    }
}

#[test]
fn errors_are_those_of_the_codebooks() {
    // Mean squared errors of the Lloyd-Max codebooks; scaling without bias makes them e / (1 - e).
    for (width, error) in
        [(Width::Two, 0.1175), (Width::Three, 0.03455), (Width::Four, 0.0095), (Width::Eight, 6e-5)]
    {
        let (dim, mut lost, mut along) = (256, 0.0, 0.0);
        for seed in 0..200 {
            let x = normal(seed, dim);
            let y = through(Isa::SCALAR, width, &x, dim);
            lost += x.iter().zip(&y).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>() / dot(&x, &x);
            along += dot(&x, &y) / dot(&x, &x);
        }
        let (lost, along) = (lost / 200.0, along / 200.0);
        assert!(lost < 1.1 * error / (1.0 - error), "{width:?}: {lost}");
        assert!((along - 1.0).abs() < 1e-5, "{width:?}: {along} of the vector");
    }
}

#[test]
fn rows_are_the_same_everywhere() {
    for dim in [64, 80, 128, 256] {
        for width in Width::ALL {
            let mut x = normal(7, dim);
            x.resize(padded(dim), 0.0);
            let expected = through(Isa::SCALAR, width, &x, dim);
            for isa in Isa::available() {
                let got = through(isa, width, &x, dim);
                assert!(
                    got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{isa} {width:?}"
                );
            }
        }
    }
}

#[test]
fn nothing_stays_nothing() {
    for width in Width::ALL {
        assert!(through(Isa::SCALAR, width, &[0.0; 64], 64).iter().all(|&x| x == 0.0));
        let mut broken = [1.0; 64];
        broken[3] = f32::INFINITY;
        assert!(through(Isa::SCALAR, width, &broken, 64).iter().all(|x| x.is_nan()));
    }
}

#[test]
fn names_of_widths() {
    let parse = |text: &str| text.parse::<TurboQuant>().map(|t| t.to_string());
    assert_eq!(parse("3").as_deref(), Ok("k3v3"));
    assert_eq!(parse("k8v4").as_deref(), Ok("k8v4"));
    for bad in ["", "5", "k4", "kv", "v4k4", "k4v5", "k4v4x", "off"] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
