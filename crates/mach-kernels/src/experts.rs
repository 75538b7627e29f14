//! Expert feed-forward networks, expert-major: each expert's weights are read once for all the rows routed to it.

use mach_quant::FloatType;

use crate::elementwise::{Add, Gating, Weighted, map2, over_rows};
use crate::linear::{MatRef, STRIP, Strips};
use crate::pool::SharedMut;
use crate::quantize::{Operand, Rows};
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch};

/// What is added to the outputs of a matrix: one value a row.
#[derive(Debug, Clone, Copy)]
pub enum BiasRef<'a> {
    /// Ready to use.
    Floats(&'a [f32]),
    /// Little-endian values of this type, at any address.
    Stored(FloatType, &'a [u8]),
}

impl BiasRef<'_> {
    /// Values.
    pub fn len(&self) -> usize {
        match self {
            BiasRef::Floats(values) => values.len(),
            BiasRef::Stored(float, bytes) => bytes.len() / float.size(),
        }
    }

    /// Whether there are no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Values `first..last`, widened.
    fn widen(&self, first: usize, last: usize, out: &mut Vec<f32>) {
        out.clear();
        match *self {
            BiasRef::Floats(values) => out.extend_from_slice(&values[first..last]),
            BiasRef::Stored(FloatType::Bf16, bytes) => {
                let (pairs, _) = bytes.as_chunks::<2>();
                let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                out.extend(pairs[first..last].iter().map(wide));
            }
            BiasRef::Stored(float, bytes) => out.extend((first..last).map(|i| float.read(bytes, i))),
        }
    }
}

/// A gated network: `down(gated(gate x, up x))`, each matrix with or without a bias.
#[derive(Debug, Clone, Copy)]
pub struct ExpertRef<'a> {
    /// `[width, hidden]`.
    pub gate: MatRef<'a>,
    /// `[width, hidden]`.
    pub up: MatRef<'a>,
    /// `[hidden, width]`.
    pub down: MatRef<'a>,
    /// What is added to the outputs of gate, up and down, in f32.
    pub biases: [Option<BiasRef<'a>>; 3],
    /// How the outputs of gate and up are combined.
    pub gating: Gating,
}

/// An expert and the rows it is applied to. Its results are the pairs `first_pair..first_pair + rows.len()`.
#[derive(Debug, Clone, Copy)]
pub struct ExpertJob<'a> {
    /// The expert's weights, borrowed for the call.
    pub expert: ExpertRef<'a>,
    /// Rows of the input.
    pub rows: &'a [u32],
    /// Where its results start.
    pub first_pair: usize,
}

/// Working memory of [`expert_ffn`].
#[derive(Debug, Default)]
pub struct FfnScratch {
    hidden: Vec<f32>,
    threads: Vec<ThreadScratch>,
}

#[derive(Debug, Default)]
struct ThreadScratch {
    operand: Operand,
    gathered: Vec<u32>,
    up: Vec<f32>,
    bias: Vec<f32>,
}

/// Rows whose cost equals that of reading a strip's weights from memory: balances experts with few rows.
const READ_COST: usize = 4;

