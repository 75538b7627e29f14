//! Attention over pages, as `mach_kernels::attention::attend_ranges`.
//!
//! Few queries have their pages worked on side by side, each by a workgroup of its own that leaves a part behind; the
//! parts are then merged in ascending order. Many queries fill the device by themselves, and go through their pages one
//! after the other. Both give the same bits.

use std::ops::Range;

use super::{SUMS, grid, swap};
use crate::{GpuError, Pipelines, Recorder, Shader, Slice, Storage};

const SEEN: &str = include_str!("../wgsl/seen.wgsl");

/// Query rows of one sequence.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Key/value heads.
    pub heads: u32,
    /// Query heads, a multiple of `heads`.
    pub query_heads: u32,
    /// Width of a head, a multiple of 16, at most 512.
    pub head_dim: u32,
    /// Rows.
    pub rows: u32,
    /// The first of them in `q` and `out`.
    pub first_row: u32,
    /// First word of the sequence's pages in the table.
    pub table_at: u32,
    /// Where the rows' ranges begin, in ranges.
    pub ranges_at: u32,
    /// Pages that the ranges reach: from that of the lowest first position to that of the highest last one.
    pub pages: Range<u32>,
    /// Multiplies products.
    pub scale: f32,
}

impl Attention {
    /// Bytes of parts that it takes to work on pages side by side.
    pub fn parts_bytes(&self) -> u64 {
        4 * u64::from(self.rows)
            * u64::from(self.query_heads)
            * u64::from(self.head_dim + 2)
            * u64::from(self.pages.end.saturating_sub(self.pages.start))
    }

    /// Queries of a workgroup.
    fn queries(&self) -> u32 {
        let per_head = self.rows * self.query_heads / self.heads.max(1);
        let most = if self.head_dim <= 256 { 8 } else { 4 };
        per_head.next_power_of_two().clamp(2, most)
    }
}

/// The shader of pages. With `shuffle` threads swap values inside a subgroup, without in memory.
pub fn shader(head_dim: u32, queries: u32, split: bool, sinks: bool, shuffle: bool) -> Shader {
    Shader::new("attention", include_str!("../wgsl/attention.wgsl"))
        .after(SUMS)
        .after(SEEN)
        .after(swap(shuffle))
        .after_generated(products(queries as usize))
        .with("TEAMS", queries)
        .with("QUERIES", queries)
        .with("HEAD_DIM", head_dim)
        .with("SUMS", if split { 1 } else { queries * head_dim })
        .with("SPLIT", split)
        .with("SINKS", sinks)
}

/// `products`: four threads have a key, a quarter of the sixteen partial sums each, for all queries, whose sums are
/// variables of their own, so that they stay in registers. In the end each thread has some of the queries: what it gives
/// away and what it keeps are exchanged twice, and added in the order of the tree.
fn products(queries: usize) -> String {
    let mut text =
        String::from("fn products(key: u32, inside: bool, quarter: u32, t: u32, position: u32) {\n");
    let each = |f: &dyn Fn(usize) -> String, n: usize| (0..n).map(f).collect::<String>();
    text += &each(&|i| format!("  var a{i} = vec4<f32>();\n"), queries);
    text += "  if (inside) {\n    for (var d = 0u; d < HEAD_DIM / 4u; d += 4u) {\n";
    text += "      let k = wide(cache[key + d]);\n      let at = d + quarter;\n";
    text += &each(&|i| format!("      a{i} = fma4(query[at + {i}u * (HEAD_DIM / 4u)], k, a{i});\n"), queries);
    text += "    }\n  }\n  let low = quarter < 2u;\n  let even = (quarter & 1u) == 0u;\n";
    // Partial sums i and i + 8 lie two threads apart, then i and i + 4 one.
    let half = queries / 2;
    text += &each(
        &|i| {
            let j = i + half;
            format!("  let b{i} = select(a{j}, a{i}, low) + swap(select(a{i}, a{j}, low), 2u, t);\n")
        },
        half,
    );
    let kept = half.div_ceil(2);
    text += &each(
        &|i| {
            let j = (i + kept) % half;
            format!("  let c{i} = select(b{j}, b{i}, even) + swap(select(b{i}, b{j}, even), 1u, t);\n")
        },
        kept,
    );
    text += "  if (!inside) { return; }\n";
    text += &format!("  let first = select({half}u, 0u, low) + select({}u, 0u, even);\n", half - kept);
    text += &each(
        &|i| {
            format!(
                "  score[(first + {i}u) * PAGE + position] = ((c{i}.x + c{i}.z) + (c{i}.y + c{i}.w)) * p.scale;\n"
            )
        },
        kept,
    );
    text + "}\n"
}

