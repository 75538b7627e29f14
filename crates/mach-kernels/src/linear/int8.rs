//! The int8 path over tiles.

use mach_quant::{Bits, Codec, FloatType};

use super::codes::{Affine, Codes, EitherScale, Mxfp4};
use super::{STRIP, Strips, row_block};
use crate::quantize::{PANEL, panel_width};
use crate::simd::Simd;

/// # Safety
/// See [`Strips`].
#[inline(always)]
pub(super) unsafe fn strips<S: Simd>(s: S, job: &Strips<'_>) {
    // SAFETY: forwarded.
    unsafe {
        match job.matrix.layout.codec {
            Codec::Affine { bits, scales, .. } => match (bits, scales) {
                (Bits::B4, FloatType::Bf16) => blocks::<S, Affine<4, true>>(s, job),
                (Bits::B4, FloatType::F32 | FloatType::F16) => blocks::<S, Affine<4, false>>(s, job),
                (Bits::B8, FloatType::Bf16) => blocks::<S, Affine<8, true>>(s, job),
                (Bits::B8, FloatType::F32 | FloatType::F16) => blocks::<S, Affine<8, false>>(s, job),
                (Bits::B2, _) => blocks::<S, EitherScale<2>>(s, job),
                (Bits::B3, _) => blocks::<S, EitherScale<3>>(s, job),
                (Bits::B5, _) => blocks::<S, EitherScale<5>>(s, job),
                (Bits::B6, _) => blocks::<S, EitherScale<6>>(s, job),
            },
            Codec::Mxfp4 => blocks::<S, Mxfp4>(s, job),
            _ => unreachable!("tiles are quantized"),
        }
    }
}

#[inline(always)]
unsafe fn blocks<S: Simd, C: Codes>(s: S, job: &Strips<'_>) {
    let (layout, x) = (&job.matrix.layout, job.operand);
    let (rows, cols, groups) = (x.rows, x.cols, layout.groups());
    // Sizes divide by the group, which would cost a decoded row more than its loop over few groups.
    let (strip_bytes, tile_bytes) = (layout.unit_bytes(), layout.tile_bytes());
    let block = row_block(cols, 8);
    let bf16 = matches!(layout.codec, Codec::Affine { scales: FloatType::Bf16, .. });
    let mut start = 0;
    while start < rows {
        let end = (start + block).min(rows);
        for strip in job.from..job.to {
            // SAFETY: strips lie inside the matrix, panels inside the operand, results inside `out`.
            unsafe {
                let tile = job.matrix.data.as_ptr().add(strip * strip_bytes);
                let width = STRIP.min(layout.rows - strip * STRIP);
                let out = job.out.add(strip * STRIP);
                let panels = (end - start).div_ceil(PANEL);
                let (mut row, mut turn) = (start, 0);
                while row < end {
                    let w = panel_width(row, rows);
                    let ahead = Ahead::new(tile, strip_bytes, turn, panels);
                    let panel = Panel {
                        q: x.q.as_ptr().add(row * cols),
                        scale: x.scale.as_ptr().add(row * groups),
                        sum: x.sum.as_ptr().add(row * groups),
                    };
                    let out = out.add(row * job.stride);
                    let shape = Shape { bf16, groups, group: x.group, tile_bytes, ahead };
                    match w {
                        8 => part::<S, C, 8, 4, 4>(s, tile, panel, shape, out, job.stride, width),
                        7 => part::<S, C, 7, 4, 3>(s, tile, panel, shape, out, job.stride, width),
                        6 => part::<S, C, 6, 3, 3>(s, tile, panel, shape, out, job.stride, width),
                        5 => part::<S, C, 5, 3, 2>(s, tile, panel, shape, out, job.stride, width),
                        4 => few::<S, C, 4, 2>(s, tile, panel, shape, out, job.stride, width),
                        3 => few::<S, C, 3, 2>(s, tile, panel, shape, out, job.stride, width),
                        2 => few::<S, C, 2, 2>(s, tile, panel, shape, out, job.stride, width),
                        _ => few::<S, C, 1, 4>(s, tile, panel, shape, out, job.stride, width),
                    }
                    row += w;
                    turn += 1;
                }
            }
        }
        start = end;
    }
}

