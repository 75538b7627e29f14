//! From a stored matrix to what `mach-quant` lays out.

use mach_quant::{Codec, FloatType, Source};

use crate::{CheckpointError, Dtype, LinearSource, Packing};

impl<'a> LinearSource<'a> {
    /// The matrix as `mach-quant` reads it. Formats that it cannot lay out are errors naming file and module.
    pub fn source(&self) -> Result<Source<'a>, CheckpointError> {
        let float = |dtype: Dtype| match dtype {
            Dtype::F32 => Ok(FloatType::F32),
            Dtype::F16 => Ok(FloatType::F16),
            Dtype::BF16 => Ok(FloatType::Bf16),
            other => Err(self.unusable(format!("element type {other:?} is not supported"))),
        };
        let codec = match self.packing {
            Packing::Dense(dtype) => Codec::Dense(float(dtype)?),
            Packing::Affine { bits, group, scales } => Codec::Affine { bits, group, scales: float(scales)? },
            Packing::Mxfp4 => Codec::Mxfp4,
            Packing::Fp8 { scales: Dtype::F8E8M0 | Dtype::U8 } => Codec::Fp8 { scales: None },
            Packing::Fp8 { scales } => Codec::Fp8 { scales: Some(float(scales)?) },
            Packing::Mxfp8 => Codec::Mxfp8,
            Packing::Nvfp4 => Codec::Nvfp4,
        };
        Source::with_axes(codec, (self.rows, self.cols), self.axes, [self.weight, self.scales, self.biases])
            .map_err(|e| self.unusable(e.to_string()))
    }

    fn unusable(&self, reason: String) -> CheckpointError {
        CheckpointError::tensor(self.file, self.module, reason)
    }
}
