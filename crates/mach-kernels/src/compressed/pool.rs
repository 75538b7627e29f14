//! From windows of tokens to entries.

use super::tail::{PAGE, Pages, Tail};
use super::{CellType, PoolInputs, PoolShape, PoolWeights, rotate_last};
use crate::elementwise::{Rope, norm_row};
use crate::math::exp;
use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Isa, Kernel, dispatch, partition};

/// Entries, and the projections of the tokens that later entries need.
#[derive(Debug)]
pub(super) struct Pool {
    ratio: usize,
    overlap: bool,
    /// Width of an entry.
    width: usize,
    rotary_dim: usize,
    cells: CellType,
    /// Rows of f32: values, then gates.
    pub(super) open: Tail,
    pub(super) entries: Pages,
}

/// Width of a pool's projections.
fn inner(overlap: bool, width: usize) -> usize {
    if overlap { 2 * width } else { width }
}

/// The first token whose projections are still needed at `position`.
fn first_open(ratio: usize, overlap: bool, position: usize) -> usize {
    let window = position / ratio;
    if overlap { window.saturating_sub(1) * ratio } else { window * ratio }
}

impl Pool {
    pub(super) fn with_len(
        shape: &PoolShape,
        width: usize,
        rotary_dim: usize,
        cells: CellType,
        len: usize,
    ) -> Self {
        let PoolShape { ratio, overlap, .. } = *shape;
        let row = 2 * inner(overlap, width);
        Pool {
            ratio,
            overlap,
            width,
            rotary_dim,
            cells,
            open: Tail::zeroed(row, first_open(ratio, overlap, len), len),
            entries: Pages::zeroed(cells.words(width), len / ratio),
        }
    }

    /// Bytes of a pool of `tokens` tokens at most, between passes.
    pub(super) fn bytes_at(shape: &PoolShape, width: usize, cells: CellType, tokens: usize) -> usize {
        let PoolShape { ratio, overlap, .. } = *shape;
        let open = if overlap { 2 * ratio } else { ratio };
        let entries = (tokens / ratio).next_multiple_of(PAGE) * cells.words(width);
        4 * (2 * open.min(tokens) * 2 * inner(overlap, width) + entries)
    }

    pub(super) fn first_open(&self, position: usize) -> usize {
        first_open(self.ratio, self.overlap, position)
    }

    pub(super) fn cut(&self, position: usize) -> Option<Pool> {
        let open = self.open.cut(self.first_open(position), position)?;
        let mut entries = self.entries.clone();
        entries.truncate(position / self.ratio);
        Some(Pool { open, entries, ..*self })
    }

    pub(super) fn truncate(&mut self, position: usize) {
        self.open.truncate(position);
        self.entries.truncate(position / self.ratio);
    }

    pub(super) fn forget(&mut self, position: usize) {
        self.open.forget(self.first_open(position));
    }

    /// Takes in `rows` tokens from `position` on; pools the windows that they fill.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn append(
        &mut self,
        cores: &mut Cores,
        rope: &Rope,
        weights: &PoolWeights<'_>,
        eps: f32,
        inputs: &PoolInputs<'_>,
        position: usize,
        rows: usize,
        scratch: &mut Vec<f32>,
    ) {
        let inner = inner(self.overlap, self.width);
        assert!(inputs.values.len() >= rows * inner && inputs.gates.len() >= rows * inner);
        assert!(weights.ape.len() == self.ratio * inner && weights.norm.len() == self.width);
        let room: &mut [f32] = bytemuck_f32(self.open.extend(rows));
        let tokens = inputs.values.chunks_exact(inner).zip(inputs.gates.chunks_exact(inner));
        for (row, (values, gates)) in room.chunks_exact_mut(2 * inner).zip(tokens) {
            row[..inner].copy_from_slice(values);
            row[inner..].copy_from_slice(gates);
        }
        let (first, last) = (self.entries.len(), (position + rows) / self.ratio);
        let count = last.saturating_sub(first);
        if count == 0 {
            return;
        }
        scratch.resize(count * self.width, 0.0);
        let (isa, threads, to) = (cores.isa(), cores.threads(), SharedMut::new(scratch));
        let pool = &*self;
        cores.run(|t| {
            let part = partition(count, threads, t);
            let mut angles = Vec::with_capacity(pool.rotary_dim);
            for i in part {
                // SAFETY: entries are disjoint between threads and inside the scratch.
                let out = unsafe { std::slice::from_raw_parts_mut(to.get().add(i * pool.width), pool.width) };
                angles.clear();
                rope.angles((first + i) * pool.ratio, &mut angles);
                dispatch(isa, Entry { pool, weights, eps, window: first + i, angles: &angles, out });
            }
        });
        for entry in scratch.chunks_exact(self.width) {
            store_row(isa, self.cells, entry, self.entries.push());
        }
    }

    /// A token of a window: its values and gates.
    fn token(&self, position: usize) -> &[f32] {
        bytemuck_f32_ref(self.open.row(position))
    }
}