#[derive(Clone, Copy)]
struct Panel {
    q: *const i8,
    scale: *const f32,
    sum: *const f32,
}

impl Panel {
    /// From row `m` on.
    #[inline(always)]
    fn at_row(self, m: usize) -> Panel {
        Panel {
            q: self.q.wrapping_add(4 * m),
            scale: self.scale.wrapping_add(m),
            sum: self.sum.wrapping_add(m),
        }
    }
}

#[derive(Clone, Copy)]
struct Shape {
    groups: usize,
    group: usize,
    tile_bytes: usize,
    /// Of scales.
    bf16: bool,
    ahead: Ahead,
}

/// What to ask for while a strip is multiplied with a panel. With one panel the strip itself, a little ahead: reading it takes
/// longer than multiplying. With several, the strip after it, each panel its part of it, so that memory is busy all the time and
/// not just while the first panel is at work.
#[derive(Clone, Copy)]
struct Ahead {
    from: *const u8,
    /// For each four lines that are read: 4, 2 or 1.
    lines: usize,
    near: bool,
}

impl Ahead {
    #[inline(always)]
    fn new(tile: *const u8, strip_bytes: usize, turn: usize, panels: usize) -> Self {
        if panels == 1 {
            return Ahead { from: tile.wrapping_add(PREFETCH), lines: 4, near: true };
        }
        let from = tile.wrapping_add(strip_bytes + strip_bytes * turn / panels);
        Ahead { from, lines: if panels < 4 { 2 } else { 1 }, near: false }
    }

    /// Called for each `lines` lines that are read, a constant.
    #[inline(always)]
    fn step<S: Simd>(&mut self, s: S, lines: usize) {
        if self.near {
            for l in 0..lines {
                s.prefetch(self.from.wrapping_add(64 * l));
            }
        } else {
            for l in 0..lines.div_ceil(4) {
                s.prefetch_far(self.from.wrapping_add(64 * l));
            }
            if self.lines > 1 {
                for l in lines.div_ceil(4)..lines.div_ceil(2) {
                    s.prefetch_far(self.from.wrapping_add(64 * l));
                }
            }
        }
        self.from = self.from.wrapping_add(16 * lines * self.lines);
    }
}

/// A panel of `P` rows, in two parts (`P = FIRST + REST`) if the registers do not hold it.
#[inline(always)]
unsafe fn part<S: Simd, C: Codes, const P: usize, const FIRST: usize, const REST: usize>(
    s: S,
    tile: *const u8,
    panel: Panel,
    shape: Shape,
    out: *mut f32,
    stride: usize,
    width: usize,
) {
    // SAFETY: as the caller's; both parts are inside the panel.
    unsafe {
        if S::PANEL_ROWS >= P {
            put(s, strip8::<S, C, P, P, 1>(s, tile, panel, shape), out, stride, width);
        } else {
            put(s, strip8::<S, C, P, FIRST, 1>(s, tile, panel, shape), out, stride, width);
            let (panel, out) = (panel.at_row(FIRST), out.add(FIRST * stride));
            put(s, strip8::<S, C, P, REST, 1>(s, tile, panel, shape), out, stride, width);
        }
    }
}

/// A panel of few rows, with `A` sums for each where a sum is one register.
#[inline(always)]
unsafe fn few<S: Simd, C: Codes, const P: usize, const A: usize>(
    s: S,
    tile: *const u8,
    panel: Panel,
    shape: Shape,
    out: *mut f32,
    stride: usize,
    width: usize,
) {
    // SAFETY: as the caller's.
    unsafe {
        if S::PANEL_ROWS >= 8 {
            put(s, strip8::<S, C, P, P, A>(s, tile, panel, shape), out, stride, width);
        } else {
            put(s, strip8::<S, C, P, P, 1>(s, tile, panel, shape), out, stride, width);
        }
    }
}

