//! The int8 path over tiles.

use mach_quant::{Codec, FloatType, TILE_ROWS};

use super::{STRIP, Strips, row_block};
use crate::quantize::{PANEL, panel_width};
use crate::simd::Simd;

const AFFINE4: u8 = 0;
const AFFINE8: u8 = 1;
const MXFP4: u8 = 2;

/// Twice the e2m1 values, plus 12, so that they are unsigned.
const E2M1_TWICE_PLUS_12: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// # Safety
/// See [`Strips`].
#[inline(always)]
pub(super) unsafe fn strips<S: Simd>(s: S, job: &Strips<'_>) {
    // SAFETY: forwarded.
    unsafe {
        match job.matrix.layout.codec {
            Codec::Affine { bits: 4, scales: FloatType::Bf16, .. } => blocks::<S, AFFINE4, true>(s, job),
            Codec::Affine { bits: 4, .. } => blocks::<S, AFFINE4, false>(s, job),
            Codec::Affine { scales: FloatType::Bf16, .. } => blocks::<S, AFFINE8, true>(s, job),
            Codec::Affine { .. } => blocks::<S, AFFINE8, false>(s, job),
            Codec::Mxfp4 => blocks::<S, MXFP4, false>(s, job),
            Codec::Dense(_) => unreachable!("tiles are quantized"),
        }
    }
}

