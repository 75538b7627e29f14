//! Routed experts and dense networks.

use mach_experts::{Bank, Projection, RecordLayout};
use mach_models::device::{FfnSpec, Mlp};
use mach_quant::{FloatType, MatrixLayout};

use super::buf::{Buf, Routing};
use super::gpu::{Gpu, Operand, form_of, lanes};
use super::ops::{Form, Gated, Op};
use super::weights::{Matrix, Vector, write_all};
use crate::{Context, GpuError, Storage, words};

/// The experts of a layer, record after record. Copies are the same memory.
#[derive(Debug, Clone)]
pub(crate) struct LayerExperts {
    storage: Storage,
    record: RecordLayout,
}

impl LayerExperts {
    /// Brings a layer of a bank to the device.
    pub(crate) fn bring(context: &Context, bank: &Bank, layer: usize) -> Result<Option<Self>, GpuError> {
        let Some(record) = bank.record(layer).copied() else { return Ok(None) };
        let bytes = (record.stride() * bank.experts()) as u64;
        if bytes > context.largest_binding() {
            return Err(GpuError::OutOfMemory(format!(
                "the experts of layer {layer} take {bytes} bytes: a buffer binds {}",
                context.largest_binding()
            )));
        }
        let storage = Storage::new(context, bytes)?;
        for expert in 0..bank.experts() {
            let data = bank.bytes_of(layer, expert).unwrap_or_default();
            write_all(context, &storage, (expert * record.stride()) as u64, data)?;
            if expert % 16 == 15 {
                context.drain()?;
            }
        }
        context.drain()?;
        Ok(Some(LayerExperts { storage, record }))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        (self.storage.bytes() / self.record.stride().max(1) as u64) as usize
    }

    fn part(&self, projection: Projection) -> Result<Part, GpuError> {
        let part = self.record.part(projection);
        let part = part.ok_or_else(|| GpuError::Invalid(format!("no {} in a record", projection.name())))?;
        let form = Form::of(&part.layout);
        Ok(Part {
            form: form.ok_or_else(|| GpuError::Invalid(format!("no shader for {:?}", part.layout)))?,
            layout: part.layout,
            at: part.at,
            bias: part.bias.map(|bias| (bias.at, bias.float)),
        })
    }
}

/// A matrix of a record as shaders take it.
#[derive(Debug, Clone, Copy)]
struct Part {
    form: Form,
    layout: MatrixLayout,
    at: usize,
    bias: Option<(usize, FloatType)>,
}

impl Gpu {
    /// One or two matrices (of one layout, `second` bytes apart) of each pair's expert: `out` is `[1 or 2, pairs, rows]`.
    #[allow(clippy::too_many_arguments)]
    fn expert_product(
        &mut self,
        experts: &(Storage, usize),
        part: Part,
        second: Option<usize>,
        chosen: &Storage,
        operand: &Operand,
        (pairs, share): (usize, usize),
        out: &Storage,
        out_at: usize,
    ) -> Result<(), GpuError> {
        let (storage, record) = experts;
        let (layout, op) = (part.layout, Op::ExpertProduct(part.form));
        match operand {
            Operand::Quantized { codes, scales } => {
                let strip = layout.unit_bytes() / 16;
                let immediates = words![
                    part.at / 16,
                    layout.groups(),
                    layout.rows,
                    layout.rows,
                    strip,
                    record / 16,
                    share,
                    second.unwrap_or(0) / 16,
                    pairs * layout.rows,
                    out_at
                ];
                let groups = [layout.rows.div_ceil(16) as u32, pairs as u32, 1 + u32::from(second.is_some())];
                let buffers = [storage.into(), codes.into(), scales.into(), out.into(), chosen.into()];
                self.run(op, &buffers, &immediates, groups)
            }
            Operand::Plain(x) => {
                for which in 0..=usize::from(second.is_some()) {
                    let base = part.at + which * second.unwrap_or(0);
                    let at = out_at + which * pairs * layout.rows;
                    let immediates =
                        words![base / 4, layout.rows, layout.cols, layout.rows, record / 4, share, at];
                    let groups = [layout.rows.div_ceil(4) as u32, pairs as u32, 1];
                    let buffers = [storage.into(), x.into(), out.into(), chosen.into()];
                    self.run(op, &buffers, &immediates, groups)?;
                }
                Ok(())
            }
        }
    }

