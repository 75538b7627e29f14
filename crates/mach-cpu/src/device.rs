//! The CPU as a device: `mach-kernels` behind [`Device`]. Operations run as they are recorded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mach_checkpoint::Tensors;
use mach_experts::{HotExperts, MatrixView, StreamingStats};
use mach_kernels::Cores;
use mach_kernels::attention::turbo::TurboQuant;
use mach_kernels::attention::{AttentionScratch, Scores, attend, attend_ranges};
use mach_kernels::delta::{self, DeltaInputs, DeltaScratch, DeltaShape};
use mach_kernels::elementwise::{self, Activation, Gating, Heads, Rope, SoftmaxOver};
use mach_kernels::experts::{BiasRef, ExpertJob, ExpertRef, FfnScratch, expert_ffn};
use mach_kernels::linear::{MatRef, Product, multiply};
use mach_kernels::math::exp64;
use mach_kernels::quantize::Operand;
use mach_models::device::{
    AttentionSpec, AttentionWeights, ChoiceWeights, CompressedInputs, CompressedSpec, CompressedWeights,
    ConvolutionSpec, DeltaSpec, DeltaWeights, Device, FfnSpec, Finish, GateFunction, LayerSpec, MixerSpec,
    Mlp, ModelSpec, Placed, Readback, RopeSpec, RouterSpec, RouterWeights, ScoreFunction, Span, StreamSpec,
    StreamWeights, Tap,
};
use mach_models::{Activations, DeviceCard, ModelError, Purpose};

use crate::compressed::{self, Compressing};
use crate::experts::{self, Experts, RowKind};
use crate::footprint::state_bytes_of;
use crate::placement::{CpuPlacement, Matrix, Stores};
use crate::rope::rope;
use crate::state::CpuState;
use crate::{check, fill, kv, numerics_of, order_of, stand_in};

/// Rows of activations.
#[derive(Debug, Default)]
pub struct Buf {
    pub(crate) data: Vec<f32>,
    pub(crate) width: usize,
}

impl Buf {
    pub(crate) fn shape(&mut self, rows: usize, width: usize) {
        self.width = width;
        self.data.resize(rows * width, 0.0);
    }

    pub(crate) fn rows(&self) -> usize {
        self.data.len() / self.width.max(1)
    }
}

/// Which experts each row goes to.
#[derive(Debug, Clone, Default)]
pub struct Routing {
    /// `[rows, top_k]`, by falling weight.
    pub(crate) experts: Vec<u32>,
    /// `[rows, top_k]`, what multiplies the experts' outputs.
    pub(crate) weights: Vec<f32>,
    /// `[rows]`, what multiplies the shared expert's output; empty without one.
    pub(crate) shared: Vec<f32>,
}

/// The device: compute threads, weights, working memory.
#[derive(Debug)]
pub struct Cpu {
    pub(crate) cores: Cores,
    pub(crate) activations: Activations,
    turboquant_kv: Option<TurboQuant>,
    pub(crate) stores: Stores,
    /// Bytes of the model's weights, experts and padding not counted.
    resident_bytes: u64,
    pub(crate) experts: Experts,
    /// What each row of the pass is, for streaming.
    pub(crate) rows: Vec<RowKind>,
    pub(crate) spans: Vec<Span>,
    /// Angles of the rows of this pass, for each kind of rotation that it has met.
    angles: Vec<Angles>,
    readback: Pending,
    pub(crate) scratch: Scratch,
    /// Whether matrices share values; see [`stand_in`](crate::stand_in()).
    stands_in: bool,
    pub(crate) compressing: Compressing,
}

/// A rotation, and its angles at the rows of a pass.
#[derive(Debug)]
struct Angles {
    spec: RopeSpec,
    rope: Rope,
    angles: Vec<f32>,
    /// Whether `angles` are those of this pass.
    fresh: bool,
}

/// What the next `finish` returns.
#[derive(Debug, Default)]
struct Pending {
    outputs: Vec<Vec<f32>>,
    taps: Vec<(Tap, Vec<f32>)>,
    routing: Vec<(usize, Vec<u32>, Vec<f32>)>,
    experts_took: Duration,
}

