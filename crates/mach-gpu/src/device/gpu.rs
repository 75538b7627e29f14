//! The device itself: shaders, weights, working memory, the commands of a pass, and what it leaves to be read back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mach_kernels::attention::KvShape;
use mach_kernels::elementwise::Rope;
use mach_models::LoadOptions;
use mach_models::device::{RopeSpec, Span, Tap};
use mach_quant::Order;

use super::buf::{Buf, Uploaded, Uploads, at_least};
use super::experts::LayerExperts;
use super::ops::{Form, Op, Ops};
use super::pages::Pool;
use super::profile::{PassTimes, Profile, UnderWay};
use super::weights::Matrix;
use crate::buffer::Staging;
use crate::context::DEADLINE;
use crate::{Context, GpuError, Pipelines, Recorder, Slice, Storage};

/// A GPU that runs models.
#[derive(Debug)]
pub struct Gpu {
    pub(crate) context: Context,
    pub(crate) ops: Ops,
    pub(crate) options: LoadOptions,
    pub(crate) order: Order,
    /// Whether its bytes are the CPU's.
    pub(crate) exact: bool,
    pub(crate) stores: Vec<Option<Vec<Storage>>>,
    pub(crate) resident_bytes: u64,
    pub(crate) experts: Vec<Option<LayerExperts>>,
    pub(crate) expert_bytes: u64,
    /// Experts that were placed one by one, by the first of their matrices.
    pub(crate) gathered: HashMap<(usize, usize), LayerExperts>,
    pub(crate) spans: Vec<Span>,
    pub(crate) recorder: Option<Recorder>,
    pub(crate) uploads: Uploads,
    pub(crate) pools: HashMap<(usize, usize), Arc<Pool>>,
    pub(crate) rotations: Vec<Rotation>,
    pub(crate) pending: Pending,
    pub(crate) scratch: HashMap<&'static str, Option<Storage>>,
    /// Who wants to know where time goes, and the pass under way.
    pub(crate) profile: Option<(Profile, UnderWay)>,
    /// Where outputs were read back to, by size; for the next pass.
    pub(crate) stagings: Vec<Staging>,
    /// The first thing that went wrong since the last `finish`.
    pub(crate) failure: Option<GpuError>,
}

/// A rotation, and its angles at the rows of the pass.
#[derive(Debug)]
pub(crate) struct Rotation {
    spec: RopeSpec,
    rope: Rope,
    angles: Option<Uploaded>,
}

/// What the next `finish` reads back.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) outputs: Vec<(Storage, u64)>,
    pub(crate) taps: Vec<(Tap, Staging)>,
    pub(crate) routing: Vec<(usize, Staging, Staging)>,
}

/// The words of immediates, whatever their type.
#[macro_export]
#[doc(hidden)]
macro_rules! words {
    ($($value:expr),* $(,)?) => { [$($crate::device::gpu::Word::word($value)),*] };
}

/// A word of immediates.
pub(crate) trait Word {
    fn word(self) -> u32;
}
impl Word for u32 {
    fn word(self) -> u32 {
        self
    }
}
impl Word for usize {
    fn word(self) -> u32 {
        self as u32
    }
}
impl Word for f32 {
    fn word(self) -> u32 {
        self.to_bits()
    }
}

/// Workgroups of shaders that take their number from `x` and `y`.
pub(crate) fn grid(workgroups: usize) -> [u32; 3] {
    let most = 65535;
    [workgroups.min(most) as u32, workgroups.div_ceil(most) as u32, 1]
}

/// Workgroups of shaders with a lane for each element.
pub(crate) fn lanes(count: usize) -> [u32; 3] {
    grid(count.div_ceil(64))
}

/// Activations as products take them: plain rows, or codes and scales.
pub(crate) enum Operand {
    Plain(Storage),
    Quantized { codes: Storage, scales: Storage },
}

impl Gpu {
    pub(crate) fn new(context: &Context, pipelines: Pipelines, options: &LoadOptions, exact: bool) -> Gpu {
        Gpu {
            context: context.clone(),
            ops: Ops::new(pipelines),
            options: options.clone(),
            order: mach_cpu::order_of(options.activations),
            exact,
            stores: Vec::new(),
            resident_bytes: 0,
            experts: Vec::new(),
            expert_bytes: 0,
            gathered: HashMap::new(),
            spans: Vec::new(),
            recorder: None,
            uploads: Uploads::default(),
            pools: HashMap::new(),
            rotations: Vec::new(),
            pending: Pending::default(),
            scratch: HashMap::new(),
            profile: None,
            stagings: Vec::new(),
            failure: None,
        }
    }

    /// Between operations: hands what was recorded to the device, once it is enough to keep that busy while the host goes
    /// on recording.
    pub(crate) fn hand_over(&mut self) -> Result<(), GpuError> {
        if self.recorder.as_ref().is_some_and(|recorder| recorder.dispatches() >= ENOUGH) {
            self.submit()?;
            // Their memory is written again.
            self.forget_angles();
        }
        Ok(())
    }

