//! A weight matrix as stored: dense floats or packed codes with scales.

use std::path::Path;

use mach_quant::{Axes, Bits, FP8_BLOCK};

use crate::checkpoint::TensorView;
use crate::config::Scheme;
use crate::{Checkpoint, CheckpointError, Dtype, Tensors, finite};

/// How the elements of a weight matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Plain floats of this type.
    Dense(Dtype),
    /// MLX affine codes (quant-formats: value = code * scale + bias), scales and biases of type `scales`.
    Affine {
        /// Bits a code.
        bits: Bits,
        /// Columns that share a scale.
        group: usize,
        /// F32, F16 or BF16.
        scales: Dtype,
    },
    /// e2m1 codes, one e8m0 scale for 32 columns.
    Mxfp4,
    /// e4m3 values, one scale for a block of 128 rows and columns.
    Fp8 {
        /// F8E8M0, U8 (the same bytes), F32 or BF16.
        scales: Dtype,
    },
    /// e4m3 values, one e8m0 scale for 32 columns.
    Mxfp8,
    /// e2m1 codes, one e4m3 scale for 16 columns.
    Nvfp4,
}

impl Packing {
    /// Bytes of weight, scales and biases of one row of `cols` columns. Rows of a block share its scales.
    fn row_bytes(self, cols: usize) -> (usize, usize, usize) {
        match self {
            Self::Dense(dtype) => (cols * dtype.size(), 0, 0),
            Self::Affine { bits, group, scales } => {
                let scale_bytes = cols / group * scales.size();
                (cols * bits.get() / 8, scale_bytes, scale_bytes)
            }
            Self::Mxfp4 => (cols / 2, cols / 32, 0),
            Self::Fp8 { scales } => (cols, cols.div_ceil(FP8_BLOCK) * scales.size(), 0),
            Self::Mxfp8 => (cols, cols / 32, 0),
            Self::Nvfp4 => (cols / 2, cols / 16, 0),
        }
    }
}

/// One weight matrix `[rows, cols]`, borrowed from the mapped shard. Slices have the exact lengths that `packing`, `rows` and
/// `cols` imply, or more where other matrices' values lie between its own.
#[derive(Debug, Clone, Copy)]
pub struct LinearSource<'a> {
    /// Module path, for messages.
    pub module: &'a str,
    /// Shard, for messages.
    pub file: &'a Path,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// How the elements are stored.
    pub packing: Packing,
    /// How rows and columns lie.
    pub axes: Axes,
    /// Floats or packed codes.
    pub weight: &'a [u8],
    /// Scales (empty when dense).
    pub scales: &'a [u8],
    /// Zero points (affine only, else empty).
    pub biases: &'a [u8],
}

impl<'a> LinearSource<'a> {
    /// Rows `start..start + rows` as a matrix of their own; `None` if there are not so many, if they are not adjacent, or if a block
    /// of scales would be cut.
    pub fn slice_rows(&self, start: usize, rows: usize) -> Option<Self> {
        if self.axes != Axes::PLAIN {
            return None;
        }
        let (weight, scales, biases) = self.packing.row_bytes(self.cols);
        let cut = |data: &'a [u8], row: usize| {
            data.get(start.checked_mul(row)?..start.checked_add(rows)?.checked_mul(row)?)
        };
        let scales = match self.packing {
            Packing::Fp8 { .. } if !start.is_multiple_of(FP8_BLOCK) => return None,
            Packing::Fp8 { .. } => {
                let last = start.checked_add(rows)?.div_ceil(FP8_BLOCK);
                self.scales.get(start / FP8_BLOCK * scales..last.checked_mul(scales)?)?
            }
            _ => cut(self.scales, scales)?,
        };
        Some(Self {
            rows,
            weight: cut(self.weight, weight)?,
            scales,
            biases: cut(self.biases, biases)?,
            ..*self
        })
    }

    /// The even and the odd rows, each a matrix of its own; `None` if they are not adjacent and as many.
    pub fn split_rows(&self) -> Option<[Self; 2]> {
        if self.axes != Axes::PLAIN || !self.rows.is_multiple_of(2) {
            return None;
        }
        let (weight, scales, biases) = self.packing.row_bytes(self.cols);
        let even = Self { rows: self.rows / 2, axes: Axes::Rows { every: 2 }, ..*self };
        let odd = Self {
            weight: self.weight.get(weight..)?,
            scales: self.scales.get(scales..)?,
            biases: self.biases.get(biases..)?,
            ..even
        };
        Some([even, odd])
    }

    /// Fails, naming file and tensor, if a scale, zero point or dense value is infinite or NaN. Reads them all.
    pub fn check_finite(&self) -> Result<(), CheckpointError> {
        let check = |suffix: &str, dtype: Dtype, data: &[u8]| match finite::first_not_finite(dtype, data) {
            None => Ok(()),
            Some(at) => Err(CheckpointError::tensor(
                self.file,
                &format!("{}.{suffix}", self.module),
                format!("element {at} of a {} x {} matrix is not finite", self.rows, self.cols),
            )),
        };
        match self.packing {
            Packing::Dense(dtype) => check("weight", dtype, self.weight),
            Packing::Affine { scales, .. } => {
                check("scales", scales, self.scales)?;
                check("biases", scales, self.biases)
            }
            Packing::Mxfp4 => check("scales", Dtype::F8E8M0, self.scales),
            Packing::Fp8 { scales } => {
                check("weight", Dtype::F8E4M3, self.weight)?;
                check("scale", scales, self.scales)
            }
            Packing::Mxfp8 => {
                check("weight", Dtype::F8E4M3, self.weight)?;
                check("scales", Dtype::F8E8M0, self.scales)
            }
            Packing::Nvfp4 => check("scales", Dtype::F8E4M3, self.scales),
        }
    }

    /// Bytes as stored.
    pub fn stored_bytes(&self) -> usize {
        self.weight.len() + self.scales.len() + self.biases.len()
    }
}

