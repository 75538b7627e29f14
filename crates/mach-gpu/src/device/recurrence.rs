//! Gated DeltaNet over the recurrent states of sequences.

use mach_kernels::delta::DeltaShape;
use mach_models::device::{DeltaSpec, DeltaWeights};

use super::buf::Buf;
use super::gpu::Gpu;
use super::state::{Delta, GpuState, Undo};
use super::weights::Vector;
use crate::kernels::delta::{self, Gates, Rows, Steps};
use crate::{GpuError, Storage};

/// The kernels' form of the sizes.
pub(crate) fn shape_of(spec: &DeltaSpec) -> DeltaShape {
    DeltaShape {
        key_heads: spec.key_heads,
        value_heads: spec.value_heads,
        key_dim: spec.key_dim,
        value_dim: spec.value_dim,
        taps: spec.taps,
    }
}

fn sizes(spec: &DeltaSpec) -> delta::Delta {
    delta::Delta {
        key_heads: spec.key_heads as u32,
        value_heads: spec.value_heads as u32,
        key_dim: spec.key_dim as u32,
        value_dim: spec.value_dim as u32,
        taps: spec.taps as u32,
    }
}

/// Rows up to which gates, convolution and recurrence are one dispatch.
const FEW: usize = 8;

/// What some rows of a sequence run over.
struct Run<'a> {
    /// Inputs `[_, channels]`.
    u: &'a Storage,
    decay: &'a Storage,
    beta: &'a Storage,
    rows: Rows,
    /// The matrices before the rows, where they are not those of the state.
    start: Option<&'a Storage>,
    out: &'a Storage,
}

impl Gpu {
    /// Convolution and recurrence of rows, then the window moves on.
    ///
    /// With `gates`, decay and beta are computed on the way, which pays for few rows.
    fn step(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Vector>,
        state: &Delta,
        run: &Run<'_>,
        gates: Option<&Gates<'_>>,
    ) -> Result<(), GpuError> {
        let shape = sizes(spec);
        let mixed = self.scratch("delta mixed", 4 * (run.rows.rows * shape.channels()) as usize)?;
        let (recorder, pipelines) = self.recording();
        let steps = Steps {
            u: run.u.into(),
            before: (&state.conv).into(),
            conv: (&weights.conv.storage).into(),
            mixed: (&mixed).into(),
            decay: run.decay.into(),
            beta: run.beta.into(),
            start: run.start.map(Into::into),
            matrices: (&state.matrices).into(),
            out: run.out.into(),
        };
        match gates {
            Some(gates) => delta::step(recorder, pipelines, &shape, &run.rows, gates, &steps)?,
            None => delta::steps(recorder, pipelines, &shape, &run.rows, &steps)?,
        }
        delta::shift(recorder, pipelines, &shape, &run.rows, run.u.into(), (&state.conv).into())
    }

    /// Keeps what it takes to cut the pass that follows short: the matrices before it stay, those after its first token
    /// go elsewhere.
    fn keep_block(&mut self, state: &mut Delta, u: &Storage, at: u64, rows: usize) -> Result<(), GpuError> {
        let bytes = |width: usize| 4 * (rows * width) as u64;
        let (channels, heads) = (state.shape.channels(), state.shape.value_heads);
        let fresh = |bytes| Storage::passing(&self.context, bytes);
        let fits = |spare: &Undo| spare.u.bytes() >= bytes(channels) && spare.decay.bytes() >= bytes(heads);
        let mut undo = match state.spare.take().filter(fits) {
            Some(spare) => Undo { rows, ..spare },
            None => Undo {
                rows,
                conv: fresh(state.conv.bytes())?,
                matrices: fresh(state.matrices.bytes())?,
                u: fresh(bytes(channels))?,
                decay: fresh(bytes(heads))?,
                beta: fresh(bytes(heads))?,
            },
        };
        std::mem::swap(&mut undo.matrices, &mut state.matrices);
        let recorder = self.recorder();
        recorder.copy_storage(&state.conv, 0, &undo.conv, 0, state.conv.bytes());
        recorder.copy_storage(u, at, &undo.u, 0, bytes(channels));
        state.undo = Some(undo);
        Ok(())
    }