/// Working memory that passes reuse.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    operands: Vec<Operand>,
    heads: [Vec<f32>; 3],
    /// Values, where they are normed; the norm's weights, all 1.
    values: [Vec<f32>; 2],
    ranges: Vec<(usize, usize)>,
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
    /// A device without weights.
    pub fn new(cores: Cores, activations: Activations, turboquant_kv: Option<TurboQuant>) -> Self {
        Cpu {
            cores,
            activations,
            turboquant_kv,
            stores: Stores::default(),
            resident_bytes: 0,
            experts: Experts::None,
            rows: Vec::new(),
            spans: Vec::new(),
            angles: Vec::new(),
            readback: Pending::default(),
            scratch: Scratch::default(),
            stands_in: false,
            compressing: Compressing::default(),
        }
    }

    pub(crate) fn standing_in(self) -> Self {
        Cpu { stands_in: true, ..self }
    }

    pub(crate) fn give(&mut self, experts: Experts) {
        self.experts = experts;
    }

    /// The place of a rotation in `angles`, filled for this pass.
    fn rotation(&mut self, spec: &RopeSpec) -> usize {
        let at = self.angles.iter().position(|a| a.spec == *spec).unwrap_or_else(|| {
            let rope = rope(spec);
            self.angles.push(Angles { spec: *spec, rope, angles: Vec::new(), fresh: false });
            self.angles.len() - 1
        });
        if let Some(rotation) = self.angles.get_mut(at).filter(|rotation| !rotation.fresh) {
            rotation.angles.clear();
            for span in &self.spans {
                for position in span.position..span.position + span.rows {
                    rotation.rope.angles(position, &mut rotation.angles);
                }
            }
            rotation.fresh = true;
        }
        at
    }

    /// Norms and rotates heads of `x`, `head_stride` apart, into scratch `to`.
    fn prepare_heads(
        &mut self,
        spec: &AttentionSpec,
        heads: usize,
        head_stride: usize,
        norm: Option<&Vec<f32>>,
        x: &Buf,
        to: usize,
    ) {
        let at = self.rotation(&spec.rope);
        let heads = Heads {
            heads,
            head_dim: spec.head_dim,
            head_stride,
            norm: norm.map(Vec::as_slice),
            eps: spec.qk_norm.unwrap_or(0.0),
            rotary_dim: spec.rope.rotary_dim,
        };
        let out = &mut self.scratch.heads[to];
        out.resize(x.rows() * heads.heads * heads.head_dim, 0.0);
        elementwise::prepare_heads(&mut self.cores, heads, &x.data, &self.angles[at].angles, out);
    }

    /// Norms the heads of values into scratch, if the layer does.
    fn prepare_values(&mut self, spec: &AttentionSpec, v: &Buf) {
        let Some(eps) = spec.v_norm else { return };
        let [values, ones] = &mut self.scratch.values;
        ones.resize(spec.head_dim, 1.0);
        values.resize(v.data.len(), 0.0);
        let ones = ones.get(..spec.head_dim).unwrap_or_default();
        elementwise::rms_norm(&mut self.cores, &v.data, ones, eps, values);
    }
}

pub(crate) fn view(m: MatrixView<'_>) -> MatRef<'_> {
    MatRef::new(m.layout, m.data)
}

/// The kernels' form of the sizes.
pub(crate) fn delta_shape(spec: &DeltaSpec) -> DeltaShape {
    DeltaShape {
        key_heads: spec.key_heads,
        value_heads: spec.value_heads,
        key_dim: spec.key_dim,
        value_dim: spec.value_dim,
        taps: spec.taps,
    }
}

fn delta_weights<'a>(spec: &DeltaSpec, weights: &'a DeltaWeights<Vec<f32>>) -> delta::DeltaWeights<'a> {
    delta::DeltaWeights {
        conv: &weights.conv,
        dt_bias: &weights.dt_bias,
        neg_exp_a: &weights.neg_exp_a,
        norm: &weights.norm,
        eps: spec.eps,
    }
}