    fn expert_bias(
        &mut self,
        experts: &(Storage, usize),
        part: Part,
        chosen: &Storage,
        pairs: usize,
        out: (&Storage, usize),
    ) -> Result<(), GpuError> {
        let Some((at, float)) = part.bias else { return Ok(()) };
        let width = part.layout.rows;
        let immediates = words![pairs, width, experts.1 / 4, at / 4, out.1];
        let op = Op::ExpertBias { bf16: float == FloatType::Bf16 };
        let buffers = [(&experts.0).into(), chosen.into(), out.0.into()];
        self.run(op, &buffers, &immediates, lanes(pairs * width))
    }

    /// Rows `[rows, width]` of gate and up, one behind the other in `both`, combined as the next matrix takes them.
    fn middle(
        &mut self,
        spec: &FfnSpec,
        both: &Storage,
        (rows, width): (usize, usize),
        next: Form,
    ) -> Result<Operand, GpuError> {
        let gated = Gated::of(spec);
        match next.group() {
            Some(group) => {
                let op = Op::GateQuantize { group, gated };
                self.quantize(op, ["middle codes", "middle scales"], both, (rows, width, width), group)
            }
            None => {
                let immediates = words![rows * width, rows * width];
                self.run(Op::Gate(gated), &[both.into()], &immediates, lanes(rows * width))?;
                Ok(Operand::Plain(both.clone()))
            }
        }
    }

    /// See [`Device::experts`](mach_models::device::Device::experts).
    pub(crate) fn run_experts(
        &mut self,
        experts: &LayerExperts,
        spec: &FfnSpec,
        x: &Buf,
        routing: &Routing,
        shared: Option<&Mlp<Matrix, Vector>>,
        h: &mut Buf,
    ) -> Result<(), GpuError> {
        let [gate, up, down] = [Projection::Gate, Projection::Up, Projection::Down].map(|p| experts.part(p));
        let (gate, up, down) = (gate?, up?, down?);
        let experts = (experts.storage.clone(), experts.record.stride());
        let nothing = || GpuError::Invalid("experts of rows that were not routed".into());
        let chosen = routing.experts.clone().ok_or_else(nothing)?;
        let weights = routing.weights.clone().ok_or_else(nothing)?;
        let (rows, hidden, k) = (x.rows, x.width, routing.top_k);
        let (pairs, width) = (rows * k, gate.layout.rows);
        let input = self.of(x)?;
        let both = self.scratch("gate up", 8 * pairs * width)?;
        let mut operand = self.operand(gate.form, ["codes", "scales"], &input, rows, hidden)?;
        let mut prepared = gate.form.group();
        if gate.layout == up.layout && up.at > gate.at {
            let second = Some(up.at - gate.at);
            self.expert_product(&experts, gate, second, &chosen, &operand, (pairs, k), &both, 0)?;
        } else {
            self.expert_product(&experts, gate, None, &chosen, &operand, (pairs, k), &both, 0)?;
            if prepared != up.form.group() {
                operand = self.operand(up.form, ["codes", "scales"], &input, rows, hidden)?;
                prepared = up.form.group();
            }
            self.expert_product(&experts, up, None, &chosen, &operand, (pairs, k), &both, pairs * width)?;
        }
        self.expert_bias(&experts, gate, &chosen, pairs, (&both, 0))?;
        self.expert_bias(&experts, up, &chosen, pairs, (&both, pairs * width))?;
        let middle = self.middle(spec, &both, (pairs, width), down.form)?;
        let out = self.scratch("pairs", 4 * pairs * hidden)?;
        self.expert_product(&experts, down, None, &chosen, &middle, (pairs, 1), &out, 0)?;
        self.expert_bias(&experts, down, &chosen, pairs, (&out, 0))?;
        let shared_rows = match shared {
            Some(mlp) => {
                // What the routed experts took, where the shared one takes the same.
                let ready = (prepared == form_of(&mlp.gate)?.group()).then_some(&operand);
                self.network(mlp, &input, rows, ready)?
            }
            None => out.clone(),
        };
        let shared_weights = routing.shared.clone().filter(|_| routing.gated);
        let kind = match (shared, &shared_weights) {
            (None, _) => 0,
            (Some(_), None) => 1,
            (Some(_), Some(_)) => 2,
        };
        let shared_weights = shared_weights.unwrap_or_else(|| weights.clone());
        let to = self.of(h)?;
        let buffers =
            [(&out).into(), (&weights).into(), (&shared_rows).into(), (&shared_weights).into(), (&to).into()];
        self.run(Op::Combine { shared: kind }, &buffers, &words![rows, hidden, k], lanes(rows * hidden))
    }