impl Checkpoint {
    /// See [`Tensors::linear`].
    pub fn linear(
        &self,
        module: &str,
        rows: usize,
        cols: usize,
    ) -> Result<LinearSource<'_>, CheckpointError> {
        self.tensors().linear(module, rows, cols)
    }

    /// See [`Tensors::linear_stack`].
    pub fn linear_stack(
        &self,
        module: &str,
        experts: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<LinearSource<'_>>, CheckpointError> {
        self.tensors().linear_stack(module, experts, rows, cols)
    }
}

impl Tensors {
    /// The weight of a linear layer or embedding table: module path without `.weight`, logical shape `[rows, cols]`; the
    /// rows may lie in groups `[groups, rows / groups, cols]`.
    /// The shapes in the file settle bits, group and mode; a contradiction with `config.json` is an error.
    pub fn linear(
        &self,
        module: &str,
        rows: usize,
        cols: usize,
    ) -> Result<LinearSource<'_>, CheckpointError> {
        let weight = self.tensor(&format!("{module}.weight"))?;
        match *weight.shape {
            // Rows in groups of their own axis, one after the other.
            [groups, each, _] if groups.checked_mul(each) == Some(rows) => {
                self.matrix(module, weight, &[groups], each, cols)
            }
            _ => self.matrix(module, weight, &[], rows, cols),
        }
    }

    /// A matrix whose tensor has no `.weight` suffix.
    pub fn table(&self, name: &str, rows: usize, cols: usize) -> Result<LinearSource<'_>, CheckpointError> {
        self.matrix(name, self.tensor(name)?, &[], rows, cols)
    }

    /// A stack `[experts, rows, cols]` as one source per expert. `module` as in `linear`; bf16 stacks may have no
    /// `.weight` suffix.
    pub fn linear_stack(
        &self,
        module: &str,
        experts: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<LinearSource<'_>>, CheckpointError> {
        let suffixed = format!("{module}.weight");
        let name = if self.has(&suffixed) || !self.has(module) { suffixed.as_str() } else { module };
        let weight = self.tensor(name)?;
        let whole = self.matrix(module, weight, &[experts], rows, cols)?;
        (0..experts)
            .map(|expert| {
                whole
                    .slice_rows(expert * rows, rows)
                    .ok_or_else(|| weight.error(format!("no data for expert {expert}")))
            })
            .collect()
    }

    /// A stack of matrices of floats whose input axis comes first, `[experts, cols, rows]`, as one source per expert.
    pub fn transposed_stack(
        &self,
        name: &str,
        experts: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<LinearSource<'_>>, CheckpointError> {
        let view = self.tensor(name)?;
        if !view.dtype.is_float() {
            return Err(view.error(format!("type {:?} where floats are needed", view.dtype)));
        }
        expect_shape(&view, &[experts, cols, rows])?;
        let matrices = view.data.chunks_exact((rows * cols * view.dtype.size()).max(1));
        Ok(matrices
            .map(|weight| LinearSource {
                module: view.name,
                file: view.file,
                rows,
                cols,
                packing: Packing::Dense(view.dtype),
                axes: Axes::Columns { across: rows, every: 1 },
                weight,
                scales: &[],
                biases: &[],
            })
            .collect())
    }

    /// A stack of MXFP4 matrices in the published form, as one source per expert: `<name>_blocks` U8
    /// `[experts, rows, cols / 32, 16]` and `<name>_scales` U8 `[experts, rows, cols / 32]`.
    pub fn block_stack(
        &self,
        name: &str,
        experts: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<LinearSource<'_>>, CheckpointError> {
        const COLUMNS: usize = 32;
        let (blocks, scales) =
            (self.tensor(&format!("{name}_blocks"))?, self.tensor(&format!("{name}_scales"))?);
        for view in [&blocks, &scales] {
            if view.dtype != Dtype::U8 {
                return Err(view.error(format!("type {:?}; blocks and scales are U8", view.dtype)));
            }
        }
        if !cols.is_multiple_of(COLUMNS) {
            return Err(blocks.error(format!("{cols} columns are no multiple of the {COLUMNS} of a block")));
        }
        expect_shape(&blocks, &[experts, rows, cols / COLUMNS, COLUMNS / 2])?;
        expect_shape(&scales, &[experts, rows, cols / COLUMNS])?;
        let whole = LinearSource {
            module: blocks.name,
            file: blocks.file,
            rows: experts * rows,
            cols,
            packing: Packing::Mxfp4,
            axes: Axes::PLAIN,
            weight: blocks.data,
            scales: scales.data,
            biases: &[],
        };
        (0..experts)
            .map(|e| {
                let expert = whole.slice_rows(e * rows, rows);
                expert.ok_or_else(|| blocks.error(format!("no data for expert {e}")))
            })
            .collect()
    }

    /// Reads a matrix, or a stack of them (`lead` is then `[experts]`) as one matrix of `experts * rows` rows.
    fn matrix<'a>(
        &'a self,
        module: &str,
        weight: TensorView<'a>,
        lead: &[usize],
        rows: usize,
        cols: usize,
    ) -> Result<LinearSource<'a>, CheckpointError> {
        let scales_name = format!("{module}.scales");
        let all_rows = lead.iter().product::<usize>() * rows;
        let mut source = LinearSource {
            module: weight.name.strip_suffix(".weight").unwrap_or(weight.name),
            file: weight.file,
            rows: all_rows,
            cols,
            packing: Packing::Dense(weight.dtype),
            axes: Axes::PLAIN,
            weight: weight.data,
            scales: &[],
            biases: &[],
        };
        let shape = |last: usize| [lead, &[rows, last]].concat();
        if !self.has(&scales_name) {
            if let Some(scale) = self.block_scale(module)? {
                return blocks(source, &weight, &scale, lead, rows);
            }
            if !weight.dtype.is_float() {
                let reason = format!("type {:?} without `{scales_name}`", weight.dtype);
                return Err(weight.error(reason));
            }
            expect_shape(&weight, &shape(cols))?;
            if let Some(Some(scheme)) = self.quantization.explicit(module) {
                return Err(
                    weight.error(format!("unquantized, but config.json says {} bits for it", scheme.bits))
                );
            }
            return Ok(source);
        }

        let scales = self.tensor(&scales_name)?;
        if weight.dtype != Dtype::U32 {
            return Err(weight.error(format!("type {:?}; packed codes are U32", weight.dtype)));
        }
        let words = expect_matrix(&weight, lead, rows)?;
        let groups = expect_matrix(&scales, lead, rows)?;
        let bits = words.checked_mul(32).filter(|b| cols > 0 && b % cols == 0).map(|b| b / cols);
        let (Some(bits), true) = (bits, groups > 0 && cols.is_multiple_of(groups)) else {
            return Err(weight.error(format!(
                "{words} words and {groups} scales a row cannot hold the {cols} columns that config.json implies"
            )));
        };
        let group = cols / groups;
        let mode = match (scales.dtype, bits, group) {
            (Dtype::U8, 4, 16) => "nvfp4",
            (Dtype::U8, 8, _) => "mxfp8",
            (Dtype::U8, ..) => "mxfp4",
            _ => "affine",
        };
        match mode {
            "mxfp4" if (bits, group) == (4, 32) => source.packing = Packing::Mxfp4,
            "mxfp8" if (bits, group) == (8, 32) => source.packing = Packing::Mxfp8,
            "nvfp4" => {
                if self.has(&format!("{module}.global_scale")) {
                    return Err(weight.error(format!("nvfp4 with `{module}.global_scale` is not supported")));
                }
                source.packing = Packing::Nvfp4;
            }
            "affine" if matches!(group, 32 | 64 | 128) && scales.dtype.is_float() => {
                let bits = Bits::try_from(bits as u64).map_err(|e| weight.error(e.to_string()))?;
                source.packing = Packing::Affine { bits, group, scales: scales.dtype };
                let biases = self.tensor(&format!("{module}.biases"))?;
                if biases.shape != scales.shape || biases.dtype != scales.dtype {
                    return Err(biases.error("shape or type differs from the scales"));
                }
                source.biases = biases.data;
            }
            _ => {
                return Err(weight.error(format!(
                    "{bits} bits in groups of {group} with {:?} scales is not supported for {cols} columns; known: affine 2, 3, 4, 5, 6 and 8 bit in groups of 32, 64, 128, mxfp4, mxfp8 and nvfp4",
                    scales.dtype
                )));
            }
        }
        source.scales = scales.data;
        self.check_scheme(module, &weight, bits, group, mode)?;
        Ok(source)
    }

    /// The scales that a published file keeps beside a matrix: factors, or their exponents.
    fn block_scale(&self, module: &str) -> Result<Option<TensorView<'_>>, CheckpointError> {
        for name in [format!("{module}.scale"), format!("{module}.weight_scale_inv")] {
            if self.has(&name) {
                return self.tensor(&name).map(Some);
            }
        }
        Ok(None)
    }

    fn check_scheme(
        &self,
        module: &str,
        weight: &TensorView<'_>,
        bits: usize,
        group: usize,
        mode: &str,
    ) -> Result<(), CheckpointError> {
        if self.quantization.explicit(module) == Some(None) {
            return Err(weight.error("quantized, but config.json says it is not"));
        }
        let Some(Scheme { group_size, bits: said, mode: said_mode }) = self.quantization.expected(module)
        else {
            return Ok(());
        };
        if (*said, *group_size, said_mode.as_str()) != (bits as u64, group as u64, mode) {
            return Err(weight.error(format!(
                "the file holds {mode} {bits} bits in groups of {group}, but config.json says {said_mode} {said} bits in groups of {group_size}"
            )));
        }
        Ok(())
    }
}

