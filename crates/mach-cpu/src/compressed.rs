//! Compressed attention, residual streams and routing by score on the CPU.

use mach_kernels::attention::PAGE;
use mach_kernels::compressed::{
    self, CellType, CompressedScratch, CompressedShape, CompressedState, IndexInputs, IndexShape, PoolInputs,
    PoolShape, Yarn,
};
use mach_kernels::elementwise::Rope;
use mach_kernels::linear::{MatRef, Product, multiply};
use mach_kernels::quantize::Operand;
use mach_kernels::routing::{Choice, route_by_score};
use mach_kernels::streams::{self, StreamScratch, StreamShape};
use mach_models::KvFormat;
use mach_models::device::{
    ChoiceWeights, CompressedInputs, CompressedSpec, CompressedWeights, PoolWeights, RouterSpec, StreamSpec,
    StreamWeights, YarnSpec,
};
use mach_quant::{Order, TILE_ROWS};

use crate::cpu::{Buf, Cpu, Routing};
use crate::placement::Matrix;
use crate::state::CpuState;

/// What only this family of layers needs of a device.
#[derive(Debug, Default)]
pub(crate) struct Compressing {
    /// The token of each row of the pass.
    pub(crate) tokens: Vec<u32>,
    /// Rotations met so far.
    ropes: Vec<(RopeKey, Rope)>,
    scratch: CompressedScratch,
    streams: StreamScratch,
    operand: Operand,
    scores: Buf,
}

/// Base, rotated elements, and how they are stretched.
type RopeKey = (f64, usize, Option<YarnSpec>);

fn rope(ropes: &mut Vec<(RopeKey, Rope)>, spec: &CompressedSpec) -> usize {
    let key = (spec.theta, spec.rotary_dim, spec.yarn);
    ropes.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
        let rope = match &spec.yarn {
            Some(YarnSpec { factor, original, beta_fast, beta_slow }) => {
                let (factor, original, beta_fast, beta_slow) = (*factor, *original, *beta_fast, *beta_slow);
                let yarn = Yarn { factor, original, beta_fast, beta_slow };
                compressed::stretched(spec.theta, spec.rotary_dim, &yarn)
            }
            None => Rope::new(spec.theta, spec.rotary_dim),
        };
        ropes.push((key, rope));
        ropes.len() - 1
    })
}

/// The kernels' form of the sizes.
pub(crate) fn shape(spec: &CompressedSpec, format: KvFormat) -> CompressedShape {
    let pool = spec.pool.map(|pool| PoolShape {
        ratio: pool.ratio,
        overlap: pool.overlap,
        index: pool.index.map(|i| IndexShape { heads: i.heads, head_dim: i.head_dim, top_k: i.top_k }),
    });
    let cells = match format {
        KvFormat::F32 => CellType::F32,
        KvFormat::Bf16 | KvFormat::TurboQuant(_) => CellType::Bf16,
    };
    let CompressedSpec { heads, head_dim, rotary_dim, window, .. } = *spec;
    CompressedShape { heads, head_dim, rotary_dim, window, pool, cells }
}

/// Bytes that a sequence of `tokens` tokens keeps of a layer.
pub(crate) fn state_bytes(spec: &CompressedSpec, format: KvFormat, tokens: usize) -> usize {
    // As if it ended with a page of the other kinds of layers, so that estimates grow in the same steps.
    CompressedState::bytes_at(&shape(spec, format), tokens.next_multiple_of(PAGE))
}

fn pool(weights: &PoolWeights<Vec<f32>>) -> compressed::PoolWeights<'_> {
    compressed::PoolWeights { ape: &weights.ape, norm: &weights.norm }
}

fn stream_shape(spec: &StreamSpec, hidden: usize) -> StreamShape {
    let StreamSpec { streams, iterations, eps, norm_eps } = *spec;
    StreamShape { streams, hidden, iterations, eps, norm_eps }
}

