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
}

/// Queries that a workgroup takes where no sequence has more than `rows` rows.
pub fn queries(group: u32, head_dim: u32, rows: u32) -> u32 {
    let most = if head_dim <= 256 { 8 } else { 4 };
    (rows * group).next_power_of_two().clamp(2, most)
}

/// What a shader of pages is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Width of a head.
    pub head_dim: u32,
    /// Queries of a workgroup: 2, 4 or 8.
    pub queries: u32,
    /// A page a workgroup.
    pub split: bool,
    /// There are sinks.
    pub sinks: bool,
    /// Threads swap values inside a subgroup, not in memory.
    pub shuffle: bool,
    /// Rows of several sequences.
    pub batched: bool,
    /// Outputs are multiplied by gates (by the merge, where there is one).
    pub gated: bool,
}

/// The shader of pages.
pub fn shader(made: Made) -> Shader {
    let Made { head_dim, queries, split, sinks, shuffle, batched, gated } = made;
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
        .with("BATCHED", batched)
        .with("GATED", gated)
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
pub fn merge_shader(head_dim: u32, sinks: bool, gated: bool) -> Shader {
    Shader::new("attention merge", include_str!("../wgsl/attention_merge.wgsl"))
        .after(SEEN)
        .with("HEAD_DIM", head_dim)
        .with("THREADS", head_dim.min(256))
        .with("SINKS", sinks)
        .with("GATED", gated)
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

/// What [`attend`] takes beside the buffers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch<'a> {
    /// Rows of several sequences. Then `first_row` and `table_at` are not looked at, `rows` are those of all, `pages`
    /// reaches over the pages of all, and ranges are counted from row 0.
    pub blocks: Option<Blocks<'a>>,
    /// Raw queries `[_, query_heads, 2 * head_dim]`, each head's query and then the gate of its output, and the first
    /// word of them.
    pub gates: Option<(Slice<'a>, u32)>,
}

/// Blocks of several sequences.
#[derive(Debug, Clone, Copy)]
pub struct Blocks<'a> {
    /// Of [`blocks`], one sequence behind the other.
    pub list: Slice<'a>,
    /// How many.
    pub count: u32,
    /// What they were made with.
    pub queries: u32,
}

/// Appends the blocks of a sequence's rows, from `first_row` of the pass on, whose pages begin at `table_at`. `group` is
/// the number of query heads of a key/value head.
pub fn blocks(
    (first_row, rows): (u32, u32),
    table_at: u32,
    group: u32,
    queries: u32,
    out: &mut Vec<[u32; 4]>,
) {
    let all = rows * group;
    let block = |first: u32| [first_row, first, queries.min(all - first), table_at];
    out.extend((0..all).step_by(queries.max(1) as usize).map(block));
}

/// Attends, rows of one sequence, without gates.
pub fn attention(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    params: &Attention,
    buffers: &Buffers<'_>,
) -> Result<(), GpuError> {
    attend(recorder, pipelines, params, buffers, &Batch::default())
}

/// Attends.
pub fn attend(
    recorder: &mut Recorder,
    pipelines: &Pipelines,
    params: &Attention,
    buffers: &Buffers<'_>,
    batch: &Batch<'_>,
) -> Result<(), GpuError> {
    let Attention { heads, query_heads, head_dim, rows, table_at, ranges_at, scale, .. } = *params;
    let pages = params.pages.end.saturating_sub(params.pages.start);
    if !head_dim.is_multiple_of(16) || head_dim > 512 || heads == 0 || !query_heads.is_multiple_of(heads) {
        return Err(GpuError::Invalid(format!(
            "attention of {query_heads} over {heads} heads of {head_dim}"
        )));
    }
    if rows == 0 || pages == 0 {
        return Ok(());
    }
    let Buffers { q, table, ranges, sinks, out, .. } = *buffers;
    let parts = buffers.parts.filter(|parts| pages > 1 && parts.bytes() >= params.parts_bytes());
    let group = query_heads / heads;
    let first_row = if batch.blocks.is_some() { 0 } else { params.first_row };
    let (queries, blocks) = match &batch.blocks {
        Some(blocks) => (blocks.queries, blocks.count),
        None => {
            let queries = queries(group, head_dim, rows);
            (queries, (rows * group).div_ceil(queries))
        }
    };
    let split = parts.is_some();
    let made = Made {
        head_dim,
        queries,
        split,
        sinks: sinks.is_some(),
        shuffle: pipelines.context().has_shuffles(),
        batched: batch.blocks.is_some(),
        gated: batch.gates.is_some() && !split,
    };
    let flags = [split, made.sinks, made.shuffle, made.batched, made.gated];
    let flags = flags.iter().fold(0, |flags, flag| 2 * flags + u32::from(*flag));
    let pipeline = pipelines.keyed(("attention", [head_dim, queries, flags, 0]), || shader(made))?;
    // What is not there is not looked at, but something must be bound.
    let sink = sinks.unwrap_or(q);
    let list = batch.blocks.map_or(ranges, |blocks| blocks.list);
    let (gates, gates_at) = batch.gates.unwrap_or((q, 0));
    let to = parts.map_or(out, Slice::from);
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
        gates_at,
    ];
    let deep = if split { pages } else { 1 };
    let all = [q, buffers.pages, table, ranges, sink, to, list, gates];
    recorder.dispatch(&pipeline, &all, &words, [blocks, heads, deep])?;
    let Some(parts) = parts else { return Ok(()) };
    let (has_sinks, gated) = (sinks.is_some(), batch.gates.is_some());
    let words = [rows, query_heads, first_row, ranges_at, params.pages.start, gates_at];
    let key = ("attention merge", [head_dim, u32::from(has_sinks), u32::from(gated), 0]);
    let pipeline = pipelines.keyed(key, || merge_shader(head_dim, has_sinks, gated))?;
    recorder.dispatch(&pipeline, &[parts.into(), ranges, sink, out, gates], &words, grid(rows * query_heads))
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
