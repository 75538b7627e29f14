//! The float path over rows.

use mach_quant::decode::{E2M1, e8m0};
use mach_quant::{Bits, Codec, FloatType, MatrixLayout};

use super::{STRIP, Strips, row_block};
use crate::simd::Simd;

const F32: u8 = 0;
const BF16: u8 = 1;
const AFFINE2: u8 = 2;
const AFFINE3: u8 = 3;
const AFFINE4: u8 = 4;
const AFFINE5: u8 = 5;
const AFFINE6: u8 = 6;
const AFFINE8: u8 = 8;
const MXFP4: u8 = 9;

/// # Safety
/// See [`Strips`].
#[inline(always)]
pub(super) unsafe fn strips<S: Simd>(s: S, job: &Strips<'_>) {
    // SAFETY: forwarded.
    unsafe {
        match job.matrix.layout.codec {
            Codec::Dense(FloatType::Bf16) => blocks::<S, BF16>(s, job),
            Codec::Dense(FloatType::F32 | FloatType::F16) => blocks::<S, F32>(s, job),
            Codec::Affine { bits, .. } => match bits {
                Bits::B2 => blocks::<S, AFFINE2>(s, job),
                Bits::B3 => blocks::<S, AFFINE3>(s, job),
                Bits::B4 => blocks::<S, AFFINE4>(s, job),
                Bits::B5 => blocks::<S, AFFINE5>(s, job),
                Bits::B6 => blocks::<S, AFFINE6>(s, job),
                Bits::B8 => blocks::<S, AFFINE8>(s, job),
            },
            Codec::Mxfp4 => blocks::<S, MXFP4>(s, job),
            Codec::Fp8 { .. } | Codec::Mxfp8 | Codec::Nvfp4 => {
                unreachable!("a layout holds no source's codes")
            }
        }
    }
}

/// Operand rows from which weight rows are widened once into a buffer instead of at each use.
const WIDEN_ROWS: usize = 16;

#[inline(always)]
unsafe fn blocks<S: Simd, const CODEC: u8>(s: S, job: &Strips<'_>) {
    let layout = &job.matrix.layout;
    let (rows, cols) = (job.operand.rows, job.operand.cols);
    let unit = layout.unit_bytes();
    let block = row_block(4 * cols, 4);
    let last = (job.to * STRIP).min(layout.rows);
    let widen = rows >= WIDEN_ROWS && CODEC != F32;
    let mut wide = vec![0.0f32; if widen { 4 * cols } else { 0 }];
    let mut start = 0;
    while start < rows {
        let end = (start + block).min(rows);
        let mut n = job.from * STRIP;
        while n < last {
            // Four weight rows at once, then the rest one by one; each result is the same either way.
            let step = if last - n >= 4 { 4 } else { 1 };
            // SAFETY: rows n..n+step exist.
            let data = unsafe { job.matrix.data.as_ptr().add(n * unit) };
            if widen {
                for i in 0..step {
                    // SAFETY: `wide` has four rows.
                    unsafe {
                        widen_row::<S, CODEC>(s, layout, data.add(i * unit), wide.as_mut_ptr().add(i * cols));
                    };
                }
            }
            let mut m = start;
            while m < end {
                let take = if end - m >= 4 { 4 } else { 1 };
                // SAFETY: rows n..n+step and m..m+take exist.
                unsafe {
                    if widen {
                        let data = wide.as_ptr().cast::<u8>();
                        match (step, take) {
                            (4, 4) => tile::<S, 4, 4, F32>(s, job, data, 4 * cols, n, m),
                            (4, _) => tile::<S, 4, 1, F32>(s, job, data, 4 * cols, n, m),
                            (_, 4) => tile::<S, 1, 4, F32>(s, job, data, 4 * cols, n, m),
                            _ => tile::<S, 1, 1, F32>(s, job, data, 4 * cols, n, m),
                        }
                    } else {
                        match (step, take) {
                            (4, 4) => tile::<S, 4, 4, CODEC>(s, job, data, unit, n, m),
                            (4, _) => tile::<S, 4, 1, CODEC>(s, job, data, unit, n, m),
                            (_, 4) => tile::<S, 1, 4, CODEC>(s, job, data, unit, n, m),
                            _ => tile::<S, 1, 1, CODEC>(s, job, data, unit, n, m),
                        }
                    }
                }
                m += take;
            }
            n += step;
        }
        start = end;
    }
}

/// Widens a row into `out`, the same values as `tile` computes.
#[inline(always)]
unsafe fn widen_row<S: Simd, const CODEC: u8>(s: S, layout: &MatrixLayout, row: *const u8, out: *mut f32) {
    let cols = layout.cols;
    let group = layout.codec.group().unwrap_or(cols);
    let whole = group / 16 * 16;
    // SAFETY: reads stay inside the row, writes inside `cols`.
    unsafe {
        for g in 0..(cols / group.max(1)) {
            let scale = group_scale::<S, CODEC>(s, layout, row, g);
            for c in (0..whole).step_by(16) {
                let at = g * group + c;
                s.store(out.add(at), widen::<S, CODEC>(s, row, at, scale));
            }
        }
        if whole < group {
            let bytes = std::slice::from_raw_parts(row, layout.unit_bytes());
            for k in whole..cols {
                out.add(k).write(FloatType::Bf16.read(bytes, k));
            }
        }
    }
}