impl Cpu {
    pub(crate) fn run_compressed(
        &mut self,
        spec: &CompressedSpec,
        weights: &CompressedWeights<Vec<f32>>,
        inputs: &CompressedInputs<'_, Buf>,
        states: &mut [&mut CpuState],
        out: &mut Buf,
    ) {
        out.shape(inputs.queries.rows(), spec.heads * spec.head_dim);
        let weights = compressed::CompressedWeights {
            kv_norm: &weights.kv_norm,
            sinks: &weights.sinks,
            pool: weights.pool.as_ref().map(pool),
            index: weights.index.as_ref().map(pool),
            eps: spec.eps,
        };
        let Compressing { ropes, scratch, .. } = &mut self.compressing;
        let at = rope(ropes, spec);
        let Some((_, rope)) = ropes.get(at) else { return };
        for (span, state) in self.spans.iter().zip(states.iter_mut()) {
            let CpuState::Compressed(state) = &mut **state else { continue };
            let rows = |buf: &Buf| span.start * buf.width..(span.start + span.rows) * buf.width;
            let shape = *state.shape();
            let pool_of = |bufs| pool_inputs(bufs, span.start, span.rows);
            let entries = shape.pool.map(|_| pool_of(inputs.pool));
            let index = shape.pool.and_then(|pool| pool.index).map(|_| IndexInputs {
                pool: pool_of(inputs.index_pool),
                queries: &inputs.index_queries.data[rows(inputs.index_queries)],
                weights: &inputs.index_weights.data[rows(inputs.index_weights)],
            });
            let inputs = compressed::CompressedInputs {
                queries: &inputs.queries.data[rows(inputs.queries)],
                keys: &inputs.keys.data[rows(inputs.keys)],
                pool: entries,
                index,
            };
            let to = rows(out);
            let out = &mut out.data[to];
            compressed::attend(
                &mut self.cores,
                &shape,
                &weights,
                rope,
                state,
                scratch,
                &inputs,
                span.rows,
                out,
            );
        }
    }

    pub(crate) fn run_grouped(&mut self, x: &Buf, weight: &Matrix, groups: usize, out: &mut Buf) {
        let (rows, layout) = (x.rows(), weight.layout);
        let each = layout.rows / groups.max(1);
        out.shape(rows, layout.rows);
        let whole = self.stores.get(weight);
        for group in 0..groups {
            let (part, bytes) = match layout.order {
                Order::Tiles => (each / TILE_ROWS, layout.unit_bytes()),
                Order::Rows => (each, layout.unit_bytes()),
            };
            let data = whole.bytes(group * part * bytes..(group + 1) * part * bytes);
            let matrix = MatRef::new(mach_quant::MatrixLayout { rows: each, ..layout }, data);
            let operand = &mut self.compressing.operand;
            let from = x.data.get(group * layout.cols..).unwrap_or_default();
            operand.prepare(&mut self.cores, &layout, from, x.width, rows);
            let out = out.data.get_mut(group * each..).unwrap_or_default();
            let product = Product { matrix, operand, out, stride: layout.rows };
            multiply(&mut self.cores, &mut [product]);
        }
    }

    pub(crate) fn run_collapse(
        &mut self,
        spec: &StreamSpec,
        weights: &StreamWeights<Vec<f32>>,
        x: &Buf,
        mixing: &mut Buf,
        out: &mut Buf,
    ) {
        out.shape(x.rows(), x.width / spec.streams.max(1));
        let shape = stream_shape(spec, out.width);
        mixing.width = shape.mixing();
        let StreamWeights { project, base, scale } = weights;
        let weights = streams::StreamWeights { project, base, scale };
        let scratch = &mut self.compressing.streams;
        streams::collapse(
            &mut self.cores,
            &shape,
            &weights,
            &x.data,
            scratch,
            &mut mixing.data,
            &mut out.data,
        );
    }

    pub(crate) fn run_mix(&mut self, spec: &StreamSpec, mixing: &Buf, y: &Buf, x: &mut Buf) {
        streams::mix(&mut self.cores, &stream_shape(spec, y.width), &mixing.data, &y.data, &mut x.data);
    }

    pub(crate) fn run_route_by_score(
        &mut self,
        spec: &RouterSpec,
        x: &Buf,
        router: &Matrix,
        choice: &ChoiceWeights<Vec<f32>>,
        out: &mut Routing,
    ) {
        let mut scores = std::mem::take(&mut self.compressing.scores);
        mach_models::device::Device::linear(self, x, &[*router], &mut [&mut scores]);
        let rows = x.rows();
        out.experts.clear();
        out.experts.resize(rows * spec.top_k, 0);
        out.weights.clear();
        out.weights.resize(rows * spec.top_k, 0.0);
        out.shared.clear();
        let choice = match (&choice.table, &choice.bias) {
            (Some(table), _) => Choice::ByToken(table, &self.compressing.tokens),
            (None, Some(bias)) => Choice::Biased(bias),
            (None, None) => Choice::Best,
        };
        let (experts, weights) = (&mut out.experts, &mut out.weights);
        let (width, normalise) = (scores.width, spec.normalise);
        route_by_score(
            &mut self.cores,
            &mut scores.data,
            width,
            choice,
            normalise,
            spec.scale,
            experts,
            weights,
        );
        self.compressing.scores = scores;
    }
}

/// The rows of a span of a pool's two projections.
fn pool_inputs<'a>([values, gates]: [&'a Buf; 2], start: usize, rows: usize) -> PoolInputs<'a> {
    let range = start * values.width..(start + rows) * values.width;
    PoolInputs {
        values: values.data.get(range.clone()).unwrap_or_default(),
        gates: gates.data.get(range).unwrap_or_default(),
    }
}
