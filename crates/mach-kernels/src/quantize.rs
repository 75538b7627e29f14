//! Activations as the linear kernels read them: int8 panels, or plain float rows.

use mach_quant::{MatrixLayout, Order};

use crate::pool::SharedMut;
use crate::simd::Simd;
use crate::{Cores, Kernel, dispatch, partition};

/// Rows of the widest panel. Rows split into panels of 8 and one of what remains.
pub const PANEL: usize = 8;

/// Width of the panel that starts at `row` of `rows`.
#[inline(always)]
pub(crate) fn panel_width(row: usize, rows: usize) -> usize {
    (rows - row).min(PANEL)
}

/// The left operand of a matrix product. Quantized: symmetric int8 for each row and group (scale = max |x| / 127), the
/// four bytes of a column quad of all rows of a panel together, beside each group's scale and sum of codes. Float: rows.
#[derive(Debug, Default)]
pub struct Operand {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Columns of a group; 0 for float rows.
    pub(crate) group: usize,
    pub(crate) q: Vec<i8>,
    pub(crate) scale: Vec<f32>,
    pub(crate) sum: Vec<f32>,
    pub(crate) float: Vec<f32>,
}

/// Rows to take: all from the first on, or those listed.
#[derive(Debug, Clone, Copy)]
pub enum Rows<'a> {
    /// Rows `0..n`.
    First(usize),
    /// These rows, in this order.
    Listed(&'a [u32]),
}

impl Rows<'_> {
    fn len(&self) -> usize {
        match self {
            Rows::First(n) => *n,
            Rows::Listed(list) => list.len(),
        }
    }

    #[inline(always)]
    fn at(&self, i: usize) -> usize {
        match self {
            Rows::First(_) => i,
            Rows::Listed(list) => list[i] as usize,
        }
    }
}

impl Operand {
    /// Sets shape and kind for matrices of this layout.
    fn shape(&mut self, layout: &MatrixLayout, rows: usize) {
        self.rows = rows;
        self.cols = layout.cols;
        self.group = match layout.order {
            Order::Tiles => layout.codec.group().unwrap_or(0),
            Order::Rows => 0,
        };
        if self.group == 0 {
            self.float.resize(rows * self.cols, 0.0);
        } else {
            let groups = self.cols / self.group;
            self.q.resize(rows * self.cols, 0);
            self.scale.resize(rows * groups, 0.0);
            self.sum.resize(rows * groups, 0.0);
        }
    }

    /// Whether a matrix of this layout can take the operand as it is.
    pub fn suits(&self, layout: &MatrixLayout) -> bool {
        let group = match layout.order {
            Order::Tiles => layout.codec.group().unwrap_or(0),
            Order::Rows => 0,
        };
        self.group == group && self.cols == layout.cols
    }

    /// Prepares `rows` of `x` (row-major, `stride` apart) for matrices of this layout, on the pool.
    pub fn prepare(
        &mut self,
        cores: &mut Cores,
        layout: &MatrixLayout,
        x: &[f32],
        stride: usize,
        rows: usize,
    ) {
        let isa = cores.isa();
        assert!(rows == 0 || x.len() >= (rows - 1) * stride + layout.cols);
        self.shape(layout, rows);
        let (me, threads) = (self.raw(), cores.threads());
        let fill = |first: usize, last: usize| {
            dispatch(isa, Fill { to: me, x: x.as_ptr(), stride, rows: Rows::First(rows), first, last });
        };
        if rows < PANEL {
            return fill(0, rows);
        }
        let panels = rows.div_ceil(PANEL);
        cores.run(|t| {
            let part = partition(panels, threads, t);
            fill(part.start * PANEL, (part.end * PANEL).min(rows));
        });
    }