/// The kernels' form of what combines gate and up.
pub(crate) fn gating(spec: &FfnSpec) -> Gating {
    let activation = match spec.gate {
        GateFunction::Silu => Activation::Silu,
        GateFunction::GeluTanh => Activation::GeluTanh,
        GateFunction::SigmoidPlusOne { alpha } => Activation::SigmoidPlusOne { alpha },
    };
    Gating { activation, clamp: spec.clamp }
}

pub(crate) fn network<'a>(stores: &'a Stores, mlp: &'a Mlp<Matrix, Vec<f32>>) -> ExpertRef<'a> {
    let biases = mlp.biases.as_ref();
    ExpertRef {
        gate: stores.get(&mlp.gate),
        up: stores.get(&mlp.up),
        down: stores.get(&mlp.down),
        biases: biases.map_or([None; 3], |b| b.each_ref().map(|bias| Some(BiasRef::Floats(bias)))),
        gating: gating(&mlp.spec),
    }
}

/// By plain arithmetic, absolute error about 1e-16.
fn tanh(x: f64) -> f64 {
    1.0 - 2.0 / (exp64(2.0 * x) + 1.0)
}

impl Device for Cpu {
    type Buf = Buf;
    type Matrix = Matrix;
    type Vector = Vec<f32>;
    type Routing = Routing;
    type LayerState = CpuState;
    type Placement<'a> = CpuPlacement<'a>;

    fn numerics(&self) -> String {
        numerics_of(self.activations, self.turboquant_kv)
    }

    fn card(&self) -> DeviceCard {
        let (weights, experts) = (self.stores.bytes(), self.experts.allocated_bytes());
        let huge = self.stores.huge_bytes().zip(self.experts.huge_bytes()).map(|(a, b)| a + b);
        DeviceCard {
            isa: self.cores.isa().to_string(),
            threads: self.cores.threads(),
            activations: self.activations,
            kv: kv::format(self.activations, self.turboquant_kv),
            resident_weight_bytes: self.resident_bytes,
            huge_page_share: huge.map(|huge| huge as f64 / (weights + experts).max(1) as f64),
            experts: self.experts.card(),
        }
    }

    fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        check::check(spec)
    }

    fn streaming_stats(&self) -> Option<Arc<StreamingStats>> {
        self.experts.streaming_stats()
    }

    fn bring_hot(&mut self, hot: &HotExperts) {
        self.experts.bring(hot);
    }

    fn placement<'a>(&self, tensors: &'a Tensors) -> CpuPlacement<'a> {
        CpuPlacement::new(tensors, order_of(self.activations), self.stores.0.len())
    }

    fn fill(
        &mut self,
        placement: CpuPlacement<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Placed, ModelError> {
        let threads = self.cores.threads();
        let memory = if self.stands_in {
            stand_in::fill_alike(&placement, threads)?
        } else {
            fill::fill(&placement, threads, progress)?
        };
        let bytes = mach_models::device::Placement::weight_bytes(&placement);
        progress(bytes);
        let placed = Placed(self.stores.0.len());
        if placed == Placed(0) {
            self.resident_bytes = bytes;
        }
        self.stores.0.push(Some(memory));
        Ok(placed)
    }

    fn release(&mut self, Placed(store): Placed) {
        if let Some(store) = self.stores.0.get_mut(store) {
            *store = None;
        }
    }

    fn new_state(&self, layer: &LayerSpec) -> CpuState {
        match &layer.mixer {
            MixerSpec::Attention(spec) => {
                let format = kv::format(self.activations, self.turboquant_kv);
                CpuState::attention(kv::shape(spec, format), spec.mask)
            }
            MixerSpec::GatedDelta(spec) => CpuState::delta(delta_shape(spec)),
            MixerSpec::Compressed(spec) => {
                let format = kv::format(self.activations, self.turboquant_kv);
                CpuState::compressed(compressed::shape(spec, format))
            }
        }
    }

    fn state_bytes(&self, spec: &ModelSpec, tokens: usize) -> usize {
        state_bytes_of(spec, kv::format(self.activations, self.turboquant_kv), tokens)
    }

    fn begin(&mut self, spans: &[Span]) {
        self.spans.clear();
        self.spans.extend_from_slice(spans);
        self.angles.iter_mut().for_each(|rotation| rotation.fresh = false);
        self.readback = Pending::default();
        self.begin_pass(spans);
    }

    fn tokens(&mut self, ids: &[u32]) {
        self.compressing.tokens.clear();
        self.compressing.tokens.extend_from_slice(ids);
    }

    fn finish(&mut self) -> Result<Finish, ModelError> {
        let Pending { outputs, taps, routing, experts_took } = std::mem::take(&mut self.readback);
        Ok(Finish::Done(Readback { outputs: outputs.into_iter(), taps, routing, experts_took }))
    }

    fn bring(&mut self, layer: usize, _: &[usize]) -> Result<(), ModelError> {
        Err(ModelError::Device(format!("layer {layer}: this device waits for experts and stops for none")))
    }

    fn output(&mut self, x: &mut Buf) {
        self.readback.outputs.push(std::mem::take(&mut x.data));
    }

    fn reuse(&mut self, values: Vec<f32>, buf: &mut Buf) {
        if values.capacity() > buf.data.capacity() {
            buf.data = values;
        }
    }

    fn tap(&mut self, tap: Tap, x: &Buf) {
        self.readback.taps.push((tap, x.data.clone()));
    }

    fn tap_routing(&mut self, layer: usize, routing: &Routing) {
        self.readback.routing.push((layer, routing.experts.clone(), routing.weights.clone()));
    }

    fn write(&mut self, rows: &[f32], width: usize, out: &mut Buf) {
        out.width = width;
        out.data.clear();
        out.data.extend_from_slice(rows);
    }

    fn embed(&mut self, table: &Matrix, ids: &[u32], scale: f32, out: &mut Buf) {
        out.shape(ids.len(), table.layout.cols);
        let table = self.stores.get(table);
        for (row, &id) in out.data.chunks_exact_mut(out.width.max(1)).zip(ids) {
            table.decode_row(id as usize, row);
        }
        if scale != 1.0 {
            out.data.iter_mut().for_each(|v| *v *= scale);
        }
    }

    fn clear(&mut self, x: &Buf, out: &mut Buf) {
        out.shape(x.rows(), x.width);
        out.data.fill(0.0);
    }

    fn select(&mut self, x: &Buf, rows: &[usize], out: &mut Buf) {
        out.shape(rows.len(), x.width);
        for (to, &row) in out.data.chunks_exact_mut(x.width.max(1)).zip(rows) {
            to.copy_from_slice(&x.data[row * x.width..(row + 1) * x.width]);
        }
    }

    fn norm(&mut self, x: &Buf, weight: &Vec<f32>, eps: f32, out: &mut Buf) {
        out.shape(x.rows(), x.width);
        elementwise::rms_norm(&mut self.cores, &x.data, weight, eps, &mut out.data);
    }

    fn add(&mut self, x: &mut Buf, y: &Buf) {
        elementwise::add(&mut self.cores, &mut x.data, &y.data);
    }

    fn add_bias(&mut self, x: &mut Buf, bias: &Vec<f32>) {
        elementwise::add_bias(&mut self.cores, &mut x.data, bias);
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
            let matrix = self.stores.get(m);
            products.push(Product { matrix, operand, out: &mut out.data, stride: m.layout.rows });
        }
        multiply(&mut self.cores, &mut products);
    }

    fn gate(&mut self, spec: &FfnSpec, gate: &mut Buf, up: &Buf) {
        elementwise::gate(&mut self.cores, gating(spec), &mut gate.data, &up.data);
    }

    fn cap(&mut self, x: &mut Buf, scale: f32, cap: Option<f32>) {
        if scale != 1.0 {
            x.data.iter_mut().for_each(|v| *v *= scale);
        }
        if let Some(cap) = cap {
            x.data.iter_mut().for_each(|v| *v = (f64::from(cap) * tanh(f64::from(*v / cap))) as f32);
        }
    }

    fn convolve(&mut self, spec: &ConvolutionSpec, base: &Vec<f32>, dynamic: &Buf, x: &Buf, out: &mut Buf) {
        out.shape(x.rows(), x.width);
        convolve(spec, base, dynamic, x, &mut out.data);
    }

    fn margins(&mut self, x: &Buf, out: &mut Buf) {
        out.shape(x.rows(), 1);
        elementwise::margins(&mut self.cores, &x.data, x.width, &mut out.data);
    }

    fn top_k(&mut self, x: &Buf, k: usize, out: &mut Routing) {
        *out = Routing::default();
        let mut best = Vec::new();
        for row in x.data.chunks_exact(x.width.max(1)) {
            elementwise::top_k(row, k, &mut best);
            out.weights.extend(best.iter().map(|&i| row[i as usize]));
            out.experts.append(&mut best);
        }
    }

    fn attention(
        &mut self,
        spec: &AttentionSpec,
        weights: &AttentionWeights<Vec<f32>>,
        q: &Buf,
        k: &Buf,
        v: &Buf,
        states: &mut [&mut CpuState],
        out: &mut Buf,
    ) {
        self.experts.pump();
        let (rows, width, kv_width) = (q.rows(), spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let head_stride = q.width / spec.heads;
        self.prepare_heads(spec, spec.heads, head_stride, weights.q_norm.as_ref(), q, 0);
        self.prepare_heads(spec, spec.kv_heads, spec.head_dim, weights.k_norm.as_ref(), k, 1);
        self.prepare_values(spec, v);
        let [queries, keys, gate] = &mut self.scratch.heads;
        let values = if spec.v_norm.is_some() { &self.scratch.values[0] } else { &v.data };
        out.shape(rows, width);
        let scores = Scores {
            scale: spec.scale.unwrap_or(1.0 / (spec.head_dim as f32).sqrt()),
            sinks: weights.sinks.as_deref(),
        };
        for (span, state) in self.spans.iter().zip(states.iter_mut()) {
            let CpuState::Attention { cache, mask, back_to } = &mut **state else { continue };
            let at = |w: usize| span.start * w..(span.start + span.rows) * w;
            cache.append(self.cores.isa(), &keys[at(kv_width)], &values[at(kv_width)], span.rows);
            let (scratch, queries) = (&mut self.scratch.attention, &queries[at(width)]);
            let out = &mut out.data[at(width)];
            if mask.causal && mask.window.is_none() {
                attend(&mut self.cores, scratch, cache, queries, spec.heads, span.rows, scores, out);
            } else {
                let (ranges, end) = (&mut self.scratch.ranges, span.position + span.rows);
                ranges.clear();
                ranges.extend((span.position..end).map(|position| mask.range(position, end)));
                out.fill(0.0);
                attend_ranges(&mut self.cores, scratch, cache, queries, spec.heads, ranges, scores, out);
            }
            // A draft takes its own rows back, and says itself what it forgets.
            if span.purpose != Purpose::Draft {
                let end = back_to.take().unwrap_or(usize::MAX).min(span.position + span.rows);
                cache.forget_before(mask.first_needed(end));
            }
        }
        if spec.gated {
            gate.clear();
            for head in q.data.chunks_exact(head_stride) {
                gate.extend_from_slice(&head[spec.head_dim..]);
            }
            elementwise::sigmoid_mul(&mut self.cores, &mut out.data, gate);
        }
    }

    fn append(
        &mut self,
        spec: &AttentionSpec,
        weights: &AttentionWeights<Vec<f32>>,
        k: &Buf,
        v: &Buf,
        states: &mut [&mut CpuState],
    ) {
        let kv_width = spec.kv_heads * spec.head_dim;
        self.prepare_heads(spec, spec.kv_heads, spec.head_dim, weights.k_norm.as_ref(), k, 1);
        self.prepare_values(spec, v);
        let keys = &self.scratch.heads[1];
        let values = if spec.v_norm.is_some() { &self.scratch.values[0] } else { &v.data };
        for (span, state) in self.spans.iter().zip(states.iter_mut()) {
            let CpuState::Attention { cache, mask, .. } = &mut **state else { continue };
            let at = |w: usize| span.start * w..(span.start + span.rows) * w;
            cache.append(self.cores.isa(), &keys[at(kv_width)], &values[at(kv_width)], span.rows);
            cache.forget_before(mask.first_needed(span.position + span.rows));
        }
    }

    fn gated_delta(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Vec<f32>>,
        inputs: [&Buf; 4],
        states: &mut [&mut CpuState],
        out: &mut Buf,
    ) {
        self.experts.pump();
        let [u, z, b, a] = inputs;
        let width = spec.value_heads * spec.value_dim;
        out.shape(u.rows(), width);
        let weights = delta_weights(spec, weights);
        for (span, state) in self.spans.iter().zip(states.iter_mut()) {
            let CpuState::Delta { state, shape } = &mut **state else { continue };
            let at = |w: usize| span.start * w..(span.start + span.rows) * w;
            let inputs = DeltaInputs {
                u: &u.data[at(u.width)],
                z: &z.data[at(width)],
                b: &b.data[at(b.width)],
                a: &a.data[at(a.width)],
            };
            let (out, scratch) = (&mut out.data[at(width)], &mut self.scratch.delta);
            delta::gated_delta(&mut self.cores, shape, &weights, state, scratch, &inputs, span.rows, out);
        }
    }

    fn rewind_delta(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Vec<f32>>,
        state: &mut CpuState,
        keep: usize,
    ) {
        let CpuState::Delta { state, shape } = state else { return };
        let (weights, scratch) = (delta_weights(spec, weights), &mut self.scratch.delta);
        delta::rewind(&mut self.cores, shape, &weights, state, scratch, keep);
    }

    fn grouped_linear(&mut self, x: &Buf, weight: &Matrix, groups: usize, out: &mut Buf) {
        self.experts.pump();
        self.run_grouped(x, weight, groups, out);
    }

    fn compressed_attention(
        &mut self,
        spec: &CompressedSpec,
        weights: &CompressedWeights<Vec<f32>>,
        inputs: &CompressedInputs<'_, Buf>,
        states: &mut [&mut CpuState],
        out: &mut Buf,
    ) {
        self.experts.pump();
        self.run_compressed(spec, weights, inputs, states, out);
    }

    fn spread(&mut self, x: &Buf, streams: usize, out: &mut Buf) {
        out.shape(x.rows(), streams * x.width);
        let width = x.width.max(1);
        for (to, row) in out.data.chunks_exact_mut(streams * width).zip(x.data.chunks_exact(width)) {
            to.chunks_exact_mut(width).for_each(|stream| stream.copy_from_slice(row));
        }
    }

    fn collapse(
        &mut self,
        spec: &StreamSpec,
        weights: &StreamWeights<Vec<f32>>,
        streams: &Buf,
        mixing: &mut Buf,
        out: &mut Buf,
    ) {
        self.run_collapse(spec, weights, streams, mixing, out);
    }

    fn mix(&mut self, spec: &StreamSpec, mixing: &Buf, y: &Buf, streams: &mut Buf) {
        self.run_mix(spec, mixing, y, streams);
    }

    fn route_by_score(
        &mut self,
        spec: &RouterSpec,
        x: &Buf,
        router: &Matrix,
        choice: &ChoiceWeights<Vec<f32>>,
        out: &mut Routing,
    ) {
        self.run_route_by_score(spec, x, router, choice, out);
    }

    fn route(
        &mut self,
        spec: &RouterSpec,
        x: &Buf,
        router: &Matrix,
        small: &RouterWeights<Vec<f32>>,
        shared_gate: Option<&Matrix>,
        out: &mut Routing,
    ) {
        let [mut scores, mut gates] = std::mem::take(&mut self.scratch.routes);
        match shared_gate {
            Some(gate) => self.linear(x, &[*router, *gate], &mut [&mut scores, &mut gates]),
            None => self.linear(x, &[*router], &mut [&mut scores]),
        }
        let rows = x.rows();
        out.experts.clear();
        out.experts.resize(rows * spec.top_k, 0);
        out.weights.clear();
        out.weights.resize(rows * spec.top_k, 0.0);
        if let Some(bias) = &small.logit_bias {
            elementwise::add_bias(&mut self.cores, &mut scores.data, bias);
        }
        let over = match spec.score {
            ScoreFunction::SoftmaxOfChosen => SoftmaxOver::Chosen,
            // `check` lets no other function through.
            _ => SoftmaxOver::All { norm: spec.normalise },
        };
        let (experts, weights) = (&mut out.experts, &mut out.weights);
        elementwise::route(&mut self.cores, &mut scores.data, scores.width, over, experts, weights);
        if let Some(scale) = &small.expert_scale {
            scale_weights(scale, spec.top_k, out);
        }
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
        spec: &FfnSpec,
        x: &Buf,
        routing: &Routing,
        shared: Option<&Mlp<Matrix, Vec<f32>>>,
        h: &mut Buf,
    ) -> Result<(), ModelError> {
        let started = Instant::now();
        let ran = self.run_experts(layer, spec, x, routing, shared, h);
        self.readback.experts_took += started.elapsed();
        ran
    }

    fn placed_experts(
        &mut self,
        experts: &[Mlp<Matrix, Vec<f32>>],
        x: &Buf,
        routing: &Routing,
        shared: Option<&Mlp<Matrix, Vec<f32>>>,
        h: &mut Buf,
    ) {
        let Some(first) = experts.first() else { return };
        // Nothing that could fail: they are in memory.
        let _ = self.run_experts_of(experts::Place::Placed(experts), &first.spec, x, routing, shared, h);
    }

    fn mlp(&mut self, mlp: &Mlp<Matrix, Vec<f32>>, x: &Buf, h: &mut Buf) {
        let Scratch { all_rows, pairs, ffn, .. } = &mut self.scratch;
        all_rows.clear();
        all_rows.extend(0..x.rows() as u32);
        pairs.resize(x.data.len(), 0.0);
        let job = ExpertJob { expert: network(&self.stores, mlp), rows: all_rows, first_pair: 0 };
        expert_ffn(&mut self.cores, ffn, &x.data, &[job], pairs);
        elementwise::add(&mut self.cores, &mut h.data, pairs);
    }
}

