//! Matrix products `y = x W^T`.
//!
//! Int8 path: for each row, the exact integer dot product `D` of codes and activations in a group, then
//! `y = fma(fma(scale, D, bias * S), sx, y)` with `S` the sum of the activation codes and `sx` their scale, groups
//! ascending. Float path: weights widened (`fma(code, scale, bias)`), 16 partial sums by column modulo 16, then the tree.

mod codes;
mod float;
mod int8;

use mach_quant::{MatrixLayout, Order};

use crate::pool::SharedMut;
use crate::quantize::Operand;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch, partition};

/// Rows of a strip, the unit of work.
pub(crate) const STRIP: usize = 16;

/// A weight matrix in memory.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    layout: MatrixLayout,
    data: &'a [u8],
}

impl<'a> MatRef<'a> {
    /// # Panics
    /// If `data` has not the layout's length: a programming error, lengths come from the layout itself.
    pub fn new(layout: MatrixLayout, data: &'a [u8]) -> Self {
        assert_eq!(layout.bytes(), data.len());
        MatRef { layout, data }
    }

    /// Shape, encoding and order of the weights.
    pub fn layout(&self) -> &MatrixLayout {
        &self.layout
    }

    /// A part of the bytes.
    ///
    /// # Panics
    /// If they end before it does: a programming error.
    pub fn bytes(&self, range: std::ops::Range<usize>) -> &'a [u8] {
        &self.data[range]
    }

    /// Decodes a row into `out[..cols]`.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        self.layout.decode_row(self.data, row, out);
    }

    pub(crate) fn strips(&self) -> usize {
        self.layout.rows.div_ceil(STRIP)
    }
}

/// One product of a [`multiply`] call.
#[derive(Debug)]
pub struct Product<'a> {
    /// The weights `[rows, cols]`.
    pub matrix: MatRef<'a>,
    /// What they are multiplied with, prepared for their layout.
    pub operand: &'a Operand,
    /// The result, `[operand rows, stride]`, columns `0..rows` written.
    pub out: &'a mut [f32],
    /// Distance of result rows.
    pub stride: usize,
}

/// Computes one or more products, each thread its own strips of all of them.
pub fn multiply(cores: &mut Cores, products: &mut [Product<'_>]) {
    let isa = cores.isa();
    let mut jobs = Vec::with_capacity(products.len());
    let mut total = 0;
    for p in products.iter_mut() {
        let rows = p.operand.rows;
        assert!(p.operand.suits(&p.matrix.layout), "operand was prepared for another layout");
        assert!(rows == 0 || p.out.len() >= (rows - 1) * p.stride + p.matrix.layout.rows);
        jobs.push((p.matrix, p.operand, SharedMut::new(p.out), p.stride, total));
        total += p.matrix.strips();
    }
    let threads = cores.threads();
    cores.run(|t| {
        let part = partition(total, threads, t);
        for (matrix, operand, out, stride, start) in &jobs {
            let from = part.start.max(*start) - start;
            let to = part.end.min(start + matrix.strips()).saturating_sub(*start);
            if from < to {
                dispatch(isa, Strips { matrix: *matrix, operand, from, to, out: out.get(), stride: *stride });
            }
        }
    });
}

/// Strips `from..to` of one product. `out` points at column 0 of row 0.
pub(crate) struct Strips<'a> {
    pub(crate) matrix: MatRef<'a>,
    pub(crate) operand: &'a Operand,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) out: *mut f32,
    pub(crate) stride: usize,
}

impl Kernel for Strips<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // SAFETY: `out` covers every row of the operand and every column of the strips, and no other thread has these
        // columns; lengths of weights and operand were checked when they were made.
        unsafe {
            match self.matrix.layout.order {
                Order::Tiles => int8::strips(s, &self),
                Order::Rows => float::strips(s, &self),
            }
        }
    }
}

/// Operand rows handled before the weights are read again: their bytes should stay in the L2 cache.
#[inline(always)]
pub(crate) fn row_block(row_bytes: usize, multiple: usize) -> usize {
    const L2_SHARE: usize = 384 << 10;
    (L2_SHARE / row_bytes.max(1) / multiple * multiple).max(multiple)
}
