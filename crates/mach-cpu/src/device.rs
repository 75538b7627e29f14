//! The CPU as a device: `mach-kernels` behind [`Device`]. Operations run as they are recorded.

use std::sync::Arc;
use std::time::Instant;

use mach_checkpoint::Tensors;
use mach_experts::{HotExperts, StreamingStats};
use mach_kernels::attention::{Scores, attend, attend_ranges};
use mach_kernels::delta::{self, DeltaInputs};
use mach_kernels::elementwise::{self, SoftmaxOver};
use mach_kernels::experts::{ExpertJob, expert_ffn};
use mach_kernels::linear::{Product, multiply};
use mach_kernels::quantize::Operand;
use mach_models::device::{
    AttentionSpec, AttentionWeights, ChoiceWeights, CompressedInputs, CompressedSpec, CompressedWeights,
    ConvolutionSpec, DeltaSpec, DeltaWeights, Device, FfnSpec, Finish, LayerSpec, MixerSpec, Mlp, ModelSpec,
    Placed, Readback, RouterSpec, RouterWeights, ScoreFunction, Span, StreamSpec, StreamWeights, Tap,
};
use mach_models::{DeviceCard, ModelError, Purpose};

use crate::compressed::{self};
use crate::cpu::{Buf, Cpu, Pending, Routing, Scratch};
use crate::experts::{self};
use crate::footprint::state_bytes_of;
use crate::forms::{convolve, delta_shape, delta_weights, gating, network, scale_weights};
use crate::placement::{CpuPlacement, Matrix};
use crate::state::CpuState;
use crate::{check, fill, kv, numerics_of, order_of, stand_in};

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

    fn join(&mut self, left: &Buf, right: &Buf, out: &mut Buf) {
        out.shape(left.rows(), left.width + right.width);
        let rows = left.data.chunks_exact(left.width.max(1)).zip(right.data.chunks_exact(right.width.max(1)));
        for (to, (a, b)) in out.data.chunks_exact_mut(out.width.max(1)).zip(rows) {
            let (first, second) = to.split_at_mut(a.len());
            first.copy_from_slice(a);
            second.copy_from_slice(b);
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
        elementwise::cap(&mut self.cores, &mut x.data, scale, cap);
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
