//! A draft's matrices in one allocation: first each is found, checked and given its place, then all are laid out.

use mach_checkpoint::{CheckpointError, LinearSource, Tensors};
use mach_io::HugeBuf;
use mach_kernels::linear::MatRef;
use mach_models::Activations;
use mach_quant::{Codec, MatrixLayout, Order};

use super::DraftOptions;
use super::quantize::{GROUP, Quantized, codec};
use crate::DraftError;

/// Matrices start at multiples of a cache line.
const ALIGN: usize = 64;

/// A matrix in the allocation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix {
    pub(super) layout: MatrixLayout,
    offset: usize,
}

/// The allocation.
#[derive(Debug)]
pub(super) struct Weights {
    memory: HugeBuf,
}

impl Weights {
    pub(super) fn get(&self, matrix: &Matrix) -> MatRef<'_> {
        MatRef::new(matrix.layout, &self.memory[matrix.offset..matrix.offset + matrix.layout.bytes()])
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.len()
    }
}

/// Matrices on their way into memory.
pub(super) struct Plan<'a> {
    pub(super) tensors: &'a Tensors,
    order: Order,
    bits: Option<u8>,
    items: Vec<(LinearSource<'a>, Matrix, Option<u8>)>,
    bytes: usize,
}

impl<'a> Plan<'a> {
    pub(super) fn new(tensors: &'a Tensors, options: DraftOptions) -> Self {
        let order = match options.activations {
            Activations::Int8 => Order::Tiles,
            Activations::F32 => Order::Rows,
        };
        let bits = options.quantize_bits.map(|bits| if bits <= 4 { 4 } else { 8 });
        Plan { tensors, order, bits, items: Vec::new(), bytes: 0 }
    }

    /// A linear layer's weight, quantized if asked for.
    pub(super) fn matrix(&mut self, module: &str, rows: usize, cols: usize) -> Result<Matrix, DraftError> {
        let source = self.tensors.linear(module, rows, cols)?;
        self.place(source, self.bits)
    }

    /// A weight that stays as it is stored.
    pub(super) fn exact(&mut self, module: &str, rows: usize, cols: usize) -> Result<Matrix, DraftError> {
        let source = self.tensors.linear(module, rows, cols)?;
        self.place(source, None)
    }

    /// A table stored without `.weight`, as it is.
    pub(super) fn table(&mut self, name: &str, rows: usize, cols: usize) -> Result<Matrix, DraftError> {
        let source = self.tensors.table(name, rows, cols)?;
        self.place(source, None)
    }

    fn place(&mut self, source: LinearSource<'a>, bits: Option<u8>) -> Result<Matrix, DraftError> {
        let mut layout = MatrixLayout::of(&source.source()?, self.order);
        let dense = matches!(layout.codec, Codec::Dense(_));
        let bits = bits.filter(|_| dense && source.cols.is_multiple_of(GROUP));
        if let Some(bits) = bits {
            layout = MatrixLayout { codec: codec(bits), order: self.order, ..layout };
        }
        let matrix = Matrix { layout, offset: self.bytes };
        self.bytes = (self.bytes + layout.bytes()).next_multiple_of(ALIGN);
        self.items.push((source, matrix, bits));
        Ok(matrix)
    }

    /// Lays everything out.
    pub(super) fn fill(self) -> Result<Weights, DraftError> {
        let mut memory = HugeBuf::zeroed(self.bytes).map_err(|e| DraftError::Memory(e.to_string()))?;
        for (linear, matrix, bits) in &self.items {
            linear.check_finite()?;
            let source = linear.source()?;
            let end = matrix.offset + matrix.layout.bytes();
            let Some(out) = memory.get_mut(matrix.offset..end) else { continue };
            match bits {
                None => matrix.layout.pack(&source, 0, out),
                Some(bits) => {
                    let quantized = Quantized::of(&source, *bits);
                    let source = quantized.source().map_err(|e| CheckpointError::Tensor {
                        file: linear.file.to_owned(),
                        tensor: linear.module.to_owned(),
                        reason: e.to_string(),
                    })?;
                    matrix.layout.pack(&source, 0, out);
                }
            }
        }
        Ok(Weights { memory })
    }
}