/// The shader that merges parts.
pub fn merge_shader(head_dim: u32, sinks: bool) -> Shader {
    Shader::new("attention merge", include_str!("../wgsl/attention_merge.wgsl"))
        .after(SEEN)
        .with("HEAD_DIM", head_dim)
        .with("THREADS", head_dim.min(256))
        .with("SINKS", sinks)
}

/// The shader of output gates.
pub fn gate_shader(head_dim: u32) -> Shader {
    Shader::new("attention gate", include_str!("../wgsl/attention_gate.wgsl")).with("HEAD_DIM", head_dim)
}

/// Buffers of [`attention`].
#[derive(Debug, Clone, Copy)]
pub struct Buffers<'a> {
    /// Prepared queries `[_, query_heads, head_dim]`.
    pub q: Slice<'a>,
    /// The pool of pages (see [`append`](super::heads::append)).
    pub pages: Slice<'a>,
    /// Number of the page of each 256 positions.
    pub table: Slice<'a>,
    /// For each row the first position that it sees and the one behind the last; not empty.
    pub ranges: Slice<'a>,
    /// `[query_heads]`, for each a score without a value.
    pub sinks: Option<Slice<'a>>,
    /// Room for [`parts_bytes`](Attention::parts_bytes); with less, or without, pages are worked on in turn.
    pub parts: Option<&'a Storage>,
    /// `[_, query_heads, head_dim]`.
    pub out: Slice<'a>,
}

/// Attends.
pub fn attention(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    params: &Attention,
    buffers: &Buffers<'_>,
) -> Result<(), GpuError> {
    let Attention { heads, query_heads, head_dim, rows, first_row, table_at, ranges_at, scale, .. } = *params;
    let pages = params.pages.end.saturating_sub(params.pages.start);
    if !head_dim.is_multiple_of(16) || head_dim > 512 || !query_heads.is_multiple_of(heads.max(1)) {
        return Err(GpuError::Invalid(format!(
            "attention of {query_heads} over {heads} heads of {head_dim}"
        )));
    }
    if rows == 0 || pages == 0 {
        return Ok(());
    }
    let Buffers { q, table, ranges, sinks, out, .. } = *buffers;
    let parts = buffers.parts.filter(|parts| pages > 1 && parts.bytes() >= params.parts_bytes());
    let queries = params.queries();
    let group = query_heads / heads.max(1);
    let blocks = (rows * group).div_ceil(queries);
    let words = [
        heads,
        group,
        rows,
        first_row,
        table_at,
        ranges_at,
        params.pages.start,
        pages,
        blocks,
        scale.to_bits(),
    ];
    let (split, has_sinks) = (parts.is_some(), sinks.is_some());
    let shuffle = pipelines.context().has_shuffles();
    let key = ("attention", [head_dim, queries, u32::from(split), u32::from(has_sinks)]);
    let pipeline = pipelines.keyed(key, || shader(head_dim, queries, split, has_sinks, shuffle))?;
    // Without sinks nothing is looked at, but something must be bound.
    let sink = sinks.unwrap_or(q);
    let to = parts.map_or(out, Slice::from);
    let deep = if split { pages } else { 1 };
    recorder.dispatch(
        &pipeline,
        &[q, buffers.pages, table, ranges, sink, to],
        &words,
        [blocks, heads, deep],
    )?;
    let Some(parts) = parts else { return Ok(()) };
    let words = [rows, query_heads, first_row, ranges_at, params.pages.start, pages];
    let key = ("attention merge", [head_dim, u32::from(has_sinks), 0, 0]);
    let pipeline = pipelines.keyed(key, || merge_shader(head_dim, has_sinks))?;
    let sink = sinks.unwrap_or(table);
    recorder.dispatch(&pipeline, &[parts.into(), ranges, sink, out], &words, grid(rows * query_heads))
}

/// `out *= sigmoid(gate)` for rows `[rows, heads, head_dim]` of `out`; `q` is `[rows, heads, 2 * head_dim]`, each head's
/// query and then its gate. Both begin at the given words.
#[allow(clippy::too_many_arguments)]
pub fn gate(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    (rows, heads, head_dim): (u32, u32, u32),
    (q_at, out_at): (u32, u32),
    q: Slice<'_>,
    out: Slice<'_>,
) -> Result<(), GpuError> {
    let elements = rows * heads * head_dim;
    let pipeline = pipelines.keyed(("attention gate", [head_dim, 0, 0, 0]), || gate_shader(head_dim))?;
    recorder.dispatch(&pipeline, &[q, out], &[elements, q_at, out_at], grid(elements.div_ceil(256)))
}
