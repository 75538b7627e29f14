//! A weight matrix, whether it must still be laid out or already is.

use std::path::Path;

use mach_quant::{MatrixLayout, Order};

use crate::{Checkpoint, CheckpointError, LinearSource};

/// A matrix that `mach convert` has laid out, borrowed from the mapped file.
#[derive(Debug, Clone, Copy)]
pub struct PackedMatrix<'a> {
    /// Module path, for messages.
    pub module: &'a str,
    /// File, for messages.
    pub file: &'a Path,
    /// How the bytes lie.
    pub layout: MatrixLayout,
    /// `layout.bytes()` bytes, then zeros.
    pub data: &'a [u8],
    /// CRC32C of `data`.
    pub crc32c: u32,
}

/// A weight matrix of a checkpoint.
#[derive(Debug, Clone, Copy)]
pub enum WeightSource<'a> {
    /// As published or as MLX stores it.
    Stored(LinearSource<'a>),
    /// Already laid out.
    Packed(PackedMatrix<'a>),
}

impl PackedMatrix<'_> {
    /// The error for bytes that do not have their checksum.
    pub fn damaged(&self) -> CheckpointError {
        CheckpointError::tensor(self.file, self.module, "damaged: its checksum differs")
    }
}

impl WeightSource<'_> {
    /// The layout of this matrix in an order.
    pub fn layout(&self, order: Order) -> Result<MatrixLayout, CheckpointError> {
        match self {
            Self::Stored(source) => Ok(MatrixLayout::of(&source.source()?, order)),
            Self::Packed(packed) => {
                let layout = packed.layout.in_order(order);
                if layout.repacks_from(&packed.layout) {
                    Ok(layout)
                } else {
                    let reason =
                        format!("stored in order {:?} where {order:?} is needed", packed.layout.order);
                    Err(CheckpointError::tensor(packed.file, packed.module, reason))
                }
            }
        }
    }
}

impl Checkpoint {
    /// The weight of a linear layer or embedding table, as [`linear`](Self::linear), or laid out already if this
    /// checkpoint is converted. The matrices of an expert may lie in stacks of all experts (see
    /// [`experts`](Self::experts)).
    pub fn weights(
        &self,
        module: &str,
        rows: usize,
        cols: usize,
    ) -> Result<WeightSource<'_>, CheckpointError> {
        let name = format!("{module}.weight");
        let index = self.resident_index().and_then(|index| index.tensors.get(&name));
        let Some((layout, crc32c)) = index.and_then(|t| Some((t.layout?, t.crc32c))) else {
            if !self.has(&name)
                && let Some(source) = self.out_of_stack(module, rows, cols)?
            {
                return Ok(WeightSource::Stored(source));
            }
            return self.linear(module, rows, cols).map(WeightSource::Stored);
        };
        let view = self.tensor(&name)?;
        if (layout.rows, layout.cols) != (rows, cols) {
            let found = [layout.rows, layout.cols];
            return Err(view.error(format!("shape {found:?}, but config.json implies {:?}", [rows, cols])));
        }
        let module = view.name.strip_suffix(".weight").unwrap_or(view.name);
        Ok(WeightSource::Packed(PackedMatrix { module, file: view.file, layout, data: view.data, crc32c }))
    }
}
