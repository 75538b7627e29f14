//! The CPU backend: `mach-kernels` behind [`Backend`].

use mach_experts::MatrixView;
use mach_io::HugeBuf;
use mach_kernels::Cores;
use mach_kernels::attention::turbo::TurboQuant;
use mach_kernels::attention::{AttentionScratch, attend};
use mach_kernels::delta::{DeltaInputs, DeltaScratch, DeltaWeights, gated_delta, rewind};
use mach_kernels::elementwise::{self, Heads, Rope};
use mach_kernels::experts::{ExpertJob, ExpertRef, FfnScratch, expert_ffn};
use mach_kernels::linear::{MatRef, Product, multiply};
use mach_kernels::quantize::Operand;
use mach_quant::MatrixLayout;

use crate::backend::{AttentionSpec, Backend, DeltaParams, LayerStates, Mlp, Routing, Span};
use crate::cpu_experts::{Experts, RowKind};
use crate::model::{Activations, ModelError};
use crate::state::LayerState;

/// A matrix in the resident allocation.
#[derive(Debug, Clone, Copy)]
pub struct Matrix {
    pub(crate) layout: MatrixLayout,
    pub(crate) offset: usize,
}

/// Rows of activations.
#[derive(Debug, Default)]
pub struct Buf {
    pub(crate) data: Vec<f32>,
    pub(crate) width: usize,
}

impl Buf {
    fn shape(&mut self, rows: usize, width: usize) {
        self.width = width;
        self.data.resize(rows * width, 0.0);
    }

    pub(crate) fn rows(&self) -> usize {
        self.data.len() / self.width.max(1)
    }
}

/// The backend: thread pool, weights, working memory.
#[derive(Debug)]
pub struct Cpu {
    pub(crate) cores: Cores,
    activations: Activations,
    turboquant_kv: Option<TurboQuant>,
    pub(crate) resident: HugeBuf,
    resident_bytes: u64,
    pub(crate) experts: Experts,
    /// What each row of the pass is, for streaming.
    pub(crate) rows: Vec<RowKind>,
    rope: Option<(f64, Rope)>,
    angles: Vec<f32>,
    pub(crate) scratch: Scratch,
}

/// Working memory that passes reuse.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    operands: Vec<Operand>,
    heads: [Vec<f32>; 3],
    attention: AttentionScratch,
    delta: DeltaScratch,
    pub(crate) ffn: FfnScratch,
    pub(crate) lists: Vec<Vec<u32>>,
    pub(crate) all_rows: Vec<u32>,
    pub(crate) pairs: Vec<f32>,
    pub(crate) weights: Vec<f32>,
    pub(crate) places: Vec<u32>,
    routes: [Buf; 2],
}

impl Cpu {
    pub(crate) fn new(
        cores: Cores,
        activations: Activations,
        turboquant_kv: Option<TurboQuant>,
        resident: HugeBuf,
        resident_bytes: u64,
        experts: Experts,
    ) -> Self {
        let (rope, angles, scratch) = (None, Vec::new(), Scratch::default());
        let rows = Vec::new();
        Cpu {
            cores,
            activations,
            turboquant_kv,
            resident,
            resident_bytes,
            experts,
            rows,
            rope,
            angles,
            scratch,
        }
    }

    /// How keys and values are to be quantized.
    pub(crate) fn turboquant_kv(&self) -> Option<TurboQuant> {
        self.turboquant_kv
    }

    pub(crate) fn compute(&mut self) -> &mut Cores {
        &mut self.cores
    }

    pub(crate) fn activations(&self) -> Activations {
        self.activations
    }

    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        let allocated = self.experts.allocated_bytes();
        let huge = self.resident.huge_bytes().zip(self.experts.huge_bytes()).map(|(a, b)| a + b);
        let total = (self.resident.len() + allocated).max(1);
        let mut facts = vec![
            ("isa", self.cores.isa().to_string()),
            ("threads", self.cores.threads().to_string()),
            ("activations", if self.activations == Activations::Int8 { "int8" } else { "f32" }.into()),
            (
                "kv_type",
                match (self.activations, self.turboquant_kv) {
                    (Activations::F32, _) => "f32".into(),
                    (_, None) => "bf16".into(),
                    (_, Some(turbo)) => format!("turboquant-{turbo}"),
                },
            ),
            ("resident_weight_bytes", self.resident_bytes.to_string()),
            ("huge_page_share", huge.map_or("unknown".into(), |h| format!("{:.2}", h as f64 / total as f64))),
        ];
        facts.extend(self.experts.facts());
        facts
    }
}

/// The weights of a matrix. A free function, so that other fields stay borrowable.
pub(crate) fn weights<'a>(resident: &'a HugeBuf, m: &Matrix) -> MatRef<'a> {
    MatRef::new(m.layout, &resident[m.offset..m.offset + m.layout.bytes()])
}