/// A matrix of bytes with published scales: e4m3 with one scale a block, or pairs of e2m1 codes with one for 32 columns.
fn blocks<'a>(
    source: LinearSource<'a>,
    weight: &TensorView<'a>,
    scale: &TensorView<'a>,
    lead: &[usize],
    rows: usize,
) -> Result<LinearSource<'a>, CheckpointError> {
    let cols = source.cols;
    let exponents = matches!(scale.dtype, Dtype::F8E8M0 | Dtype::U8);
    let (packing, columns, scales) = match weight.dtype {
        Dtype::F8E4M3 if exponents || matches!(scale.dtype, Dtype::F32 | Dtype::BF16) => {
            // A stack's blocks would begin anew with every expert.
            if !lead.is_empty() && !rows.is_multiple_of(FP8_BLOCK) {
                return Err(
                    weight.error(format!("a stack of {rows} rows each, no whole blocks of {FP8_BLOCK}"))
                );
            }
            let shape = [lead, &[rows.div_ceil(FP8_BLOCK), cols.div_ceil(FP8_BLOCK)]].concat();
            (Packing::Fp8 { scales: scale.dtype }, cols, shape)
        }
        Dtype::I8 | Dtype::U8 if exponents && cols.is_multiple_of(32) => {
            (Packing::Mxfp4, cols / 2, [lead, &[rows, cols / 32]].concat())
        }
        other => {
            return Err(weight.error(format!(
                "type {other:?} with a scale of type {:?} for {cols} columns is not supported; known: F8E4M3 in blocks, and I8 (two e2m1 codes a byte) with F8E8M0 for 32 columns",
                scale.dtype
            )));
        }
    };
    expect_shape(weight, &[lead, &[rows, columns]].concat())?;
    expect_shape(scale, &scales)?;
    Ok(LinearSource { packing, scales: scale.data, ..source })
}

fn expect_shape(view: &TensorView<'_>, shape: &[usize]) -> Result<(), CheckpointError> {
    if view.shape == shape {
        Ok(())
    } else {
        Err(view.error(format!("shape {:?}, but config.json implies {shape:?}", view.shape)))
    }
}

/// Checks all axes but the last, which is returned.
fn expect_matrix(view: &TensorView<'_>, lead: &[usize], rows: usize) -> Result<usize, CheckpointError> {
    match view.shape.split_last() {
        Some((&last, outer)) if outer == [lead, &[rows]].concat() => Ok(last),
        _ => Err(view.error(format!(
            "shape {:?}, but config.json implies {:?} before the packed axis",
            view.shape,
            [lead, &[rows]].concat()
        ))),
    }
}