    /// As [`Operand::prepare`], by the calling thread alone and for gathered rows, inside a running kernel.
    ///
    /// # Safety
    /// Every listed row of `x` has `layout.cols` readable values.
    #[inline(always)]
    pub(crate) unsafe fn gather<S: Simd>(
        &mut self,
        s: S,
        layout: &MatrixLayout,
        x: *const f32,
        stride: usize,
        rows: Rows<'_>,
    ) {
        self.shape(layout, rows.len());
        let to = self.raw();
        Fill { to, x, stride, rows, first: 0, last: rows.len() }.run(s);
    }

    fn raw(&mut self) -> Raw {
        Raw {
            rows: self.rows,
            cols: self.cols,
            group: self.group,
            q: SharedMut::new(&mut self.q),
            scale: SharedMut::new(&mut self.scale),
            sum: SharedMut::new(&mut self.sum),
            float: SharedMut::new(&mut self.float),
        }
    }
}

#[derive(Clone, Copy)]
struct Raw {
    rows: usize,
    cols: usize,
    group: usize,
    q: SharedMut<i8>,
    scale: SharedMut<f32>,
    sum: SharedMut<f32>,
    float: SharedMut<f32>,
}

/// Fills rows `first..last` of an operand; `first` is a multiple of [`PANEL`] or the range is all rows.
struct Fill<'a> {
    to: Raw,
    x: *const f32,
    stride: usize,
    rows: Rows<'a>,
    first: usize,
    last: usize,
}

impl Kernel for Fill<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Raw { rows, cols, group, .. } = self.to;
        let mut row = self.first;
        while row < self.last {
            let width = panel_width(row, rows);
            for m in 0..width {
                // SAFETY: `Operand::shape` sized the buffers for `rows`; the caller vouches for the rows of x.
                unsafe {
                    let x = self.x.add(self.rows.at(row + m) * self.stride);
                    if group == 0 {
                        std::ptr::copy_nonoverlapping(x, self.to.float.get().add((row + m) * cols), cols);
                    } else {
                        let groups = cols / group;
                        let q = self.to.q.get().add(row * cols + 4 * m);
                        let scale = self.to.scale.get().add(row * groups + m);
                        let sum = self.to.sum.get().add(row * groups + m);
                        quantize_row(s, x, cols, group, width, q, scale, sum);
                    }
                }
            }
            row += width;
        }
    }
}

/// Quantizes one row into its place in a panel of `width` rows.
///
/// # Safety
/// `x` has `cols` values; `q`, `scale`, `sum` point at the row's first element of a panel of that width.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn quantize_row<S: Simd>(
    s: S,
    x: *const f32,
    cols: usize,
    group: usize,
    width: usize,
    q: *mut i8,
    scale: *mut f32,
    sum: *mut f32,
) {
    let mut codes = [0i8; 16];
    for g in 0..cols / group {
        // SAFETY: as the function's own contract; groups are multiples of 16 columns.
        unsafe {
            let x = x.add(g * group);
            let mut top = s.splat(0.0);
            for c in (0..group).step_by(16) {
                top = s.max(s.abs(s.load(x.add(c))), top);
            }
            let amax = s.reduce_max(top);
            // A group this small contributes nothing that f32 sums could see.
            let usable = amax >= 1e-30;
            let inverse = s.splat(if usable { 127.0 / amax } else { 0.0 });
            let mut total = s.splat(0.0);
            for c in (0..group).step_by(16) {
                let code = s.to_int(s.mul(s.load(x.add(c)), inverse));
                total = s.add(total, s.to_float(code));
                if width == 1 {
                    s.store_i8(q.add(g * group + c), code);
                } else {
                    s.store_i8(codes.as_mut_ptr(), code);
                    for (i, quad) in codes.chunks_exact(4).enumerate() {
                        let to = q.add((g * group + c + 4 * i) * width);
                        std::ptr::copy_nonoverlapping(quad.as_ptr(), to, 4);
                    }
                }
            }
            scale.add(g * width).write(if usable { amax / 127.0 } else { 0.0 });
            sum.add(g * width).write(s.reduce_add(total));
        }
    }
}