    /// Runs what may fail; the first failure is kept until `finish`.
    pub(crate) fn attempt(&mut self, f: impl FnOnce(&mut Self) -> Result<(), GpuError>) {
        if self.failure.is_none()
            && let Err(error) = f(self)
        {
            self.failure = Some(error);
        }
    }

    pub(crate) fn recorder(&mut self) -> &mut Recorder {
        self.recording().0
    }

    /// The recorder and the pipelines, for kernels that take both.
    pub(crate) fn recording(&mut self) -> (&mut Recorder, &Pipelines) {
        let timed = self.profile.as_ref().is_some_and(|(profile, _)| profile.timed);
        let recorder = self.recorder.get_or_insert_with(|| match timed {
            true => Recorder::timed(&self.context),
            false => Recorder::new(&self.context),
        });
        (recorder, &self.ops.pipelines)
    }

    /// Hands everything recorded so far to the device.
    pub(crate) fn submit(&mut self) -> Result<(), GpuError> {
        self.uploads.write(&self.context)?;
        if let Some(recorder) = self.recorder.take() {
            let submission = recorder.submit();
            if let Some((Profile { timed: true, .. }, under_way)) = &mut self.profile {
                under_way.kernels.extend(submission.timings(DEADLINE)?);
            }
        }
        Ok(())
    }