/// Applies experts to rows of `x` `[_, hidden]`: result pair `p` is row `p` of `out` `[pairs, hidden]`.
pub fn expert_ffn(
    cores: &mut Cores,
    scratch: &mut FfnScratch,
    x: &[f32],
    jobs: &[ExpertJob<'_>],
    out: &mut [f32],
) {
    let isa = cores.isa();
    let Some(first) = jobs.first() else { return };
    let hidden = first.expert.gate.layout().cols;
    let width = jobs.iter().map(|j| j.expert.gate.layout().rows).max().unwrap_or(0);
    let pairs = jobs.iter().map(|j| j.first_pair + j.rows.len()).max().unwrap_or(0);
    assert!(out.len() >= pairs * hidden);
    for job in jobs {
        let (g, u, d) = (job.expert.gate.layout(), job.expert.up.layout(), job.expert.down.layout());
        assert!(
            g.cols == hidden && u.cols == hidden && g.rows == u.rows && d.cols == g.rows && d.rows == hidden
        );
        assert!(job.rows.iter().all(|&r| (r as usize + 1) * hidden <= x.len()));
        let biases = job.expert.biases.iter().zip([g, u, d]);
        assert!(biases.into_iter().all(|(bias, m)| bias.is_none_or(|bias| bias.len() == m.rows)));
    }
    if scratch.hidden.len() < pairs * width {
        scratch.hidden.resize(pairs * width, 0.0);
    }
    let threads = cores.threads();
    scratch.threads.resize_with(threads, ThreadScratch::default);
    let (middle, locals) = (SharedMut::new(&mut scratch.hidden), SharedMut::new(&mut scratch.threads));
    let to = SharedMut::new(out);

    let plan = StripPlan::new(jobs, threads, |j| j.expert.gate.strips());
    cores.run(|t| {
        // SAFETY: one scratch for each thread.
        let local = unsafe { &mut *locals.get().add(t) };
        local.gathered.clear();
        dispatch(
            isa,
            GateUp {
                jobs,
                plan: &plan,
                thread: t,
                x: x.as_ptr(),
                hidden,
                middle: middle.get(),
                width,
                local,
            },
        );
    });
    let plan = StripPlan::new(jobs, threads, |j| j.expert.down.strips());
    cores.run(|t| {
        // SAFETY: one scratch for each thread.
        let local = unsafe { &mut *locals.get().add(t) };
        dispatch(
            isa,
            Down { jobs, plan: &plan, thread: t, middle: middle.get(), width, hidden, out: to.get(), local },
        );
    });
}

/// Contiguous parts of all jobs' strips, equal in estimated cost.
struct StripPlan {
    /// For each job: cost before it, cost of a strip, strips.
    jobs: Vec<(usize, usize, usize)>,
    total: usize,
    threads: usize,
}

impl StripPlan {
    fn new(jobs: &[ExpertJob<'_>], threads: usize, strips: impl Fn(&ExpertJob<'_>) -> usize) -> StripPlan {
        let mut total = 0;
        let jobs = jobs
            .iter()
            .map(|j| {
                let (start, cost, n) = (total, j.rows.len() + READ_COST, strips(j));
                total += cost * n;
                (start, cost, n)
            })
            .collect();
        StripPlan { jobs, total, threads }
    }

    /// The strips of job `job` that belong to `thread`.
    fn part(&self, job: usize, thread: usize) -> (usize, usize) {
        let (start, cost, strips) = self.jobs[job];
        let edge = |t: usize| {
            let at = self.total * t / self.threads;
            at.saturating_sub(start).div_ceil(cost).min(strips)
        };
        (edge(thread), if thread + 1 == self.threads { strips } else { edge(thread + 1) })
    }
}

/// Adds values `first..last` of a bias to these columns of `rows` rows, `stride` apart.
///
/// # Safety
/// The rows are there and writable; the bias has `last` values.
#[inline(always)]
unsafe fn add_bias<S: Simd>(
    s: S,
    bias: Option<BiasRef<'_>>,
    wide: &mut Vec<f32>,
    (first, last): (usize, usize),
    out: *mut f32,
    (rows, stride): (usize, usize),
) {
    let Some(bias) = bias else { return };
    bias.widen(first, last, wide);
    for r in 0..rows {
        // SAFETY: forwarded.
        unsafe { map2(s, out.add(r * stride + first), wide.as_ptr(), last - first, Add {}) };
    }
}

struct GateUp<'a> {
    jobs: &'a [ExpertJob<'a>],
    plan: &'a StripPlan,
    thread: usize,
    x: *const f32,
    hidden: usize,
    middle: *mut f32,
    width: usize,
    local: &'a mut ThreadScratch,
}
impl Kernel for GateUp<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let ThreadScratch { operand, gathered, up: up_rows, bias: wide } = self.local;
        for (i, job) in self.jobs.iter().enumerate() {
            let (from, to) = self.plan.part(i, self.thread);
            if from >= to {
                continue;
            }
            let ExpertRef { gate, up, biases, gating, .. } = job.expert;
            let rows = job.rows.len();
            let (first, last) = (from * STRIP, (to * STRIP).min(gate.layout().rows));
            // SAFETY: `expert_ffn` checked shapes and rows; threads write disjoint columns of `middle`.
            unsafe {
                if gathered[..] != *job.rows || !operand.suits(gate.layout()) {
                    operand.gather(s, gate.layout(), self.x, self.hidden, Rows::Listed(job.rows));
                    gathered.clear();
                    gathered.extend_from_slice(job.rows);
                }
                let out = self.middle.add(job.first_pair * self.width);
                s.call(Strips { matrix: gate, operand, from, to, out, stride: self.width });
                let (columns, places) = ((first, last), (rows, self.width));
                add_bias(s, biases[0], wide, columns, out, places);
                if !operand.suits(up.layout()) {
                    operand.gather(s, up.layout(), self.x, self.hidden, Rows::Listed(job.rows));
                }
                up_rows.resize(rows * self.width, 0.0);
                let out_up = up_rows.as_mut_ptr();
                s.call(Strips { matrix: up, operand, from, to, out: out_up, stride: self.width });
                add_bias(s, biases[1], wide, columns, out_up, places);
                for r in 0..rows {
                    let at = r * self.width + first;
                    gating.apply(s, out.add(at), up_rows.as_ptr().add(at), last - first);
                }
            }
        }
    }
}