/// `N` weight rows, `unit` bytes apart from `data` on, times `M` operand rows; results from row `m`, column `n` on.
#[inline(always)]
unsafe fn tile<S: Simd, const N: usize, const M: usize, const CODEC: u8>(
    s: S,
    job: &Strips<'_>,
    data: *const u8,
    unit: usize,
    n: usize,
    m: usize,
) {
    let (layout, cols) = (&job.matrix.layout, job.operand.cols);
    let group = if CODEC == F32 || CODEC == BF16 { cols } else { layout.codec.group().unwrap_or(cols) };
    let whole = group / 16 * 16;
    let mut acc = [[s.splat(0.0); M]; N];
    // SAFETY: all reads stay inside the rows that the layout and the operand describe.
    unsafe {
        let mut w = [data; N];
        for i in 0..N {
            w[i] = w[i].add(i * unit);
        }
        let mut x = [job.operand.float.as_ptr(); M];
        for j in 0..M {
            x[j] = x[j].add((m + j) * cols);
        }
        for g in 0..(cols / group.max(1)) {
            let mut scale = [(s.splat(0.0), s.splat(0.0)); N];
            for i in 0..N {
                scale[i] = group_scale::<S, CODEC>(s, layout, w[i], g);
            }
            for c in (0..whole).step_by(16) {
                let at = g * group + c;
                let mut v = [s.splat(0.0); N];
                for i in 0..N {
                    v[i] = widen::<S, CODEC>(s, w[i], at, scale[i]);
                }
                for j in 0..M {
                    let xv = s.load(x[j].add(at));
                    for i in 0..N {
                        acc[i][j] = s.fma(v[i], xv, acc[i][j]);
                    }
                }
            }
        }
        if whole < group {
            // Only dense rows may end between multiples of 16: the missing columns count as zeros.
            for i in 0..N {
                let mut wide = [0.0f32; 16];
                let float = if CODEC == BF16 { FloatType::Bf16 } else { FloatType::F32 };
                let bytes = std::slice::from_raw_parts(w[i], unit);
                for (k, o) in wide.iter_mut().enumerate().take(cols - whole) {
                    *o = float.read(bytes, whole + k);
                }
                let v = s.load(wide.as_ptr());
                for j in 0..M {
                    let mut tail = [0.0f32; 16];
                    std::ptr::copy_nonoverlapping(x[j].add(whole), tail.as_mut_ptr(), cols - whole);
                    acc[i][j] = s.fma(v, s.load(tail.as_ptr()), acc[i][j]);
                }
            }
        }
        if N == 4 && M == 4 {
            let mut flat = [s.splat(0.0); 16];
            for k in 0..16 {
                flat[k] = acc[k % 4 % N][k / 4 % M];
            }
            let mut sums = [0.0f32; 16];
            s.store(sums.as_mut_ptr(), s.reduce_add_16(flat));
            for j in 0..M {
                std::ptr::copy_nonoverlapping(
                    sums.as_ptr().add(4 * j),
                    job.out.add((m + j) * job.stride + n),
                    4,
                );
            }
        } else {
            for j in 0..M {
                for i in 0..N {
                    job.out.add((m + j) * job.stride + n + i).write(s.reduce_add(acc[i][j]));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn group_scale<S: Simd, const CODEC: u8>(
    s: S,
    layout: &MatrixLayout,
    row: *const u8,
    g: usize,
) -> (S::F, S::F) {
    let zero = s.splat(0.0);
    if CODEC == F32 || CODEC == BF16 {
        return (zero, zero);
    }
    match layout.codec {
        Codec::Dense(_) => (zero, zero),
        // SAFETY: scales follow the codes, biases the scales, one for each group.
        Codec::Affine { scales, .. } => unsafe {
            let at = row.add(layout.cols * layout.codec.bits() / 8);
            let groups = layout.groups();
            let (scale, bias) = if scales == FloatType::Bf16 {
                let at = at.cast::<u16>();
                let wide = [at.add(g).read_unaligned(), at.add(groups + g).read_unaligned()];
                (f32::from_bits(u32::from(wide[0]) << 16), f32::from_bits(u32::from(wide[1]) << 16))
            } else {
                let at = at.cast::<f32>();
                (at.add(g).read_unaligned(), at.add(groups + g).read_unaligned())
            };
            (s.splat(scale), s.splat(bias))
        },
        // SAFETY: as above, one byte a group.
        Codec::Mxfp4 => unsafe { (s.splat(e8m0(row.add(layout.cols / 2 + g).read())), zero) },
        Codec::Fp8 { .. } | Codec::Mxfp8 | Codec::Nvfp4 => (zero, zero),
    }
}

/// 16 weights from column `at` on.
#[inline(always)]
unsafe fn widen<S: Simd, const CODEC: u8>(s: S, row: *const u8, at: usize, scale: (S::F, S::F)) -> S::F {
    // SAFETY: the caller stays inside the row; 16 codes of any width are whole bytes.
    unsafe {
        match CODEC {
            F32 => s.load(row.cast::<f32>().add(at)),
            BF16 => s.load_bf16(row.cast::<u16>().add(at)),
            AFFINE2 => s.fma(s.to_float(s.load_codes::<2>(row.add(at / 8 * 2))), scale.0, scale.1),
            AFFINE3 => s.fma(s.to_float(s.load_codes::<3>(row.add(at / 8 * 3))), scale.0, scale.1),
            AFFINE4 => s.fma(s.to_float(s.load_nibbles(row.add(at / 2))), scale.0, scale.1),
            AFFINE5 => s.fma(s.to_float(s.load_codes::<5>(row.add(at / 8 * 5))), scale.0, scale.1),
            AFFINE6 => s.fma(s.to_float(s.load_codes::<6>(row.add(at / 8 * 6))), scale.0, scale.1),
            AFFINE8 => s.fma(s.to_float(s.load_u8(row.add(at))), scale.0, scale.1),
            MXFP4 => s.mul(s.lookup(&E2M1, s.load_nibbles(row.add(at / 2))), scale.0),
            _ => unreachable!("a codec of this list"),
        }
    }
}
