//! Random matrices, products, and the same on every instruction set.
#![allow(dead_code)]

use mach_kernels::linear::{MatRef, Product, multiply};
use mach_kernels::quantize::Operand;
use mach_kernels::{Cores, Isa};
use mach_quant::{Codec, FloatType, MatrixLayout, Order, Source};

pub(crate) struct Random(pub(crate) u64);
impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    /// In -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

pub(crate) fn random(seed: u64) -> Random {
    Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
}

/// A random matrix in its stored form, laid out.
pub(crate) struct Weights {
    pub(crate) layout: MatrixLayout,
    pub(crate) data: Vec<u8>,
}
impl Weights {
    pub(crate) fn new(r: &mut Random, codec: Codec, rows: usize, cols: usize, order: Order) -> Weights {
        let float = |t: FloatType, v: f32| match t {
            FloatType::F32 => v.to_le_bytes().to_vec(),
            FloatType::F16 => half::f16::from_f32(v).to_le_bytes().to_vec(),
            FloatType::Bf16 => half::bf16::from_f32(v).to_le_bytes().to_vec(),
        };
        let n = codec.group().map_or(0, |g| rows * cols / g);
        let (weight, scales, biases) = match codec {
            Codec::Dense(t) => ((0..rows * cols).flat_map(|_| float(t, r.float())).collect(), vec![], vec![]),
            Codec::Affine { bits, scales, .. } => (
                (0..rows * cols * bits.get() / 8).map(|_| r.next() as u8).collect::<Vec<u8>>(),
                (0..n).flat_map(|_| float(scales, r.float() * 0.1)).collect::<Vec<u8>>(),
                (0..n).flat_map(|_| float(scales, r.float())).collect::<Vec<u8>>(),
            ),
            Codec::Mxfp4 => (
                (0..rows * cols / 2).map(|_| r.next() as u8).collect(),
                (0..n).map(|_| 120 + (r.next() % 10) as u8).collect(),
                vec![],
            ),
            Codec::Fp8 { .. } | Codec::Mxfp8 | Codec::Nvfp4 => unreachable!("no layout holds {codec:?}"),
        };
        let source = Source::new(codec, rows, cols, &weight, &scales, &biases).unwrap();
        let layout = MatrixLayout::of(&source, order);
        let mut data = vec![0; layout.bytes()];
        layout.pack(&source, 0, &mut data);
        Weights { layout, data }
    }
    pub(crate) fn view(&self) -> MatRef<'_> {
        MatRef::new(self.layout, &self.data)
    }
    pub(crate) fn row(&self, row: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.layout.cols];
        self.view().decode_row(row, &mut out);
        out
    }
}

pub(crate) fn product(isa: Isa, threads: usize, w: &Weights, x: &[f32], rows: usize) -> Vec<f32> {
    let mut cores = Cores::new(threads, isa);
    let mut operand = Operand::default();
    operand.prepare(&mut cores, &w.layout, x, w.layout.cols, rows);
    let mut out = vec![f32::NAN; rows * w.layout.rows];
    let stride = w.layout.rows;
    let product = Product { matrix: w.view(), operand: &operand, out: &mut out, stride };
    multiply(&mut cores, &mut [product]);
    out
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

pub(crate) fn everywhere(f: impl Fn(Isa, usize) -> Vec<f32>) -> Vec<f32> {
    let expected = f(Isa::SCALAR, 1);
    for isa in Isa::available() {
        for threads in [1, 3] {
            assert!(
                bits(&f(isa, threads)) == bits(&expected),
                "{isa} with {threads} threads differs from scalar"
            );
        }
    }
    expected
}

/// The int8 path as its documentation defines it.
pub(crate) fn int8_definition(w: &Weights, x: &[f32], row: usize) -> f32 {
    let group = w.layout.codec.group().unwrap();
    let values = w.row(row);
    let mut y = 0.0f64;
    for g in 0..w.layout.cols / group {
        let xs = &x[g * group..(g + 1) * group];
        let amax = xs.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        if amax < 1e-30 {
            continue;
        }
        let dot: f64 = xs
            .iter()
            .zip(&values[g * group..])
            .map(|(x, w)| f64::from((x * (127.0 / amax)).round_ties_even()) * f64::from(*w))
            .sum();
        y += dot * f64::from(amax / 127.0);
    }
    y as f32
}