fn bytemuck_f32(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: f32 has the size and alignment of u32, and every bit pattern is a value of both.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<f32>(), words.len()) }
}

fn bytemuck_f32_ref(words: &[u32]) -> &[f32] {
    // SAFETY: as in `bytemuck_f32`.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast::<f32>(), words.len()) }
}

/// One entry: for each channel the softmax of the gates over the slots, times the values; then norm and rotation.
struct Entry<'a> {
    pool: &'a Pool,
    weights: &'a PoolWeights<'a>,
    eps: f32,
    window: usize,
    angles: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Entry<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Pool { ratio, overlap, width, .. } = *self.pool;
        let inner = inner(overlap, width);
        // Values, gates and what is added to them, of each slot.
        let mut slots: Vec<(*const f32, *const f32, *const f32)> = Vec::with_capacity(2 * ratio);
        let windows = [overlap.then(|| self.window.checked_sub(1)).flatten(), Some(self.window)];
        for (half, window) in windows.into_iter().enumerate() {
            let Some(window) = window else { continue };
            let from = if overlap { half * width } else { 0 };
            for j in 0..ratio {
                let token = &self.pool.token(window * ratio + j)[from..];
                let ape = &self.weights.ape[j * inner + from..];
                slots.push((token.as_ptr(), token[inner..].as_ptr(), ape.as_ptr()));
            }
        }
        let out = self.out.as_mut_ptr();
        for c in (0..width).step_by(16) {
            // SAFETY: every slot has `width` values from its pointers on, a multiple of 16; so has `out`.
            unsafe {
                let mut top = s.splat(f32::NEG_INFINITY);
                for (_, gate, ape) in &slots {
                    top = s.max(s.add(s.load(gate.add(c)), s.load(ape.add(c))), top);
                }
                let (mut total, mut sum) = (s.splat(0.0), s.splat(0.0));
                for (value, gate, ape) in &slots {
                    let gate = s.add(s.load(gate.add(c)), s.load(ape.add(c)));
                    let p = exp(s, s.sub(gate, top));
                    total = s.add(total, p);
                    sum = s.fma(p, s.load(value.add(c)), sum);
                }
                s.store(out.add(c), s.div(sum, total));
            }
        }
        // SAFETY: the norm's weight has `width` values, like `out`.
        unsafe { norm_row(s, out, self.weights.norm.as_ptr(), self.eps, out, width) };
        rotate_last(self.out, self.angles, false);
    }
}

struct Store<'a> {
    cells: CellType,
    row: &'a [f32],
    out: &'a mut [u32],
}

impl Kernel for Store<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (row, out) = (self.row.as_ptr(), self.out.as_mut_ptr());
        for c in (0..self.row.len()).step_by(16) {
            // SAFETY: `store_row` checked the lengths; rows are multiples of 16 values.
            unsafe {
                match self.cells {
                    CellType::F32 => s.store(out.cast::<f32>().add(c), s.load(row.add(c))),
                    CellType::Bf16 => s.store_bf16(out.cast::<u16>().add(c), s.load(row.add(c))),
                }
            }
        }
    }
}

/// Writes a row as it is kept.
pub(super) fn store_row(isa: Isa, cells: CellType, row: &[f32], out: &mut [u32]) {
    assert!(row.len().is_multiple_of(16) && out.len() == cells.words(row.len()));
    dispatch(isa, Store { cells, row, out });
}

/// Loads 16 values of a kept row.
///
/// # Safety
/// `row` has 16 values from `at` on.
#[inline(always)]
pub(super) unsafe fn load_cells<S: Simd, const BF16: bool>(s: S, row: *const u32, at: usize) -> S::F {
    // SAFETY: forwarded.
    unsafe { if BF16 { s.load_bf16(row.cast::<u16>().add(at)) } else { s.load(row.cast::<f32>().add(at)) } }
}