#[inline(always)]
unsafe fn blocks<S: Simd, const CODEC: u8, const BF16: bool>(s: S, job: &Strips<'_>) {
    let (layout, x) = (&job.matrix.layout, job.operand);
    let (rows, cols, groups) = (x.rows, x.cols, layout.groups());
    let block = row_block(cols, 8);
    let mut start = 0;
    while start < rows {
        let end = (start + block).min(rows);
        for strip in job.from..job.to {
            // SAFETY: strips lie inside the matrix, panels inside the operand, results inside `out`.
            unsafe {
                let tile = job.matrix.data.as_ptr().add(strip * layout.unit_bytes());
                let width = STRIP.min(layout.rows - strip * STRIP);
                let out = job.out.add(strip * STRIP);
                let panels = (end - start).div_ceil(PANEL);
                let (mut row, mut turn) = (start, 0);
                while row < end {
                    let w = panel_width(row, rows);
                    let ahead = Ahead::new(tile, layout.unit_bytes(), turn, panels);
                    let panel = Panel {
                        q: x.q.as_ptr().add(row * cols),
                        scale: x.scale.as_ptr().add(row * groups),
                        sum: x.sum.as_ptr().add(row * groups),
                    };
                    let out = out.add(row * job.stride);
                    let shape = Shape { groups, group: x.group, tile_bytes: layout.tile_bytes(), ahead };
                    match w {
                        8 => part::<S, 8, 4, 4, CODEC, BF16>(s, tile, panel, shape, out, job.stride, width),
                        7 => part::<S, 7, 4, 3, CODEC, BF16>(s, tile, panel, shape, out, job.stride, width),
                        6 => part::<S, 6, 3, 3, CODEC, BF16>(s, tile, panel, shape, out, job.stride, width),
                        5 => part::<S, 5, 3, 2, CODEC, BF16>(s, tile, panel, shape, out, job.stride, width),
                        4 => few::<S, 4, 2, CODEC, BF16>(s, tile, panel, shape, out, job.stride, width),
                        3 => few::<S, 3, 2, CODEC, BF16>(s, tile, panel, shape, out, job.stride, width),
                        2 => few::<S, 2, 2, CODEC, BF16>(s, tile, panel, shape, out, job.stride, width),
                        _ => few::<S, 1, 4, CODEC, BF16>(s, tile, panel, shape, out, job.stride, width),
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

    /// Called for each four lines.
    #[inline(always)]
    fn step<S: Simd>(&mut self, s: S) {
        if self.near {
            for l in 0..4 {
                s.prefetch(self.from.wrapping_add(64 * l));
            }
        } else {
            s.prefetch_far(self.from);
            if self.lines > 1 {
                s.prefetch_far(self.from.wrapping_add(64));
            }
        }
        self.from = self.from.wrapping_add(64 * self.lines);
    }
}

/// A panel of `P` rows, in two parts (`P = FIRST + REST`) if the registers do not hold it.
#[inline(always)]
unsafe fn part<
    S: Simd,
    const P: usize,
    const FIRST: usize,
    const REST: usize,
    const CODEC: u8,
    const BF16: bool,
>(
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
            put(s, strip8::<S, P, P, 1, CODEC, BF16>(s, tile, panel, shape), out, stride, width);
        } else {
            put(s, strip8::<S, P, FIRST, 1, CODEC, BF16>(s, tile, panel, shape), out, stride, width);
            let (panel, out) = (panel.at_row(FIRST), out.add(FIRST * stride));
            put(s, strip8::<S, P, REST, 1, CODEC, BF16>(s, tile, panel, shape), out, stride, width);
        }
    }
}

/// A panel of few rows, with `A` sums for each where a sum is one register.
#[inline(always)]
unsafe fn few<S: Simd, const P: usize, const A: usize, const CODEC: u8, const BF16: bool>(
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
            put(s, strip8::<S, P, P, A, CODEC, BF16>(s, tile, panel, shape), out, stride, width);
        } else {
            put(s, strip8::<S, P, P, 1, CODEC, BF16>(s, tile, panel, shape), out, stride, width);
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
unsafe fn strip8<
    S: Simd,
    const P: usize,
    const W: usize,
    const A: usize,
    const CODEC: u8,
    const BF16: bool,
>(
    s: S,
    mut tile: *const u8,
    panel: Panel,
    shape: Shape,
) -> [S::F; W] {
    let mut y = [s.splat(0.0); W];
    let mut q = panel.q;
    let (mut scale, mut sum) = (panel.scale, panel.sum);
    let mut ahead = shape.ahead;
    // Four lines at a time: 32 columns of 4-bit codes, 16 of 8-bit codes.
    let steps = shape.group / if CODEC == AFFINE8 { 16 } else { 32 };
    for _ in 0..shape.groups {
        let mut d = [[s.splat_int(0); W]; A];
        let mut lines = tile;
        for _ in 0..steps {
            ahead.step(s);
            for l in 0..4 {
                // SAFETY: the tile has `4 * steps` lines, the panel a quad of columns for each.
                unsafe {
                    let line = s.load_bytes(lines.add(64 * l));
                    if CODEC == AFFINE8 {
                        for m in 0..W {
                            d[l % A][m] = s.dot(d[l % A][m], line, quad(q, l * P + m));
                        }
                    } else {
                        let (mut low, mut high) = (s.low_nibbles(line), s.high_nibbles(line));
                        if CODEC == MXFP4 {
                            low = s.lookup_bytes(&E2M1_TWICE_PLUS_12, low);
                            high = s.lookup_bytes(&E2M1_TWICE_PLUS_12, high);
                        }
                        for m in 0..W {
                            let a = 2 * l % A;
                            d[a][m] = s.dot_small(d[a][m], low, quad(q, 2 * l * P + m));
                        }
                        for m in 0..W {
                            let a = (2 * l + 1) % A;
                            d[a][m] = s.dot_small(d[a][m], high, quad(q, (2 * l + 1) * P + m));
                        }
                    }
                }
            }
            // SAFETY: stays inside, or one past the end.
            unsafe {
                lines = lines.add(256);
            }
            // A part of a panel ends beyond the operand's last byte.
            q = q.wrapping_add(if CODEC == AFFINE8 { 16 } else { 32 } * P);
        }
        // SAFETY: scales (and biases) follow the lines; the panel has W scales and sums a group.
        unsafe {
            let (ws, wb) = if CODEC == MXFP4 {
                let e = s.add_int(s.load_u8(lines), s.splat_int(-127));
                (s.exp2_int(e), s.splat(0.0))
            } else if BF16 {
                (s.load_bf16(lines.cast()), s.load_bf16(lines.cast::<u16>().add(TILE_ROWS)))
            } else {
                (s.load(lines.cast()), s.load(lines.cast::<f32>().add(TILE_ROWS)))
            };
            for m in 0..W {
                let mut total = d[0][m];
                for a in 1..A {
                    total = s.add_int(total, d[a][m]);
                }
                let (sx, sq) = (scale.add(m).read(), sum.add(m).read());
                let total = s.to_float(total);
                y[m] = if CODEC == MXFP4 {
                    // Exact: both are integers below 2^24.
                    let centred = s.sub(total, s.splat(12.0 * sq));
                    s.fma(s.mul(ws, centred), s.splat(0.5 * sx), y[m])
                } else {
                    s.fma(s.fma(ws, total, s.mul(wb, s.splat(sq))), s.splat(sx), y[m])
                };
            }
            tile = tile.add(shape.tile_bytes);
        }
        (scale, sum) = (scale.wrapping_add(P), sum.wrapping_add(P));
    }
    y
}

/// How far ahead weights are asked for: past the 4 KiB page at which hardware prefetchers stop.
const PREFETCH: usize = 4096;

#[inline(always)]
unsafe fn quad(q: *const i8, i: usize) -> i32 {
    // SAFETY: the caller stays inside the panel.
    unsafe { q.add(4 * i).cast::<i32>().read_unaligned() }
}
