//! Weights on their way into memory: first each is found, checked and given its place, then one allocation is filled by all
//! threads.

use mach_checkpoint::{CheckpointError, Tensors, WeightSource};
use mach_io::HugeBuf;
use mach_kernels::linear::MatRef;
use mach_kernels::math::exp64;
use mach_models::device::{Place, Placement};
use mach_quant::{Bits, Codec, MatrixLayout, Order};

use crate::quantize::{GROUP, codec};

/// Matrices start at multiples of a cache line.
const ALIGN: usize = 64;

/// A matrix in one of the device's allocations.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    pub(crate) layout: MatrixLayout,
    pub(crate) offset: usize,
    /// Which allocation.
    pub(crate) store: usize,
}

impl Matrix {
    /// Shape and encoding.
    pub fn layout(&self) -> &MatrixLayout {
        &self.layout
    }

    /// Its first byte in the allocation.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

/// The allocations, each filled at once; `None` once released.
#[derive(Debug, Default)]
pub(crate) struct Stores(pub(crate) Vec<Option<HugeBuf>>);

impl Stores {
    /// The weights of a matrix.
    ///
    /// # Panics
    /// If its allocation was released: a handle must not outlive it.
    pub(crate) fn get(&self, m: &Matrix) -> MatRef<'_> {
        let store = self.0[m.store].as_ref().map_or(&[][..], |store| &store[..]);
        MatRef::new(m.layout, &store[m.offset..m.offset + m.layout.bytes()])
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.iter().flatten().map(|store| store.len()).sum()
    }

    /// Bytes on huge pages; `None` if the system does not tell.
    pub(crate) fn huge_bytes(&self) -> Option<usize> {
        self.0.iter().flatten().map(HugeBuf::huge_bytes).sum()
    }
}

/// A matrix to be placed.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a> {
    pub(crate) source: WeightSource<'a>,
    pub(crate) matrix: Matrix,
    /// Bits to quantize it to first.
    pub(crate) bits: Option<Bits>,
}

/// Where each matrix goes.
pub struct CpuPlacement<'a> {
    pub(crate) tensors: &'a Tensors,
    /// For matrices that meet quantized activations.
    pub(crate) order: Order,
    store: usize,
    pub(crate) items: Vec<Item<'a>>,
    bytes: usize,
}

impl<'a> CpuPlacement<'a> {
    /// Weights of `tensors`, to be allocation number `store`.
    pub fn new(tensors: &'a Tensors, order: Order, store: usize) -> Self {
        CpuPlacement { tensors, order, store, items: Vec::new(), bytes: 0 }
    }

    /// Gives another placement's item a place in this one; its offset.
    pub(crate) fn take(&mut self, item: &Item<'a>) -> usize {
        let offset = self.bytes;
        let matrix = Matrix { offset, store: self.store, ..item.matrix };
        self.bytes = (offset + matrix.layout.bytes()).next_multiple_of(ALIGN);
        self.items.push(Item { matrix, ..*item });
        offset
    }

    /// The matrices, in the order of their places.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.items.iter().map(|item| &item.matrix)
    }

    /// Bytes to allocate.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<'a> Placement<'a> for CpuPlacement<'a> {
    type Matrix = Matrix;
    type Vector = Vec<f32>;

    fn matrix(&mut self, source: WeightSource<'a>, place: Place) -> Result<Matrix, CheckpointError> {
        let order = if place == Place::Float { Order::Rows } else { self.order };
        let mut layout = source.layout(order)?;
        let dense = matches!(layout.codec, Codec::Dense(_)) && layout.cols.is_multiple_of(GROUP);
        let bits = match place {
            Place::Quantized(bits) if dense => Some(bits),
            _ => None,
        };
        if let Some(bits) = bits {
            layout = MatrixLayout { codec: codec(bits), order, ..layout };
        }
        let matrix = Matrix { layout, offset: self.bytes, store: self.store };
        self.bytes = (self.bytes + layout.bytes()).next_multiple_of(ALIGN);
        self.items.push(Item { source, matrix, bits });
        Ok(matrix)
    }

    fn vector(&mut self, values: Vec<f32>) -> Vec<f32> {
        values
    }

    fn negative_exponentials(&mut self, values: Vec<f32>) -> Vec<f32> {
        values.into_iter().map(|x| -exp64(f64::from(x)) as f32).collect()
    }

    fn weight_bytes(&self) -> u64 {
        self.items.iter().map(|item| item.matrix.layout.bytes() as u64).sum()
    }
}