    /// See [`Device::gated_delta`](mach_models::device::Device::gated_delta).
    pub(crate) fn run_delta(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Vector>,
        inputs: [&Buf; 4],
        states: &mut [&mut GpuState],
        out: &mut Buf,
    ) -> Result<(), GpuError> {
        let [u, z, b, a] = inputs;
        let shape = sizes(spec);
        let to = self.shape(out, u.rows, spec.value_heads * spec.value_dim)?;
        let (u_at, z_at, b_at, a_at) = (self.of(u)?, self.of(z)?, self.of(b)?, self.of(a)?);
        for (span, state) in self.spans.clone().iter().zip(states.iter_mut()) {
            let GpuState::Delta(state) = &mut **state else {
                return Err(GpuError::Invalid("a state that is not a recurrence's".into()));
            };
            state.check()?;
            state.spare = state.undo.take().or(state.spare.take());
            let begun = std::mem::take(&mut state.begun);
            if begun {
                let at = 4 * (span.start * u.width) as u64;
                self.keep_block(state, &u_at, at, span.rows)?;
            }
            let gate_bytes = 4 * span.rows * spec.value_heads;
            let (decay, beta) = match &state.undo {
                Some(undo) => (undo.decay.clone(), undo.beta.clone()),
                None => (self.scratch("delta decay", gate_bytes)?, self.scratch("delta beta", gate_bytes)?),
            };
            let all = Rows { rows: span.rows as u32, first: span.start as u32, gates: 0 };
            let gates = Gates {
                a: (&a_at).into(),
                b: (&b_at).into(),
                dt_bias: (&weights.dt_bias.storage).into(),
                neg_exp_a: (&weights.neg_exp_a.storage).into(),
                decay: (&decay).into(),
                beta: (&beta).into(),
            };
            // A pass that may be cut short keeps no copies.
            let after = if begun { Vec::new() } else { std::mem::take(&mut state.after) };
            let few = span.rows <= FEW && after.is_empty();
            if !few {
                let (recorder, pipelines) = self.recording();
                delta::gates(recorder, pipelines, &shape, &all, &gates)?;
            }
            let mut first = 0;
            for end in after.iter().copied().filter(|&end| end <= span.rows).chain([span.rows]) {
                if end > first {
                    let rows = Rows {
                        rows: (end - first) as u32,
                        first: (span.start + first) as u32,
                        gates: first as u32,
                    };
                    let start = state.undo.as_ref().map(|undo| undo.matrices.clone());
                    let start = start.as_ref();
                    let run = Run { u: &u_at, decay: &decay, beta: &beta, rows, start, out: &to };
                    self.step(spec, weights, state, &run, few.then_some(&gates))?;
                    first = end;
                }
                if state.kept.len() < after.len() && after.get(state.kept.len()) == Some(&end) {
                    let copy = state.copied(self.recorder());
                    copy.check()?;
                    state.kept.push(copy);
                }
            }
            let (recorder, pipelines) = self.recording();
            let norm = (&weights.norm.storage).into();
            delta::norm(recorder, pipelines, &shape, &all, spec.eps, (&z_at).into(), norm, (&to).into())?;
        }
        Ok(())
    }

    /// See [`Device::rewind_delta`](mach_models::device::Device::rewind_delta).
    pub(crate) fn run_rewind(
        &mut self,
        spec: &DeltaSpec,
        weights: &DeltaWeights<Vector>,
        state: &mut GpuState,
        keep: usize,
    ) -> Result<(), GpuError> {
        let GpuState::Delta(state) = state else { return Ok(()) };
        let Some(mut undo) = state.undo.take_if(|undo| keep < undo.rows) else { return Ok(()) };
        std::mem::swap(&mut state.conv, &mut undo.conv);
        if keep == 0 {
            std::mem::swap(&mut state.matrices, &mut undo.matrices);
            state.spare = Some(undo);
            return Ok(());
        }
        let width = spec.value_heads * spec.value_dim;
        let dropped = self.scratch("delta dropped", 4 * keep * width)?;
        let rows = Rows { rows: keep as u32, first: 0, gates: 0 };
        let run = Run {
            u: &undo.u,
            decay: &undo.decay,
            beta: &undo.beta,
            rows,
            start: Some(&undo.matrices),
            out: &dropped,
        };
        self.step(spec, weights, state, &run, None)?;
        state.spare = Some(undo);
        Ok(())
    }
}
