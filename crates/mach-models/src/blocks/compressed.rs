//! Attention over a window and compressed entries, with its projections; and what mixes residual streams around blocks.

use mach_checkpoint::CheckpointError;

use super::Workspace;
use crate::device::{
    CompressedInputs, CompressedSpec, CompressedWeights, Device, IndexSpec, Loader, PoolSpec, PoolWeights,
    StreamSpec, StreamWeights,
};

/// Projections of one pass.
#[derive(Debug, Default)]
pub(crate) struct Projections<B> {
    /// Queries on their way down, and normed there.
    low: [B; 2],
    queries: B,
    keys: B,
    pool: [B; 2],
    index_pool: [B; 2],
    index_queries: B,
    index_weights: B,
    /// Outputs of groups of heads.
    grouped: B,
}

/// Values and gates of a pool.
#[derive(Debug)]
struct Pool<M> {
    values: M,
    gates: M,
}

#[derive(Debug)]
struct Index<M> {
    pool: Pool<M>,
    queries: M,
    weights: M,
}

#[derive(Debug)]
pub(crate) struct Compressed<M, V> {
    spec: CompressedSpec,
    q_down: M,
    q_norm: V,
    q_up: M,
    keys: M,
    out_groups: M,
    out: M,
    pool: Option<Pool<M>>,
    index: Option<Index<M>>,
    weights: CompressedWeights<V>,
}

/// A pool and its small weights.
type Pooled<M, V> = (Pool<M>, PoolWeights<V>);

/// The two projections and small weights of a pool under `base`.
fn load_pool<L: Loader>(
    from: &mut L,
    base: &str,
    spec: &PoolSpec,
    width: usize,
) -> Result<Pooled<L::Matrix, L::Vector>, CheckpointError> {
    let hidden = from.config().hidden_size;
    let inner = if spec.overlap { 2 * width } else { width };
    let pool = Pool {
        values: from.float_matrix(&format!("{base}.wkv"), inner, hidden)?,
        gates: from.float_matrix(&format!("{base}.wgate"), inner, hidden)?,
    };
    let weights = PoolWeights {
        ape: from.vector(&format!("{base}.ape"), &[spec.ratio, inner])?,
        norm: from.norm(&format!("{base}.norm.weight"), width)?,
    };
    Ok((pool, weights))
}

impl<M: Copy, V> Compressed<M, V> {
    /// The modules under `{layer}.attn`.
    pub(crate) fn load(
        from: &mut impl Loader<Matrix = M, Vector = V>,
        layer: &str,
        spec: &CompressedSpec,
    ) -> Result<Self, CheckpointError> {
        let hidden = from.config().hidden_size;
        let CompressedSpec { heads, head_dim, q_rank, out_groups, out_rank, .. } = *spec;
        let width = heads * head_dim;
        let base = format!("{layer}.attn");
        let pool = match &spec.pool {
            Some(pool) => Some(load_pool(from, &format!("{base}.compressor"), pool, head_dim)?),
            None => None,
        };
        let index = match &spec.pool {
            Some(pool @ PoolSpec { index: Some(index), .. }) => {
                let IndexSpec { heads, head_dim, .. } = *index;
                let base = format!("{base}.indexer");
                let (pool, weights) = load_pool(from, &format!("{base}.compressor"), pool, head_dim)?;
                let queries = from.matrix(&format!("{base}.wq_b"), heads * head_dim, q_rank)?;
                let scales = from.float_matrix(&format!("{base}.weights_proj"), heads, hidden)?;
                Some((Index { pool, queries, weights: scales }, weights))
            }
            _ => None,
        };
        let (pool, pool_weights) = pool.unzip();
        let (index, index_weights) = index.unzip();
        Ok(Compressed {
            q_down: from.matrix(&format!("{base}.wq_a"), q_rank, hidden)?,
            q_norm: from.norm(&format!("{base}.q_norm.weight"), q_rank)?,
            q_up: from.matrix(&format!("{base}.wq_b"), width, q_rank)?,
            keys: from.matrix(&format!("{base}.wkv"), head_dim, hidden)?,
            out_groups: from.matrix(&format!("{base}.wo_a"), out_groups * out_rank, width / out_groups)?,
            out: from.matrix(&format!("{base}.wo_b"), hidden, out_groups * out_rank)?,
            pool,
            index,
            weights: CompressedWeights {
                kv_norm: from.norm(&format!("{base}.kv_norm.weight"), head_dim)?,
                sinks: from.vector(&format!("{base}.attn_sink"), &[heads])?,
                pool: pool_weights,
                index: index_weights,
            },
            spec: *spec,
        })
    }