/// Stores `W` results of `width` (up to 16) columns.
#[inline(always)]
unsafe fn put<S: Simd, const W: usize>(s: S, y: [S::F; W], out: *mut f32, stride: usize, width: usize) {
    for m in 0..W {
        // SAFETY: `out` has `width` columns at each of `W` rows.
        unsafe {
            if width == STRIP {
                s.store(out.add(m * stride), y[m]);
            } else {
                let mut all = [0.0f32; STRIP];
                s.store(all.as_mut_ptr(), y[m]);
                std::ptr::copy_nonoverlapping(all.as_ptr(), out.add(m * stride), width);
            }
        }
    }
}

/// One strip of 16 weight rows times `W` rows of a panel of `P`. `A` independent integer sums hide the latency of the dot
/// products when `W` is small; integer sums have no order.
#[inline(always)]
unsafe fn strip8<S: Simd, C: Codes, const P: usize, const W: usize, const A: usize>(
    s: S,
    mut tile: *const u8,
    panel: Panel,
    shape: Shape,
) -> [S::F; W] {
    let mut y = [s.splat(0.0); W];
    let mut q = panel.q;
    let (mut scale, mut sum) = (panel.scale, panel.sum);
    let mut ahead = shape.ahead;
    let steps = shape.group / (4 * C::QUADS);
    for _ in 0..shape.groups {
        let mut d = [[s.splat_int(0); W]; A];
        let mut lines = tile;
        for _ in 0..steps {
            ahead.step(s, C::LINES);
            // SAFETY: the tile has `LINES * steps` lines, the panel `QUADS` quads of columns for each step.
            unsafe {
                dots::<S, C, P, W, A, 0>(s, lines, q, &mut d);
                dots::<S, C, P, W, A, 1>(s, lines, q, &mut d);
                dots::<S, C, P, W, A, 2>(s, lines, q, &mut d);
                dots::<S, C, P, W, A, 3>(s, lines, q, &mut d);
                if C::QUADS > 4 {
                    dots::<S, C, P, W, A, 4>(s, lines, q, &mut d);
                    dots::<S, C, P, W, A, 5>(s, lines, q, &mut d);
                    dots::<S, C, P, W, A, 6>(s, lines, q, &mut d);
                    dots::<S, C, P, W, A, 7>(s, lines, q, &mut d);
                }
                // Stays inside, or one past the end.
                lines = lines.add(64 * C::LINES);
            }
            // A part of a panel ends beyond the operand's last byte.
            q = q.wrapping_add(4 * C::QUADS * P);
        }
        // SAFETY: scales (and biases) follow the lines; the panel has W scales and sums a group.
        unsafe {
            let scales = C::scales(s, lines, shape.bf16);
            for m in 0..W {
                let mut total = d[0][m];
                for a in 1..A {
                    total = s.add_int(total, d[a][m]);
                }
                let (sx, sq) = (scale.add(m).read(), sum.add(m).read());
                y[m] = C::add_group(s, scales, s.to_float(total), sx, sq, y[m]);
            }
            tile = tile.add(shape.tile_bytes);
        }
        (scale, sum) = (scale.wrapping_add(P), sum.wrapping_add(P));
    }
    y
}

/// Quad `K` of the lines times that of `W` rows, added to the sums whose turn it is.
#[inline(always)]
unsafe fn dots<S: Simd, C: Codes, const P: usize, const W: usize, const A: usize, const K: usize>(
    s: S,
    lines: *const u8,
    q: *const i8,
    d: &mut [[S::I; W]; A],
) {
    // SAFETY: as the caller's.
    unsafe {
        let codes = C::quad::<S>(s, lines, K);
        for m in 0..W {
            d[K % A][m] = C::dot(s, d[K % A][m], codes, quad(q, K * P + m));
        }
    }
}

/// How far ahead weights are asked for: past the 4 KiB page at which hardware prefetchers stop.
const PREFETCH: usize = 4096;

#[inline(always)]
unsafe fn quad(q: *const i8, i: usize) -> i32 {
    // SAFETY: the caller stays inside the panel.
    unsafe { q.add(4 * i).cast::<i32>().read_unaligned() }
}