    /// Experts that were placed one by one, gathered into records when they are first used.
    pub(crate) fn placed(&mut self, experts: &[Mlp<Matrix, Vector>]) -> Result<LayerExperts, GpuError> {
        let nothing = || GpuError::Invalid("no experts".into());
        let first = experts.first().ok_or_else(nothing)?;
        let key = (first.gate.store, first.gate.index);
        if let Some(gathered) = self.gathered.get(&key) {
            return Ok(gathered.clone());
        }
        if first.biases.is_some() {
            return Err(GpuError::Invalid("placed experts with biases".into()));
        }
        let record = RecordLayout::new(first.gate.layout, first.up.layout, first.down.layout);
        let storage = Storage::new(&self.context, (record.stride() * experts.len()) as u64)?;
        for (e, expert) in experts.iter().enumerate() {
            let of = [
                (Projection::Gate, expert.gate),
                (Projection::Up, expert.up),
                (Projection::Down, expert.down),
            ];
            for (projection, matrix) in of {
                let part = record.part(projection).filter(|part| part.layout == matrix.layout);
                let part = part.ok_or_else(|| GpuError::Invalid("placed experts that differ".into()))?;
                let to = (e * record.stride() + part.at) as u64;
                let from = self.weights(&matrix)?;
                self.recorder().copy_storage(&from, 0, &storage, to, matrix.layout.bytes() as u64);
            }
        }
        let gathered = LayerExperts { storage, record };
        self.gathered.insert(key, gathered.clone());
        Ok(gathered)
    }

    /// What a dense network makes of rows, in working memory; `ready` are the rows as its gate takes them, if they are.
    pub(crate) fn network(
        &mut self,
        mlp: &Mlp<Matrix, Vector>,
        x: &Storage,
        rows: usize,
        ready: Option<&Operand>,
    ) -> Result<Storage, GpuError> {
        let (width, hidden) = (mlp.gate.layout.rows, mlp.gate.layout.cols);
        let both = self.scratch("gate up of all", 8 * rows * width)?;
        let made;
        let mut operand = match ready {
            Some(ready) => ready,
            None => {
                made = self.operand(form_of(&mlp.gate)?, ["codes", "scales"], x, rows, hidden)?;
                &made
            }
        };
        self.product(&mlp.gate, operand, rows, &both, 0)?;
        let other;
        if form_of(&mlp.up)?.group() != form_of(&mlp.gate)?.group() {
            other = self.operand(form_of(&mlp.up)?, ["codes", "scales"], x, rows, hidden)?;
            operand = &other;
        }
        self.product(&mlp.up, operand, rows, &both, rows * width)?;
        if let Some([gate, up, _]) = &mlp.biases {
            self.add_to(&both, 0, &gate.storage, rows * width, width)?;
            self.add_to(&both, rows * width, &up.storage, rows * width, width)?;
        }
        let middle = self.middle(&mlp.spec, &both, (rows, width), form_of(&mlp.down)?)?;
        let out = self.scratch("of all", 4 * rows * hidden)?;
        self.product(&mlp.down, &middle, rows, &out, 0)?;
        if let Some([_, _, down]) = &mlp.biases {
            self.add_to(&out, 0, &down.storage, rows * hidden, hidden)?;
        }
        Ok(out)
    }

    /// `x[at..] += y`, `y` being repeated every `period` elements.
    pub(crate) fn add_to(
        &mut self,
        x: &Storage,
        at: usize,
        y: &Storage,
        count: usize,
        period: usize,
    ) -> Result<(), GpuError> {
        self.run(Op::Add, &[x.into(), y.into()], &words![count, period, at], lanes(count))
    }
}