/// Multiplies the weight of each expert by a scale of its own, and puts each row into falling order again.
fn scale_weights(scale: &[f32], top_k: usize, routing: &mut Routing) {
    let rows =
        routing.experts.chunks_exact_mut(top_k.max(1)).zip(routing.weights.chunks_exact_mut(top_k.max(1)));
    let mut row: Vec<(f32, u32)> = Vec::with_capacity(top_k);
    for (experts, weights) in rows {
        let scaled = |(&e, &w): (&u32, &f32)| (w * scale.get(e as usize).copied().unwrap_or(1.0), e);
        row.clear();
        row.extend(experts.iter().zip(weights.iter()).map(scaled));
        row.sort_by(|a, b| b.0.total_cmp(&a.0));
        for ((expert, weight), &(w, e)) in experts.iter_mut().zip(weights.iter_mut()).zip(&row) {
            (*expert, *weight) = (e, w);
        }
    }
}

/// See [`ConvolutionSpec`]: rows of a block, offsets ascending.
fn convolve(spec: &ConvolutionSpec, base: &[f32], dynamic: &Buf, x: &Buf, out: &mut [f32]) {
    let (n, groups) = (x.width, x.width / spec.group.max(1));
    out.fill(0.0);
    let rows = out.chunks_exact_mut(n.max(1)).zip(dynamic.data.chunks_exact(dynamic.width.max(1)));
    for (i, (out, d)) in rows.enumerate() {
        for offset in 0..spec.kernel.min(i + 1) {
            let tap = spec.which * spec.kernel + offset;
            let (Some(x), Some(base), Some(d)) = (
                x.data.get((i - offset) * n..(i - offset + 1) * n),
                base.get(tap * n..(tap + 1) * n),
                d.get(tap * groups..(tap + 1) * groups),
            ) else {
                continue;
            };
            let channels = out.chunks_exact_mut(spec.group).zip(x.chunks_exact(spec.group));
            for (((out, x), base), d) in channels.zip(base.chunks_exact(spec.group)).zip(d) {
                for ((out, x), base) in out.iter_mut().zip(x).zip(base) {
                    *out += (base + d) * x;
                }
            }
        }
    }
}
