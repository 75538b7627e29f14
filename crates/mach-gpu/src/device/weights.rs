//! Weights: laid out on the host as the CPU's are, then brought to the device, one buffer a matrix.

use std::borrow::Cow;

use mach_checkpoint::{CheckpointError, WeightSource};
use mach_cpu::CpuPlacement;
use mach_kernels::math::exp64;
use mach_models::device::{Place, Placement};
use mach_quant::{Codec, FloatType, MatrixLayout, Order};

use crate::{Context, GpuError, Storage};

/// A matrix of weights on the device.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    pub(crate) layout: MatrixLayout,
    /// Which of the matrices that were placed together.
    pub(crate) index: usize,
    /// Which placement.
    pub(crate) store: usize,
}

/// A small float vector on the device.
#[derive(Debug, Clone)]
pub struct Vector {
    pub(crate) storage: Storage,
}

/// Where each weight goes.
pub struct GpuPlacement<'a> {
    pub(crate) host: CpuPlacement<'a>,
    context: Context,
    store: usize,
    placed: usize,
    /// Vectors are brought at once; what went wrong is told when the matrices are.
    pub(crate) failure: Option<GpuError>,
}

impl<'a> GpuPlacement<'a> {
    pub(crate) fn new(host: CpuPlacement<'a>, context: &Context, store: usize) -> Self {
        GpuPlacement { host, context: context.clone(), store, placed: 0, failure: None }
    }

    fn bring(&mut self, values: &[f32]) -> Vector {
        match Storage::of(&self.context, values) {
            Ok(storage) => Vector { storage },
            Err(error) => {
                self.failure.get_or_insert(error);
                Vector { storage: Storage::empty(&self.context) }
            }
        }
    }
}

impl<'a> Placement<'a> for GpuPlacement<'a> {
    type Matrix = Matrix;
    type Vector = Vector;

    fn matrix(&mut self, source: WeightSource<'a>, place: Place) -> Result<Matrix, CheckpointError> {
        let host = self.host.matrix(source, place)?;
        let matrix = Matrix { layout: on_device(host.layout()), index: self.placed, store: self.store };
        self.placed += 1;
        Ok(matrix)
    }

    fn vector(&mut self, values: Vec<f32>) -> Vector {
        self.bring(&values)
    }

    fn negative_exponentials(&mut self, values: Vec<f32>) -> Vector {
        let values: Vec<f32> = values.into_iter().map(|x| -exp64(f64::from(x)) as f32).collect();
        self.bring(&values)
    }

    fn weight_bytes(&self) -> u64 {
        self.host.weight_bytes()
    }
}

/// The layout of a matrix on the device. Rows of codes, which routers and gates are, become floats: their values are the
/// same bits, and a lane has nothing to take apart.
pub(crate) fn on_device(host: &MatrixLayout) -> MatrixLayout {
    match (host.order, host.codec) {
        (_, Codec::Dense(_)) | (Order::Tiles, _) => *host,
        (Order::Rows, _) => MatrixLayout { codec: Codec::Dense(FloatType::F32), ..*host },
    }
}

/// The bytes of a matrix as the device has it.
pub(crate) fn widened<'a>(host: &MatrixLayout, bytes: &'a [u8]) -> Cow<'a, [u8]> {
    if on_device(host) == *host {
        return Cow::Borrowed(bytes);
    }
    let mut values = vec![0.0f32; host.rows * host.cols];
    for (row, values) in values.chunks_exact_mut(host.cols.max(1)).enumerate() {
        host.decode_row(bytes, row, values);
    }
    Cow::Owned(bytemuck::cast_slice(&values).to_vec())
}

/// Bytes handed to the queue before it is waited for, so that what waits in host memory stays bounded.
const BATCH: usize = 64 << 20;

/// Brings bytes to a buffer of their size.
pub(crate) fn bring(context: &Context, bytes: &[u8]) -> Result<Storage, GpuError> {
    let storage = Storage::new(context, bytes.len().next_multiple_of(16) as u64)?;
    write_all(context, &storage, 0, bytes)?;
    Ok(storage)
}

/// Writes bytes of any length, batch by batch.
pub(crate) fn write_all(context: &Context, to: &Storage, at: u64, bytes: &[u8]) -> Result<(), GpuError> {
    let mut at = at;
    for batch in bytes.chunks(BATCH) {
        to.write(context, at, batch)?;
        at += batch.len() as u64;
        if bytes.len() > BATCH {
            context.drain()?;
        }
    }
    Ok(())
}