struct Down<'a> {
    jobs: &'a [ExpertJob<'a>],
    plan: &'a StripPlan,
    thread: usize,
    middle: *const f32,
    width: usize,
    hidden: usize,
    out: *mut f32,
    local: &'a mut ThreadScratch,
}
impl Kernel for Down<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, job) in self.jobs.iter().enumerate() {
            let (from, to) = self.plan.part(i, self.thread);
            if from >= to {
                continue;
            }
            let down = job.expert.down;
            // SAFETY: as in `GateUp`; threads write disjoint columns of `out`.
            unsafe {
                let rows = self.middle.add(job.first_pair * self.width);
                let ThreadScratch { operand, bias: wide, .. } = &mut *self.local;
                operand.gather(s, down.layout(), rows, self.width, Rows::First(job.rows.len()));
                let out = self.out.add(job.first_pair * self.hidden);
                s.call(Strips { matrix: down, operand, from, to, out, stride: self.hidden });
                let columns = (from * STRIP, (to * STRIP).min(down.layout().rows));
                let bias = job.expert.biases[2];
                add_bias(s, bias, wide, columns, out, (job.rows.len(), self.hidden));
            }
        }
    }
}

struct Combine<'a> {
    pairs: &'a [f32],
    weights: &'a [f32],
    places: &'a [u32],
    ranks: usize,
    hidden: usize,
    out: *mut f32,
    first: usize,
    last: usize,
}
impl Kernel for Combine<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.hidden;
        let mut sum = vec![0.0f32; n];
        for row in self.first..self.last {
            sum.fill(0.0);
            for rank in 0..self.ranks {
                let weight = self.weights[row * self.ranks + rank];
                let place = self.places[row * self.ranks + rank] as usize;
                let y = &self.pairs[place * n..(place + 1) * n];
                // SAFETY: both have n values.
                unsafe { map2(s, sum.as_mut_ptr(), y.as_ptr(), n, Weighted { weight }) };
            }
            // SAFETY: `combine` checked the length of `out`; rows are disjoint between threads.
            unsafe { map2(s, self.out.add(row * n), sum.as_ptr(), n, Add {}) };
        }
    }
}

/// `out[row] += sum over ranks, ascending, of weights[row, rank] * pairs[places[row, rank]]`.
#[allow(clippy::too_many_arguments)]
pub fn combine(
    cores: &mut Cores,
    pairs: &[f32],
    weights: &[f32],
    places: &[u32],
    ranks: usize,
    hidden: usize,
    out: &mut [f32],
) {
    let isa = cores.isa();
    let rows = out.len() / hidden.max(1);
    assert!(weights.len() >= rows * ranks && places.len() >= rows * ranks);
    let to = SharedMut::new(out);
    over_rows(cores, rows, |first, last| {
        dispatch(isa, Combine { pairs, weights, places, ranks, hidden, out: to.get(), first, last });
    });
}