    /// From `ws.x` to `ws.y`.
    pub(crate) fn forward<D: Device<Matrix = M, Vector = V>>(
        &self,
        d: &mut D,
        ws: &mut Workspace<D>,
        states: &mut [&mut D::LayerState],
    ) {
        let Workspace { x, y, mixed, projections: p, .. } = ws;
        let [low, normed] = &mut p.low;
        d.linear(x, &[self.q_down, self.keys], &mut [&mut *low, &mut p.keys]);
        d.norm(low, &self.q_norm, self.spec.eps, normed);
        if let Some(pool) = &self.pool {
            let [values, gates] = &mut p.pool;
            d.linear(x, &[pool.values, pool.gates], &mut [values, gates]);
        }
        match &self.index {
            Some(index) => {
                let [values, gates] = &mut p.index_pool;
                let Pool { values: v, gates: g } = index.pool;
                d.linear(x, &[v, g, index.weights], &mut [values, gates, &mut p.index_weights]);
                let (queries, index_queries) = (&mut p.queries, &mut p.index_queries);
                d.linear(normed, &[self.q_up, index.queries], &mut [queries, index_queries]);
            }
            None => d.linear(normed, &[self.q_up], &mut [&mut p.queries]),
        }
        let inputs = CompressedInputs {
            queries: &p.queries,
            keys: &p.keys,
            pool: [&p.pool[0], &p.pool[1]],
            index_pool: [&p.index_pool[0], &p.index_pool[1]],
            index_queries: &p.index_queries,
            index_weights: &p.index_weights,
        };
        d.compressed_attention(&self.spec, &self.weights, &inputs, states, mixed);
        d.grouped_linear(mixed, &self.out_groups, self.spec.out_groups, &mut p.grouped);
        d.linear(&p.grouped, &[self.out], &mut [y]);
    }
}

/// Where the streams of a layer meet its two blocks.
#[derive(Debug)]
pub(crate) struct Streams<V> {
    pub(crate) spec: StreamSpec,
    pub(crate) mixer: StreamWeights<V>,
    pub(crate) feed_forward: StreamWeights<V>,
}

/// The tensors `{base}_fn`, `{base}_base` and `{base}_scale`, of `outputs` outputs and `scales` scales.
pub(crate) fn load_streams<L: Loader>(
    from: &mut L,
    base: &str,
    spec: &StreamSpec,
    end: bool,
) -> Result<StreamWeights<L::Vector>, CheckpointError> {
    let (hidden, n) = (from.config().hidden_size, spec.streams);
    let (outputs, scales) = if end { (n, 1) } else { ((2 + n) * n, 3) };
    Ok(StreamWeights {
        project: from.vector(&format!("{base}_fn"), &[outputs, n * hidden])?,
        base: from.vector(&format!("{base}_base"), &[outputs])?,
        scale: from.vector(&format!("{base}_scale"), &[scales])?,
    })
}

impl<V> Streams<V> {
    /// The tensors `{layer}.hc_attn_*` and `{layer}.hc_ffn_*`.
    pub(crate) fn load(
        from: &mut impl Loader<Vector = V>,
        layer: &str,
        spec: &StreamSpec,
    ) -> Result<Self, CheckpointError> {
        Ok(Streams {
            spec: *spec,
            mixer: load_streams(from, &format!("{layer}.hc_attn"), spec, false)?,
            feed_forward: load_streams(from, &format!("{layer}.hc_ffn"), spec, false)?,
        })
    }
}
