//! The GPU behind [`Device`]: operations are recorded, `finish` submits them and waits.

mod attention;
mod buf;
mod check;
mod experts;
pub(crate) mod gpu;
mod load;

mod ops;
mod pages;
mod profile;
mod recurrence;
mod state;
mod tiles;
mod weights;

use std::sync::Arc;

use mach_checkpoint::Tensors;
use mach_experts::{HotExperts, StreamingStats};
use mach_models::device::{
    AttentionSpec, AttentionWeights, ChoiceWeights, CompressedInputs, CompressedSpec, CompressedWeights,
    ConvolutionSpec, DeltaSpec, DeltaWeights, Device, FfnSpec, Finish, LayerSpec, Mlp, ModelSpec, Placed,
    Placement, Readback, RouterSpec, RouterWeights, ScoreFunction, Span, StreamSpec, StreamWeights, Tap,
};
use mach_models::{DeviceCard, ExpertsCard, ModelError};

pub use buf::{Buf, Routing};
pub use gpu::Gpu;
pub use load::{load, supports};
pub use profile::{PassTimes, Profile};
pub use state::GpuState;
pub use weights::{GpuPlacement, Matrix, Vector};

use crate::buffer::Staging;
use crate::{GpuError, Storage, words};
use gpu::{form_of, lanes};
use ops::{Gated, Op, Routes};

fn failed(error: GpuError) -> ModelError {
    match error {
        GpuError::OutOfMemory(what) => ModelError::Memory(what),
        other => ModelError::Device(other.to_string()),
    }
}

impl Gpu {
    /// For operations that `check` lets no model come to.
    fn not_here(&mut self, what: &str) {
        self.attempt(|_| Err(GpuError::Invalid(format!("{what} is not on the GPU"))));
    }

    fn keep(&mut self, storage: &Storage, bytes: u64) -> Result<Staging, GpuError> {
        let staging = Staging::new(&self.context, bytes)?;
        self.recorder().copy_out(storage, 0, &staging, 0, bytes);
        Ok(staging)
    }

    /// `[rows * copies]` rows of `x`, as listed.
    fn copy_rows(&mut self, x: &Buf, rows: &[u32], copies: usize, out: &mut Buf) -> Result<(), GpuError> {
        let from = self.of(x)?;
        let to = self.shape(out, rows.len(), x.width * copies)?;
        let list = self.upload(rows)?;
        let immediates = words![rows.len(), x.width, copies];
        let count = rows.len() * x.width * copies;
        self.run(Op::CopyRows, &[(&from).into(), list.slice(), (&to).into()], &immediates, lanes(count))
    }

    fn top(&mut self, x: &Buf, k: usize) -> Result<(Storage, Storage), GpuError> {
        let from = self.of(x)?;
        let places = Storage::new(&self.context, 4 * (x.rows * k) as u64)?;
        let values = Storage::new(&self.context, 4 * (x.rows * k) as u64)?;
        let buffers = [(&from).into(), (&places).into(), (&values).into()];
        self.run(Op::TopK, &buffers, &words![x.width, k], [x.rows as u32, 1, 1])?;
        Ok((places, values))
    }
}

impl Device for Gpu {
    type Buf = Buf;
    type Matrix = Matrix;
    type Vector = Vector;
    type Routing = Routing;
    type LayerState = GpuState;
    type Placement<'a> = GpuPlacement<'a>;

    fn numerics(&self) -> String {
        let name = mach_cpu::numerics(&self.options);
        if self.exact {
            return name;
        }
        let facts = self.context.facts();
        format!("{name}-{}-{:04x}-{}", facts.backend, facts.vendor, facts.driver.replace(' ', "_"))
    }

    fn card(&self) -> DeviceCard {
        DeviceCard {
            isa: self.context.facts().name.clone(),
            threads: self.options.threads,
            activations: self.options.activations,
            kv: mach_cpu::kv_format(self.options.activations, self.options.turboquant_kv),
            resident_weight_bytes: self.resident_bytes,
            huge_page_share: None,
            experts: ExpertsCard::Resident {
                weight_bytes: self.expert_bytes,
                slots: self.experts.iter().flatten().map(experts::LayerExperts::count).sum(),
            },
        }
    }

    fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        check::check(spec)
    }

    fn streaming_stats(&self) -> Option<Arc<StreamingStats>> {
        None
    }

    fn bring_hot(&mut self, _: &HotExperts) {}

    fn placement<'a>(&self, tensors: &'a Tensors) -> GpuPlacement<'a> {
        let host = mach_cpu::CpuPlacement::new(tensors, self.order, self.stores.len());
        GpuPlacement::new(host, &self.context, self.stores.len())
    }

    fn fill(
        &mut self,
        placement: GpuPlacement<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Placed, ModelError> {
        if let Some(error) = placement.failure {
            return Err(failed(error));
        }
        let memory = mach_cpu::fill(&placement.host, self.options.threads.max(1), progress)?;
        let mut store = Vec::new();
        for matrix in placement.host.matrices() {
            let layout = matrix.layout();
            if ops::Form::of(layout).is_none() {
                return Err(ModelError::Unsupported(format!("no shader multiplies with {:?}", layout.codec)));
            }
            let bytes = memory.get(matrix.offset()..matrix.offset() + layout.bytes()).unwrap_or_default();
            let bytes = weights::widened(layout, bytes);
            store.push(weights::bring(&self.context, &bytes).map_err(failed)?);
        }
        self.context.drain().map_err(failed)?;
        let bytes = placement.host.weight_bytes();
        progress(bytes);
        let placed = Placed(self.stores.len());
        if placed == Placed(0) {
            self.resident_bytes = bytes;
        }
        self.stores.push(Some(store));
        Ok(placed)
    }

    fn release(&mut self, Placed(store): Placed) {
        if let Some(placed) = self.stores.get_mut(store) {
            *placed = None;
        }
        self.gathered.retain(|(of, _), _| *of != store);
    }

    fn new_state(&self, layer: &LayerSpec) -> GpuState {
        self.state_of(layer)
    }

    fn state_bytes(&self, spec: &ModelSpec, tokens: usize) -> usize {
        mach_cpu::state_bytes_of(
            spec,
            mach_cpu::kv_format(self.options.activations, self.options.turboquant_kv),
            tokens,
        )
    }

    fn begin(&mut self, spans: &[Span]) {
        self.spans.clear();
        self.spans.extend_from_slice(spans);
        self.forget_angles();
        self.pending = gpu::Pending::default();
        if let Some((_, under_way)) = &mut self.profile {
            under_way.started = std::time::Instant::now();
        }
    }

    fn tokens(&mut self, _: &[u32]) {}

    fn finish(&mut self) -> Result<Finish, ModelError> {
        let read = self.read_back();
        self.forget_angles();
        let (outputs, taps, routing) = read.map_err(failed)?;
        Ok(Finish::Done(Readback {
            outputs: outputs.into_iter(),
            taps,
            routing,
            experts_took: std::time::Duration::ZERO,
        }))
    }

    fn bring(&mut self, layer: usize, _: &[usize]) -> Result<(), ModelError> {
        Err(ModelError::Device(format!("layer {layer}: this device has all experts and stops for none")))
    }

    fn output(&mut self, x: &mut Buf) {
        let bytes = x.bytes();
        self.attempt(|gpu| {
            let storage = gpu.of(x)?;
            gpu.pending.outputs.push((storage, bytes));
            Ok(())
        });
    }

    fn reuse(&mut self, _: Vec<f32>, _: &mut Buf) {}

    fn tap(&mut self, tap: Tap, x: &Buf) {
        self.attempt(|gpu| {
            let storage = gpu.of(x)?;
            let staging = gpu.keep(&storage, x.bytes())?;
            gpu.pending.taps.push((tap, staging));
            Ok(())
        });
    }

    fn tap_routing(&mut self, layer: usize, routing: &Routing) {
        let bytes = 4 * (routing.rows * routing.top_k) as u64;
        self.attempt(|gpu| {
            let (Some(experts), Some(weights)) = (&routing.experts, &routing.weights) else {
                return Err(GpuError::Invalid("a routing that nothing has written".into()));
            };
            let kept = (gpu.keep(experts, bytes)?, gpu.keep(weights, bytes)?);
            gpu.pending.routing.push((layer, kept.0, kept.1));
            Ok(())
        });
    }

    fn write(&mut self, rows: &[f32], width: usize, out: &mut Buf) {
        self.attempt(|gpu| {
            // By way of the uploads: what the buffer held before may still be read by commands of this pass.
            let count = rows.len() / width.max(1);
            let to = gpu.shape(out, count, width)?;
            let from = gpu.upload(rows)?;
            let zeros: Vec<u32> = (0..count as u32).collect();
            let list = gpu.upload(&zeros)?;
            let immediates = words![count, width, 1u32];
            let buffers = [from.slice(), list.slice(), (&to).into()];
            gpu.run(Op::CopyRows, &buffers, &immediates, lanes(rows.len()))
        });
    }

    fn embed(&mut self, table: &Matrix, ids: &[u32], scale: f32, out: &mut Buf) {
        self.attempt(|gpu| {
            let (form, weights) = (form_of(table)?, gpu.weights(table)?);
            let cols = table.layout.cols;
            let to = gpu.shape(out, ids.len(), cols)?;
            let ids_at = gpu.upload(ids)?;
            let count = ids.len() * cols;
            let immediates = words![0u32, cols, count, scale];
            let buffers = [(&weights).into(), ids_at.slice(), (&to).into()];
            gpu.run(Op::Embed(form), &buffers, &immediates, lanes(count))
        });
    }

    fn clear(&mut self, x: &Buf, out: &mut Buf) {
        self.attempt(|gpu| {
            let to = gpu.shape(out, x.rows, x.width)?;
            let bytes = out.bytes();
            gpu.recorder().clear(&to, 0, bytes);
            Ok(())
        });
    }

    fn select(&mut self, x: &Buf, rows: &[usize], out: &mut Buf) {
        let rows: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        self.attempt(|gpu| gpu.copy_rows(x, &rows, 1, out));
    }

    fn join(&mut self, left: &Buf, right: &Buf, out: &mut Buf) {
        self.attempt(|gpu| {
            let (a, b) = (gpu.of(left)?, gpu.of(right)?);
            let to = gpu.shape(out, left.rows, left.width + right.width)?;
            let immediates = words![left.rows, left.width, right.width];
            let count = left.rows * (left.width + right.width);
            gpu.run(Op::Join, &[(&a).into(), (&b).into(), (&to).into()], &immediates, lanes(count))
        });
    }

    fn norm(&mut self, x: &Buf, weight: &Vector, eps: f32, out: &mut Buf) {
        self.attempt(|gpu| {
            gpu.hand_over()?;
            let from = gpu.of(x)?;
            let to = gpu.shape(out, x.rows, x.width)?;
            gpu.norm_rows(&from, &weight.storage, x.rows, x.width, eps, &to)
        });
    }

    fn add(&mut self, x: &mut Buf, y: &Buf) {
        self.attempt(|gpu| {
            let (to, from) = (gpu.of(x)?, gpu.of(y)?);
            let count = x.rows * x.width;
            gpu.add_to(&to, 0, &from, count, count)
        });
    }

    fn add_bias(&mut self, x: &mut Buf, bias: &Vector) {
        self.attempt(|gpu| {
            let to = gpu.of(x)?;
            gpu.add_to(&to, 0, &bias.storage, x.rows * x.width, x.width)
        });
    }

    fn linear(&mut self, x: &Buf, weights: &[Matrix], out: &mut [&mut Buf]) {
        self.attempt(|gpu| {
            let from = gpu.of(x)?;
            let mut operand = None;
            // Matrices of one form share the preparation; those of another come after them.
            let mut order: Vec<usize> = (0..weights.len().min(out.len())).collect();
            order.sort_by_key(|&i| weights.get(i).and_then(|w| form_of(w).ok()).and_then(ops::Form::group));
            for i in order {
                let (Some(matrix), Some(out)) = (weights.get(i), out.get_mut(i)) else { continue };
                let form = form_of(matrix)?;
                let to = gpu.shape(out, x.rows, matrix.layout.rows)?;
                let ready = operand.take_if(|(group, _)| *group != form.group());
                drop(ready);
                if operand.is_none() {
                    let made = gpu.operand(form, ["codes", "scales"], &from, x.rows, x.width)?;
                    operand = Some((form.group(), made));
                }
                if let Some((_, operand)) = &operand {
                    gpu.product(matrix, operand, x.rows, &to, 0)?;
                }
            }
            Ok(())
        });
    }

    fn gate(&mut self, spec: &FfnSpec, gate: &mut Buf, up: &Buf) {
        self.attempt(|gpu| {
            let (to, from) = (gpu.of(gate)?, gpu.of(up)?);
            let count = gate.rows * gate.width;
            let op = Op::GateTwo(Gated::of(spec));
            gpu.run(op, &[(&to).into(), (&from).into()], &words![count], lanes(count))
        });
    }

    fn cap(&mut self, x: &mut Buf, scale: f32, cap: Option<f32>) {
        self.attempt(|gpu| {
            let to = gpu.of(x)?;
            let count = x.rows * x.width;
            let immediates = words![count, scale, cap.unwrap_or(0.0)];
            gpu.run(Op::Cap, &[(&to).into()], &immediates, lanes(count))
        });
    }

    fn convolve(&mut self, spec: &ConvolutionSpec, base: &Vector, dynamic: &Buf, x: &Buf, out: &mut Buf) {
        self.attempt(|gpu| {
            let (dynamics, from) = (gpu.of(dynamic)?, gpu.of(x)?);
            let to = gpu.shape(out, x.rows, x.width)?;
            let immediates = words![x.rows, x.width, spec.kernel, spec.group, spec.which, dynamic.width];
            let buffers = [(&base.storage).into(), (&dynamics).into(), (&from).into(), (&to).into()];
            gpu.run(Op::Convolve, &buffers, &immediates, lanes(x.rows * x.width))
        });
    }

    fn margins(&mut self, x: &Buf, out: &mut Buf) {
        self.attempt(|gpu| {
            let (_, two) = gpu.top(x, 2)?;
            let to = gpu.shape(out, x.rows, 1)?;
            gpu.run(Op::Lead, &[(&two).into(), (&to).into()], &words![x.rows], lanes(x.rows))
        });
    }

    fn top_k(&mut self, x: &Buf, k: usize, out: &mut Routing) {
        self.attempt(|gpu| {
            let (places, values) = gpu.top(x, k)?;
            *out = Routing {
                experts: Some(places),
                weights: Some(values),
                shared: None,
                rows: x.rows,
                top_k: k,
                gated: false,
            };
            Ok(())
        });
    }

    fn attention(
        &mut self,
        spec: &AttentionSpec,
        weights: &AttentionWeights<Vector>,
        q: &Buf,
        k: &Buf,
        v: &Buf,
        states: &mut [&mut GpuState],
        out: &mut Buf,
    ) {
        self.attempt(|gpu| gpu.run_attention(spec, weights, q, k, v, states, out));
    }

    fn append(
        &mut self,
        spec: &AttentionSpec,
        weights: &AttentionWeights<Vector>,
        k: &Buf,
        v: &Buf,
        states: &mut [&mut GpuState],
    ) {
        self.attempt(|gpu| gpu.run_append(spec, weights, k, v, states));
    }

    fn gated_delta(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Vector>,
        inputs: [&Buf; 4],
        states: &mut [&mut GpuState],
        out: &mut Buf,
    ) {
        self.attempt(|gpu| gpu.run_delta(spec, weights, inputs, states, out));
    }

    fn rewind_delta(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Vector>,
        state: &mut GpuState,
        keep: usize,
    ) {
        self.attempt(|gpu| {
            gpu.run_rewind(spec, weights, state, keep)?;
            // The state may be copied or exported before the next pass.
            gpu.submit()
        });
    }

    fn grouped_linear(&mut self, _: &Buf, _: &Matrix, _: usize, _: &mut Buf) {
        self.not_here("a product by groups");
    }

    fn compressed_attention(
        &mut self,
        _: &CompressedSpec,
        _: &CompressedWeights<Vector>,
        _: &CompressedInputs<'_, Buf>,
        _: &mut [&mut GpuState],
        _: &mut Buf,
    ) {
        self.not_here("compressed attention");
    }

    fn spread(&mut self, x: &Buf, streams: usize, out: &mut Buf) {
        let rows: Vec<u32> = (0..x.rows as u32).collect();
        self.attempt(|gpu| gpu.copy_rows(x, &rows, streams, out));
    }

    fn collapse(&mut self, _: &StreamSpec, _: &StreamWeights<Vector>, _: &Buf, _: &mut Buf, _: &mut Buf) {
        self.not_here("a sum of residual streams");
    }

    fn mix(&mut self, _: &StreamSpec, _: &Buf, _: &Buf, _: &mut Buf) {
        self.not_here("mixing of residual streams");
    }

    fn route_by_score(
        &mut self,
        _: &RouterSpec,
        _: &Buf,
        _: &Matrix,
        _: &ChoiceWeights<Vector>,
        _: &mut Routing,
    ) {
        self.not_here("routing by score");
    }

    fn route(
        &mut self,
        spec: &RouterSpec,
        x: &Buf,
        router: &Matrix,
        small: &RouterWeights<Vector>,
        shared_gate: Option<&Matrix>,
        out: &mut Routing,
    ) {
        self.attempt(|gpu| {
            let from = gpu.of(x)?;
            let rows = x.rows;
            let logits = gpu.scratch("router", 4 * rows * spec.experts)?;
            let operand = gpu.operand(form_of(router)?, ["codes", "scales"], &from, rows, x.width)?;
            gpu.product(router, &operand, rows, &logits, 0)?;
            let gates = match shared_gate {
                Some(gate) => {
                    let gates = gpu.scratch("shared gate", 4 * rows)?;
                    let operand = gpu.operand(form_of(gate)?, ["codes", "scales"], &from, rows, x.width)?;
                    gpu.product(gate, &operand, rows, &gates, 0)?;
                    gates
                }
                None => logits.clone(),
            };
            let bytes = 4 * (rows * spec.top_k) as u64;
            let chosen = buf::at_least(&gpu.context, &mut out.experts, bytes)?;
            let weights = buf::at_least(&gpu.context, &mut out.weights, bytes)?;
            let shared = buf::at_least(&gpu.context, &mut out.shared, 4 * rows as u64)?;
            (out.rows, out.top_k, out.gated) = (rows, spec.top_k, shared_gate.is_some());
            let over_all = spec.score != ScoreFunction::SoftmaxOfChosen;
            let op = Op::Route(Routes {
                over_all,
                normalise: over_all && spec.normalise,
                biased: small.logit_bias.is_some(),
                scaled: small.expert_scale.is_some(),
                gated: shared_gate.is_some(),
            });
            let or = |vector: &Option<Vector>| vector.as_ref().map_or(&logits, |v| &v.storage).clone();
            let (bias, scale) = (or(&small.logit_bias), or(&small.expert_scale));
            let buffers = [
                (&logits).into(),
                (&bias).into(),
                (&scale).into(),
                (&gates).into(),
                (&chosen).into(),
                (&weights).into(),
                (&shared).into(),
            ];
            gpu.run(op, &buffers, &words![spec.experts, spec.top_k], [rows as u32, 1, 1])
        });
    }

    fn experts(
        &mut self,
        layer: usize,
        spec: &FfnSpec,
        x: &Buf,
        routing: &Routing,
        shared: Option<&Mlp<Matrix, Vector>>,
        h: &mut Buf,
    ) -> Result<(), ModelError> {
        self.attempt(|gpu| {
            let missing = || GpuError::Invalid(format!("layer {layer} has no experts on the device"));
            let experts = gpu.experts.get(layer).and_then(Option::as_ref).ok_or_else(missing)?.clone();
            gpu.run_experts(&experts, spec, x, routing, shared, h)
        });
        Ok(())
    }

    fn placed_experts(
        &mut self,
        experts: &[Mlp<Matrix, Vector>],
        x: &Buf,
        routing: &Routing,
        shared: Option<&Mlp<Matrix, Vector>>,
        h: &mut Buf,
    ) {
        let Some(first) = experts.first() else { return };
        self.attempt(|gpu| {
            let placed = gpu.placed(experts)?;
            gpu.run_experts(&placed, &first.spec, x, routing, shared, h)
        });
    }

    fn mlp(&mut self, mlp: &Mlp<Matrix, Vector>, x: &Buf, h: &mut Buf) {
        self.attempt(|gpu| {
            let from = gpu.of(x)?;
            let out = gpu.network(mlp, &from, x.rows, None)?;
            let to = gpu.of(h)?;
            let count = h.rows * h.width;
            gpu.add_to(&to, 0, &out, count, count)
        });
    }
}
