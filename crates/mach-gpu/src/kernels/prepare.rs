//! What comes between the projections of attention and attention itself, for all rows of a pass at once: what
//! [`heads`](super::heads) does in three steps and a sequence at a time.

use super::{SUMS, grid};
use crate::{GpuError, Pipelines, Recorder, Shader, Slice};

/// Rows of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Prepare {
    /// Rows, of all sequences.
    pub rows: u32,
    /// Query heads; 0 where nothing is asked of the rows.
    pub query_heads: u32,
    /// Key/value heads.
    pub heads: u32,
    /// Width of a head, a multiple of 16, at most 1,024.
    pub head_dim: u32,
    /// Words from one query head to the next (twice `head_dim` where a gate follows each query).
    pub query_stride: u32,
    /// Leading elements of a head that are rotated; may be 0.
    pub rotary_dim: u32,
    /// First word of `angles`.
    pub angles_at: u32,
    /// First of `places`, in places.
    pub places_at: u32,
    /// Epsilon of the norms of queries and keys.
    pub eps: f32,
    /// Epsilon of the norm of values, which has no weight, if they are normed.
    pub value_norm: Option<f32>,
}

/// Buffers of [`prepare`].
#[derive(Debug, Clone, Copy)]
pub struct Buffers<'a> {
    /// `[rows, query_heads, query_stride]`.
    pub q: Slice<'a>,
    /// `[rows, heads, head_dim]`.
    pub k: Slice<'a>,
    /// `[rows, heads, head_dim]`; may be `k`.
    pub v: Slice<'a>,
    /// `[head_dim]`, if queries are normed.
    pub q_norm: Option<Slice<'a>>,
    /// `[head_dim]`, if keys are normed.
    pub k_norm: Option<Slice<'a>>,
    /// Cosines, then sines, `[rows, rotary_dim]`.
    pub angles: Slice<'a>,
    /// For each row its position, and where in `table` the pages of its sequence begin.
    pub places: Slice<'a>,
    /// Numbers of pages.
    pub table: Slice<'a>,
    /// `[rows, query_heads, head_dim]`.
    pub queries: Slice<'a>,
    /// The pool of pages (see [`append`](super::heads::append)).
    pub pages: Slice<'a>,
}

/// The shader for heads of this width, by what is normed: queries, keys, values.
pub fn shader(head_dim: u32, [q, k, v]: [bool; 3]) -> Shader {
    Shader::new("prepare", include_str!("../wgsl/prepare.wgsl"))
        .after(SUMS)
        .with("TEAMS", if head_dim <= 256 { 8 } else { 4 })
        .with("HEAD_DIM", head_dim)
        .with("Q_NORM", q)
        .with("K_NORM", k)
        .with("V_NORM", v)
}

/// Norms and rotates queries into `queries`, and keys into pages; values go into pages as they are, or normed.
pub fn prepare(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    params: &Prepare,
    buffers: &Buffers<'_>,
) -> Result<(), GpuError> {
    let Prepare { rows, query_heads, heads, head_dim, query_stride, rotary_dim, .. } = *params;
    if !head_dim.is_multiple_of(16)
        || head_dim > 1024
        || rotary_dim > head_dim
        || !rotary_dim.is_multiple_of(2)
    {
        return Err(GpuError::Invalid(format!("heads of {head_dim}, {rotary_dim} of it rotated")));
    }
    let Buffers { q, k, v, q_norm, k_norm, angles, places, table, queries, pages } = *buffers;
    let normed = [q_norm.is_some(), k_norm.is_some(), params.value_norm.is_some()];
    let flags = normed.iter().fold(0, |flags, flag| 2 * flags + u32::from(*flag));
    let pipeline = pipelines.keyed(("prepare", [head_dim, flags, 0, 0]), || shader(head_dim, normed))?;
    let words = [
        rows,
        query_heads,
        heads,
        query_stride,
        rotary_dim,
        params.angles_at,
        params.places_at,
        params.eps.to_bits(),
        params.value_norm.unwrap_or(0.0).to_bits(),
    ];
    // Weights that are not there are not looked at, but something must be bound.
    let all = [q, k, v, q_norm.unwrap_or(k), k_norm.unwrap_or(k), angles, places, table, queries, pages];
    let teams = pipeline.interface().workgroup[0] / 16;
    recorder.dispatch(&pipeline, &all, &words, grid((rows * (query_heads + 2 * heads)).div_ceil(teams)))
}
