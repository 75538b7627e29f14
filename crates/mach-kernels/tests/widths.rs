//! Codes of every width in groups of every size, with scales of both types: each product is, bit by bit and on every
//! instruction set, what the documentation of `linear` says, wherever the bytes lie.

mod common;

use common::{Weights, bits, everywhere, product, random};
use mach_kernels::Isa;
use mach_kernels::linear::{MatRef, Product, multiply};
use mach_kernels::quantize::Operand;
use mach_quant::{Bits, Codec, FloatType, Order, Source, decode};
use safetensors::SafeTensors;

/// Rows that leave a strip unfilled, rows of activations that make panels of every width.
const ROWS: usize = 37;
const PANELS: [usize; 6] = [1, 3, 4, 6, 8, 15];

fn codecs() -> impl Iterator<Item = Codec> {
    Bits::ALL.into_iter().flat_map(|bits| {
        [32, 64, 128].into_iter().flat_map(move |group| {
            [FloatType::Bf16, FloatType::F32].map(|scales| Codec::Affine { bits, group, scales })
        })
    })
}

/// The codes of a row, and scale and bias of each of its groups.
fn parts(w: &Weights, row: usize) -> (Vec<u32>, Vec<(f32, f32)>) {
    let Codec::Affine { bits, group, scales } = w.layout.codec else { panic!("affine") };
    let plain = w.layout.in_order(Order::Rows);
    let mut data = vec![0; plain.unit_bytes()];
    plain.repack(&w.layout, &w.data, row, &mut data);
    let cols = w.layout.cols;
    let (codes, rest) = data.split_at(cols * bits.get() / 8);
    let (s, b) = rest.split_at(rest.len() / 2);
    let codes = (0..cols).map(|j| decode::code(codes, bits, j)).collect();
    (codes, (0..cols / group).map(|g| (scales.read(s, g), scales.read(b, g))).collect())
}

/// `y = fma(fma(scale, D, bias * S), sx, y)` for each group, with integers `D` and `S`.
fn int8_row(w: &Weights, x: &[f32], row: usize) -> f32 {
    let (codes, groups) = parts(w, row);
    let size = codes.len() / groups.len();
    let mut y = 0.0f32;
    for (g, (scale, bias)) in groups.into_iter().enumerate() {
        let (xs, codes) = (&x[g * size..(g + 1) * size], &codes[g * size..(g + 1) * size]);
        let amax = xs.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let inverse = if amax >= 1e-30 { 127.0 / amax } else { 0.0 };
        let sx = if amax >= 1e-30 { amax / 127.0 } else { 0.0 };
        let q: Vec<i32> = xs.iter().map(|x| (x * inverse).round_ties_even() as i32).collect();
        let d: i32 = q.iter().zip(codes).map(|(q, &c)| q * c as i32).sum();
        let s: i32 = q.iter().sum();
        y = scale.mul_add(d as f32, bias * s as f32).mul_add(sx, y);
    }
    y
}

/// 16 partial sums by column modulo 16, then the tree.
fn float_row(w: &Weights, x: &[f32], row: usize) -> f32 {
    let (codes, groups) = parts(w, row);
    let size = codes.len() / groups.len();
    let mut sums = [0.0f32; 16];
    for (j, (&code, x)) in codes.iter().zip(x).enumerate() {
        let (scale, bias) = groups[j / size];
        sums[j % 16] = (code as f32).mul_add(scale, bias).mul_add(*x, sums[j % 16]);
    }
    let a: [f32; 8] = std::array::from_fn(|i| sums[i] + sums[i + 8]);
    let b: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
    (b[0] + b[2]) + (b[1] + b[3])
}

#[test]
fn products_are_what_is_said_of_them() {
    for (i, codec) in codecs().enumerate() {
        let cols = codec.group().unwrap() * (1 + i % 3);
        for order in [Order::Tiles, Order::Rows] {
            let mut r = random(i as u64 + 1);
            let w = Weights::new(&mut r, codec, ROWS, cols, order);
            for m in PANELS {
                let mut x = r.floats(m * cols);
                // A group of zeros, and the extremes of codes.
                x[..32].fill(0.0);
                x[cols - 1] = -1.0;
                let y = everywhere(|isa, threads| product(isa, threads, &w, &x, m));
                for (at, y) in y.iter().enumerate() {
                    let (xr, row) = (&x[at / ROWS * cols..][..cols], at % ROWS);
                    let expected = match order {
                        Order::Tiles => int8_row(&w, xr, row),
                        Order::Rows => float_row(&w, xr, row),
                    };
                    assert_eq!(y.to_bits(), expected.to_bits(), "{codec:?} {order:?} {m} rows, row {row}");
                }
            }
        }
    }
}

