//! Queries and keys on their way to attention, and keys and values into pages: as
//! `mach_kernels::elementwise::prepare_heads` and `mach_kernels::attention::KvCache::append`.

use super::{SUMS, grid};
use crate::{GpuError, Pipelines, Recorder, Shader, Slice};

/// Positions of a page.
pub const PAGE: u32 = 256;

/// Query or key heads.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Rows of the pass.
    pub rows: u32,
    /// Heads of a row.
    pub heads: u32,
    /// Width of a head, a multiple of 16.
    pub head_dim: u32,
    /// Words from one head of `x` to the next (twice `head_dim` where a gate follows each query).
    pub head_stride: u32,
    /// First word of `x`.
    pub x_at: u32,
    /// Leading elements of a head that are rotated; may be 0.
    pub rotary_dim: u32,
    /// First word of `angles`.
    pub angles_at: u32,
    /// First word of `out`.
    pub out_at: u32,
    /// Epsilon of the norm.
    pub eps: f32,
}

/// The shader for heads of this width, normed or not.
pub fn heads_shader(head_dim: u32, norm: bool) -> Shader {
    let teams = if head_dim <= 256 { 8 } else { 4 };
    Shader::new("heads", include_str!("../wgsl/heads.wgsl"))
        .after(SUMS)
        .with("TEAMS", teams)
        .with("HEAD_DIM", head_dim)
        .with("NORM", norm)
}

/// Norms heads, if there is a weight `[head_dim]`, and rotates them by `angles` `[rows, rotary_dim]` (cosines, then sines,
/// of each row). `x` is `[rows, heads, head_stride]`, `out` `[rows, heads, head_dim]` and another buffer.
pub fn heads(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    params: &Heads,
    x: Slice<'_>,
    norm: Option<Slice<'_>>,
    angles: Slice<'_>,
    out: Slice<'_>,
) -> Result<(), GpuError> {
    let Heads { rows, heads, head_dim, head_stride, x_at, rotary_dim, angles_at, out_at, eps } = *params;
    if !head_dim.is_multiple_of(16)
        || head_dim > 1024
        || rotary_dim > head_dim
        || !rotary_dim.is_multiple_of(2)
    {
        return Err(GpuError::Invalid(format!("heads of {head_dim}, {rotary_dim} of it rotated")));
    }
    let count = rows * heads;
    let words = [heads, head_stride, rotary_dim, x_at, count, angles_at, out_at, eps.to_bits()];
    let key = ("heads", [head_dim, u32::from(norm.is_some()), 0, 0]);
    let pipeline = pipelines.keyed(key, || heads_shader(head_dim, norm.is_some()))?;
    let teams = pipeline.interface().workgroup[0] / 16;
    // Without a norm its weight is not looked at, but something must be bound.
    recorder.dispatch(
        &pipeline,
        &[x, norm.unwrap_or(angles), angles, out],
        &words,
        grid(count.div_ceil(teams)),
    )
}

/// New positions of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Append {
    /// Key/value heads.
    pub heads: u32,
    /// Width of a head, a multiple of 16.
    pub head_dim: u32,
    /// How many.
    pub rows: u32,
    /// Position of the first.
    pub position: u32,
    /// Their first row in keys and values.
    pub first_row: u32,
    /// First word of the sequence's pages in the table.
    pub table_at: u32,
}

/// Words of a page.
pub fn page_words(heads: u32, head_dim: u32) -> u32 {
    heads * PAGE * head_dim
}

/// The shader for heads of this width.
pub fn append_shader(head_dim: u32) -> Shader {
    Shader::new("append", include_str!("../wgsl/append.wgsl")).with("HEAD_DIM", head_dim)
}

/// Writes keys and values `[_, heads, head_dim]` into pages. `table` holds the number of the page of each 256 positions;
/// page `n` begins at word `n * page_words` of `pages`.
pub fn append(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    params: &Append,
    keys: Slice<'_>,
    values: Slice<'_>,
    table: Slice<'_>,
    pages: Slice<'_>,
) -> Result<(), GpuError> {
    let Append { heads, head_dim, rows, position, first_row, table_at } = *params;
    let words = [heads, rows, position, first_row, table_at];
    let groups = grid((rows * heads * head_dim / 2).div_ceil(256));
    let pipeline = pipelines.keyed(("append", [head_dim, 0, 0, 0]), || append_shader(head_dim))?;
    recorder.dispatch(&pipeline, &[keys, values, table, pages], &words, groups)
}
