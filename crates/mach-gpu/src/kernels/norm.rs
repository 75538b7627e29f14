//! RMS norm of rows, as `mach_kernels::elementwise::rms_norm`.

use super::{SUMS, grid};
use crate::{GpuError, Pipelines, Recorder, Shader, Slice};

/// Where the rows lie.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// How many.
    pub rows: u32,
    /// Width of a row.
    pub n: u32,
    /// First word of `x`.
    pub x_at: u32,
    /// Words from one row of `x` to the next.
    pub x_stride: u32,
    /// First word of `out`.
    pub out_at: u32,
    /// Words from one row of `out` to the next.
    pub out_stride: u32,
    /// Added to the mean of the squares.
    pub eps: f32,
}

impl Norm {
    /// Rows that lie one after the other, from the start of both buffers.
    pub fn of(rows: u32, n: u32, eps: f32) -> Norm {
        Norm { rows, n, x_at: 0, x_stride: n, out_at: 0, out_stride: n, eps }
    }
}

/// The shader.
pub fn shader() -> Shader {
    Shader::new("norm", include_str!("../wgsl/norm.wgsl")).after(SUMS).with("TEAMS", 1)
}

/// `out = x * (1 / sqrt(mean(x^2) + eps)) * w`; `w` is `[n]`. `out` is not `x`.
pub fn norm(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    params: &Norm,
    x: Slice<'_>,
    w: Slice<'_>,
    out: Slice<'_>,
) -> Result<(), GpuError> {
    let Norm { rows, n, x_at, x_stride, out_at, out_stride, eps } = *params;
    let words = [rows, n, x_at, x_stride, out_at, out_stride, eps.to_bits()];
    recorder.dispatch(&pipelines.keyed(("norm", [0; 4]), shader)?, &[x, w, out], &words, grid(rows))
}