/// Sums of the largest codes times the largest activations: nothing overflows on the way.
#[test]
fn extremes_do_not_overflow() {
    for codec in codecs() {
        let Codec::Affine { bits, group, scales } = codec else { panic!("affine") };
        let (rows, cols) = (16, 2 * group);
        let weight = vec![0xFF; rows * cols * bits.get() / 8];
        let mut scale = vec![0; rows * 2 * scales.size()];
        (0..rows * 2).for_each(|i| scales.write(&mut scale, i, 1.0));
        let zero = vec![0; scale.len()];
        let source = Source::new(codec, rows, cols, &weight, &scale, &zero).unwrap();
        let layout = mach_quant::MatrixLayout::of(&source, Order::Tiles);
        let mut data = vec![0; layout.bytes()];
        layout.pack(&source, 0, &mut data);
        let w = Weights { layout, data };
        for x in [1.0f32, -1.0] {
            let y = everywhere(|isa, threads| product(isa, threads, &w, &vec![x; cols], 1));
            let expected = x * (cols as u32 * bits.max_code()) as f32;
            assert!(y.iter().all(|y| (y - expected).abs() <= expected.abs() * 1e-6), "{codec:?} {y:?}");
        }
    }
}

/// Nothing asks for aligned weights.
#[test]
fn bytes_may_lie_anywhere() {
    for (i, codec) in codecs().enumerate() {
        for order in [Order::Tiles, Order::Rows] {
            let mut r = random(i as u64 + 77);
            let cols = codec.group().unwrap();
            let w = Weights::new(&mut r, codec, 5, cols, order);
            let x = r.floats(2 * cols);
            let expected = product(Isa::SCALAR, 1, &w, &x, 2);
            for offset in [1, 2, 3, 7, 31] {
                let mut shifted = vec![0xFFu8; offset];
                shifted.extend_from_slice(&w.data);
                let matrix = MatRef::new(w.layout, &shifted[offset..]);
                let got = everywhere(|isa, threads| {
                    let mut cores = mach_kernels::Cores::new(threads, isa);
                    let mut operand = Operand::default();
                    operand.prepare(&mut cores, &w.layout, &x, cols, 2);
                    let mut out = vec![f32::NAN; 2 * 5];
                    multiply(
                        &mut cores,
                        &mut [Product { matrix, operand: &operand, out: &mut out, stride: 5 }],
                    );
                    out
                });
                assert_eq!(bits(&got), bits(&expected), "{codec:?} {order:?} at {offset}");
            }
        }
    }
}

/// Matrices that MLX has quantized, times activations that int8 holds exactly: the products of the values that MLX reads.
#[test]
fn products_with_matrices_of_mlx() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/quant/mlx.safetensors");
    let bytes = std::fs::read(file).unwrap();
    let st = SafeTensors::deserialize(&bytes).unwrap();
    let mut r = random(3);
    let mut x: Vec<f32> = (0..256).map(|_| (r.next() % 255) as f32 - 127.0).collect();
    x.iter_mut().step_by(32).for_each(|x| *x = 127.0);
    for (bits, group) in Bits::ALL.into_iter().flat_map(|b| [32, 64, 128].map(|g| (b, g))) {
        let name = format!("affine_b{bits}_g{group}");
        let part = |suffix: &str| st.tensor(&format!("{name}.{suffix}")).unwrap();
        let codec = Codec::Affine { bits, group, scales: FloatType::Bf16 };
        let (w, s, b, values) = (part("weight"), part("scales"), part("biases"), part("values"));
        let source = Source::new(codec, 24, 256, w.data(), s.data(), b.data()).unwrap();
        for order in [Order::Tiles, Order::Rows] {
            let layout = mach_quant::MatrixLayout::of(&source, order);
            let mut data = vec![0; layout.bytes()];
            layout.pack(&source, 0, &mut data);
            let w = Weights { layout, data };
            let y = everywhere(|isa, threads| product(isa, threads, &w, &x, 1));
            for (row, y) in y.iter().enumerate() {
                let value = |j: usize| f64::from(FloatType::F32.read(values.data(), row * 256 + j));
                let terms: Vec<f64> = (0..256).map(|j| value(j) * f64::from(x[j])).collect();
                let (expected, size) =
                    (terms.iter().sum::<f64>(), terms.iter().map(|t| t.abs()).sum::<f64>());
                assert!((f64::from(*y) - expected).abs() <= size * 1e-6, "{name} {order:?}: {y} {expected}");
            }
        }
    }
}