pub(crate) fn view(m: MatrixView<'_>) -> MatRef<'_> {
    MatRef::new(m.layout, m.data)
}

impl Backend for Cpu {
    type Buf = Buf;
    type Matrix = Matrix;
    type Vector = Vec<f32>;

    fn read<'a>(&'a self, buf: &'a Buf) -> &'a [f32] {
        &buf.data
    }

    fn write(&mut self, rows: &[f32], width: usize, out: &mut Buf) {
        out.width = width;
        out.data.clear();
        out.data.extend_from_slice(rows);
    }

    fn take(&mut self, buf: &mut Buf) -> Vec<f32> {
        std::mem::take(&mut buf.data)
    }

    fn reuse(&mut self, values: Vec<f32>, buf: &mut Buf) {
        if values.capacity() > buf.data.capacity() {
            buf.data = values;
        }
    }

    fn begin(&mut self, spans: &[Span]) {
        self.begin_pass(spans);
    }

    fn embed(&mut self, table: &Matrix, ids: &[u32], out: &mut Buf) {
        out.shape(ids.len(), table.layout.cols);
        let table = weights(&self.resident, table);
        for (row, &id) in out.data.chunks_exact_mut(out.width.max(1)).zip(ids) {
            table.decode_row(id as usize, row);
        }
    }

    fn rms_norm(&mut self, x: &Buf, weight: &Vec<f32>, eps: f32, out: &mut Buf) {
        out.shape(x.rows(), x.width);
        elementwise::rms_norm(&mut self.cores, &x.data, weight, eps, &mut out.data);
    }

    fn add(&mut self, x: &mut Buf, y: &Buf) {
        elementwise::add(&mut self.cores, &mut x.data, &y.data);
    }

    fn linear(&mut self, x: &Buf, matrices: &[Matrix], out: &mut [&mut Buf]) {
        self.experts.pump();
        let rows = x.rows();
        // One operand for each kind of weights, then all products in one go.
        let operands = &mut self.scratch.operands;
        let mut kinds = 0;
        for m in matrices {
            if !operands[..kinds].iter().any(|o| o.suits(&m.layout)) {
                if operands.len() == kinds {
                    operands.push(Operand::default());
                }
                operands[kinds].prepare(&mut self.cores, &m.layout, &x.data, x.width, rows);
                kinds += 1;
            }
        }
        let mut products = Vec::with_capacity(matrices.len());
        for (m, out) in matrices.iter().zip(out.iter_mut()) {
            out.shape(rows, m.layout.rows);
            let Some(operand) = operands[..kinds].iter().find(|o| o.suits(&m.layout)) else { continue };
            let matrix = weights(&self.resident, m);
            products.push(Product { matrix, operand, out: &mut out.data, stride: m.layout.rows });
        }
        multiply(&mut self.cores, &mut products);
    }

    fn positions(&mut self, positions: &[usize], theta: f64, rotary_dim: usize) {
        if self.rope.as_ref().is_none_or(|(t, r)| *t != theta || r.dim() != rotary_dim) {
            self.rope = Some((theta, Rope::new(theta, rotary_dim)));
        }
        self.angles.clear();
        if let Some((_, rope)) = &self.rope {
            for &p in positions {
                rope.angles(p, &mut self.angles);
            }
        }
    }

    fn attention(
        &mut self,
        spec: &AttentionSpec,
        norms: (&Vec<f32>, &Vec<f32>),
        q: &Buf,
        k: &Buf,
        v: &Buf,
        spans: &[Span],
        states: &mut LayerStates<'_>,
        out: &mut Buf,
    ) {
        self.experts.pump();
        let (rows, width, kv_width) = (q.rows(), spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let [queries, keys, gate] = &mut self.scratch.heads;
        queries.resize(rows * width, 0.0);
        keys.resize(rows * kv_width, 0.0);
        let head_stride = q.width / spec.heads;
        let heads = Heads {
            heads: spec.heads,
            head_dim: spec.head_dim,
            head_stride,
            norm: Some(norms.0.as_slice()),
            eps: spec.eps,
            rotary_dim: spec.rotary_dim,
        };
        let key_heads =
            Heads { heads: spec.kv_heads, head_stride: spec.head_dim, norm: Some(norms.1), ..heads };
        elementwise::prepare_heads(&mut self.cores, heads, &q.data, &self.angles, queries);
        elementwise::prepare_heads(&mut self.cores, key_heads, &k.data, &self.angles, keys);
        out.shape(rows, width);
        let scale = 1.0 / (spec.head_dim as f32).sqrt();
        for (span, state) in spans.iter().zip(states.iter_mut()) {
            let LayerState::Attention(cache) = state else { continue };
            let at = |w: usize| span.start * w..(span.start + span.rows) * w;
            cache.append(self.cores.isa(), &keys[at(kv_width)], &v.data[at(kv_width)], span.rows);
            attend(
                &mut self.cores,
                &mut self.scratch.attention,
                cache,
                &queries[at(width)],
                spec.heads,
                span.rows,
                scale,
                &mut out.data[at(width)],
            );
        }
        if spec.gated {
            gate.clear();
            for head in q.data.chunks_exact(head_stride) {
                gate.extend_from_slice(&head[spec.head_dim..]);
            }
            elementwise::sigmoid_mul(&mut self.cores, &mut out.data, gate);
        }
    }

    fn gated_delta(
        &mut self,
        params: &DeltaParams<Vec<f32>>,
        inputs: [&Buf; 4],
        spans: &[Span],
        states: &mut LayerStates<'_>,
        out: &mut Buf,
    ) {
        self.experts.pump();
        let shape = &params.shape;
        let [u, z, b, a] = inputs;
        let width = shape.value_heads * shape.value_dim;
        out.shape(u.rows(), width);
        let weights = delta_weights(params);
        for (span, state) in spans.iter().zip(states.iter_mut()) {
            let LayerState::Delta(state) = state else { continue };
            let at = |w: usize| span.start * w..(span.start + span.rows) * w;
            let inputs = DeltaInputs {
                u: &u.data[at(u.width)],
                z: &z.data[at(width)],
                b: &b.data[at(b.width)],
                a: &a.data[at(a.width)],
            };
            let out = &mut out.data[at(width)];
            let scratch = &mut self.scratch.delta;
            gated_delta(&mut self.cores, shape, &weights, state, scratch, &inputs, span.rows, out);
        }
    }

    fn rewind_delta(&mut self, params: &DeltaParams<Vec<f32>>, state: &mut LayerState, keep: usize) {
        let LayerState::Delta(state) = state else { return };
        let (weights, scratch) = (delta_weights(params), &mut self.scratch.delta);
        rewind(&mut self.cores, &params.shape, &weights, state, scratch, keep);
    }

    fn route(
        &mut self,
        x: &Buf,
        router: &Matrix,
        shared_gate: Option<&Matrix>,
        top_k: usize,
        norm: bool,
        out: &mut Routing,
    ) {
        let [mut scores, mut gates] = std::mem::take(&mut self.scratch.routes);
        match shared_gate {
            Some(gate) => self.linear(x, &[*router, *gate], &mut [&mut scores, &mut gates]),
            None => self.linear(x, &[*router], &mut [&mut scores]),
        }
        let rows = x.rows();
        out.experts.clear();
        out.experts.resize(rows * top_k, 0);
        out.weights.clear();
        out.weights.resize(rows * top_k, 0.0);
        elementwise::route(
            &mut self.cores,
            &mut scores.data,
            scores.width,
            norm,
            &mut out.experts,
            &mut out.weights,
        );
        out.shared.clear();
        if shared_gate.is_some() {
            out.shared.resize(rows, 1.0);
            elementwise::sigmoid_mul(&mut self.cores, &mut out.shared, &gates.data);
        }
        self.scratch.routes = [scores, gates];
    }

    fn experts(
        &mut self,
        layer: usize,
        x: &Buf,
        routing: &Routing,
        shared: Option<&Mlp<Matrix>>,
        h: &mut Buf,
    ) -> Result<(), ModelError> {
        self.run_experts(layer, x, routing, shared, h)
    }

    fn mlp(&mut self, mlp: &Mlp<Matrix>, x: &Buf, h: &mut Buf) {
        let Scratch { all_rows, pairs, ffn, .. } = &mut self.scratch;
        all_rows.clear();
        all_rows.extend(0..x.rows() as u32);
        pairs.resize(x.data.len(), 0.0);
        let job = ExpertJob { expert: network(&self.resident, mlp), rows: all_rows, first_pair: 0 };
        expert_ffn(&mut self.cores, ffn, &x.data, &[job], pairs);
        elementwise::add(&mut self.cores, &mut h.data, pairs);
    }

    fn select(&mut self, x: &Buf, rows: &[usize], out: &mut Buf) {
        out.shape(rows.len(), x.width);
        for (to, &row) in out.data.chunks_exact_mut(x.width.max(1)).zip(rows) {
            to.copy_from_slice(&x.data[row * x.width..(row + 1) * x.width]);
        }
    }
}

fn delta_weights(params: &DeltaParams<Vec<f32>>) -> DeltaWeights<'_> {
    DeltaWeights {
        conv: &params.conv,
        dt_bias: &params.dt_bias,
        neg_exp_a: &params.neg_exp_a,
        norm: &params.norm,
        eps: params.eps,
    }
}

pub(crate) fn network<'a>(resident: &'a HugeBuf, mlp: &Mlp<Matrix>) -> ExpertRef<'a> {
    ExpertRef {
        gate: weights(resident, &mlp.gate),
        up: weights(resident, &mlp.up),
        down: weights(resident, &mlp.down),
    }
}