    /// Records an operation.
    pub(crate) fn run(
        &mut self,
        op: Op,
        buffers: &[Slice<'_>],
        immediates: &[u32],
        groups: [u32; 3],
    ) -> Result<(), GpuError> {
        let pipeline = self.ops.get(op)?;
        self.recorder().dispatch(&pipeline, buffers, immediates, groups)
    }

    pub(crate) fn upload<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> Result<Uploaded, GpuError> {
        self.uploads.put(&self.context, bytemuck::cast_slice(values))
    }

    /// Working memory by name; it lasts until it is asked for again.
    pub(crate) fn scratch(&mut self, name: &'static str, bytes: usize) -> Result<Storage, GpuError> {
        at_least(&self.context, self.scratch.entry(name).or_default(), bytes as u64)
    }

    /// Gives a buffer its shape, and its memory.
    pub(crate) fn shape(&self, buf: &mut Buf, rows: usize, width: usize) -> Result<Storage, GpuError> {
        (buf.rows, buf.width) = (rows, width);
        let bytes = buf.bytes();
        at_least(&self.context, &mut buf.storage, bytes)
    }

    /// The memory of rows that were computed before.
    pub(crate) fn of(&self, buf: &Buf) -> Result<Storage, GpuError> {
        buf.storage.clone().ok_or_else(|| GpuError::Invalid("rows that nothing has written".into()))
    }

    pub(crate) fn weights(&self, matrix: &Matrix) -> Result<Storage, GpuError> {
        let store = self.stores.get(matrix.store).and_then(Option::as_ref);
        let found = store.and_then(|store| store.get(matrix.index)).cloned();
        found.ok_or_else(|| GpuError::Invalid("a matrix that was released".into()))
    }

    /// The pool of pages of a shape.
    pub(crate) fn pool(&self, shape: KvShape) -> Arc<Pool> {
        let made = self.pools.get(&(shape.heads, shape.head_dim)).cloned();
        made.unwrap_or_else(|| Arc::new(Pool::new(&self.context, shape.page_bytes() as u64 / 4)))
    }

    /// Angles of the rows of this pass, `[rows, rotary_dim]`.
    pub(crate) fn angles(&mut self, spec: &RopeSpec) -> Result<Uploaded, GpuError> {
        let at = self.rotations.iter().position(|r| r.spec == *spec).unwrap_or_else(|| {
            let rope = mach_cpu::rope(spec);
            self.rotations.push(Rotation { spec: *spec, rope, angles: None });
            self.rotations.len() - 1
        });
        let Some(rotation) = self.rotations.get_mut(at) else {
            return Err(GpuError::Invalid("a rotation".into()));
        };
        if let Some(angles) = &rotation.angles {
            return Ok(angles.clone());
        }
        let mut values = Vec::new();
        for span in &self.spans {
            for position in span.position..span.position + span.rows {
                rotation.rope.angles(position, &mut values);
            }
        }
        let angles = self.uploads.put(&self.context, bytemuck::cast_slice(&values))?;
        rotation.angles = Some(angles.clone());
        Ok(angles)
    }

    pub(crate) fn forget_angles(&mut self) {
        self.rotations.iter_mut().for_each(|rotation| rotation.angles = None);
    }

    /// Quantizes rows by groups, `stride` apart.
    pub(crate) fn quantize(
        &mut self,
        op: Op,
        names: [&'static str; 2],
        x: &Storage,
        (rows, cols, stride): (usize, usize, usize),
        group: usize,
    ) -> Result<Operand, GpuError> {
        let groups = cols / group;
        let codes = self.scratch(names[0], rows * cols)?;
        let scales = self.scratch(names[1], rows * groups * 8)?;
        let workgroups = (rows * groups).div_ceil(64 / (group / 4));
        let immediates = words![rows, cols, groups, stride];
        self.run(op, &[x.into(), (&codes).into(), (&scales).into()], &immediates, grid(workgroups))?;
        Ok(Operand::Quantized { codes, scales })
    }

    /// Rows as a matrix of this form takes them.
    pub(crate) fn operand(
        &mut self,
        form: Form,
        names: [&'static str; 2],
        x: &Storage,
        rows: usize,
        cols: usize,
    ) -> Result<Operand, GpuError> {
        match form.group() {
            None => Ok(Operand::Plain(x.clone())),
            Some(group) => self.quantize(Op::Quantize { group }, names, x, (rows, cols, cols), group),
        }
    }

    /// `out[at..] = x weight^T`, rows of `out` as wide as the matrix has rows.
    pub(crate) fn product(
        &mut self,
        matrix: &Matrix,
        operand: &Operand,
        rows: usize,
        out: &Storage,
        at: usize,
    ) -> Result<(), GpuError> {
        let layout = matrix.layout;
        let (form, weights) = (form_of(matrix)?, self.weights(matrix)?);
        let stride = layout.rows;
        match operand {
            Operand::Plain(x) => {
                let immediates = words![0u32, layout.rows, layout.cols, stride, at];
                let tall = layout.rows.div_ceil(4);
                let groups = [tall.min(65535) as u32, rows as u32, tall.div_ceil(65535) as u32];
                let op = Op::Product { form, rows: 1 };
                self.run(op, &[(&weights).into(), x.into(), out.into()], &immediates, groups)
            }
            Operand::Quantized { codes, scales } => {
                let m = if rows >= 3 { 4 } else { rows.max(1) };
                let strip = layout.unit_bytes() / 16;
                let immediates = words![0u32, layout.groups(), layout.rows, stride, strip, rows, at];
                let tall = layout.rows.div_ceil(16);
                let groups = [tall.min(65535) as u32, rows.div_ceil(m) as u32, tall.div_ceil(65535) as u32];
                let op = Op::Product { form, rows: m };
                let buffers = [(&weights).into(), codes.into(), scales.into(), out.into()];
                self.run(op, &buffers, &immediates, groups)
            }
        }
    }

    /// Waits for everything, and returns what was asked for.
    pub(crate) fn read_back(&mut self) -> Result<Read, GpuError> {
        let Pending { outputs, taps, routing } = std::mem::take(&mut self.pending);
        let mut stagings = Vec::new();
        for (storage, bytes) in outputs {
            let at = self.stagings.iter().position(|staging| staging.bytes() == bytes);
            let staging = match at {
                Some(at) => self.stagings.swap_remove(at),
                None => Staging::new(&self.context, bytes)?,
            };
            self.recorder().copy_out(&storage, 0, &staging, 0, bytes);
            stagings.push(staging);
        }
        if let Some(error) = self.failure.take() {
            // Commands that were recorded are dropped with their pass.
            self.recorder = None;
            return Err(error);
        }
        self.uploads.write(&self.context)?;
        let mut pass = PassTimes::default();
        if let Some(recorder) = self.recorder.take() {
            let submission = recorder.submit();
            let handed_over = Instant::now();
            let kernels = submission.timings(DEADLINE)?;
            if let Some((_, under_way)) = &mut self.profile {
                under_way.kernels.extend(kernels);
                pass.kernels = std::mem::take(&mut under_way.kernels);
                pass.recorded = handed_over - under_way.started;
                pass.waited = handed_over.elapsed();
            }
        }
        let done = Instant::now();
        let read = |staging: &Staging| staging.read(&self.context, staging.bytes(), Duration::from_secs(5));
        let outputs = stagings.iter().map(read).collect::<Result<Vec<Vec<f32>>, _>>()?;
        // Those of unusual sizes go first.
        self.stagings.extend(stagings);
        self.stagings.drain(..self.stagings.len().saturating_sub(STAGINGS));
        let taps = taps.iter().map(|(tap, s)| Ok((*tap, read(s)?))).collect::<Result<Vec<_>, GpuError>>()?;
        let ids = |s: &Staging| s.read(&self.context, s.bytes(), Duration::from_secs(5));
        let routing = routing.iter().map(|(layer, e, w)| Ok((*layer, ids(e)?, read(w)?)));
        let routing = routing.collect::<Result<Vec<_>, GpuError>>()?;
        if let Some((profile, _)) = &self.profile {
            profile.add(PassTimes { read: done.elapsed(), ..pass });
        }
        Ok((outputs, taps, routing))
    }
}

/// Dispatches that are handed over together; submitting costs the host as much as a few.
const ENOUGH: usize = 160;

/// Buffers for outputs that are kept.
const STAGINGS: usize = 4;

/// Outputs, taps, routing.
pub(crate) type Read = (Vec<Vec<f32>>, Vec<(Tap, Vec<f32>)>, Vec<(usize, Vec<u32>, Vec<f32>)>);

pub(crate) fn form_of(matrix: &Matrix) -> Result<Form, GpuError> {
    Form::of(&matrix.layout).ok_or_else(|| GpuError::Invalid(format!("no shader for {:?}", matrix.layout)))
}
