//! The codes of a tile as the int8 path takes them out of its lines.

use mach_quant::{Bits, TILE_ROWS};

use crate::simd::Simd;

/// An encoding of tiles. Lines are read `LINES` at a time, which hold `QUADS` quads of four columns of 16 rows.
pub(super) trait Codes {
    /// Lines of a step.
    const LINES: usize;
    /// Quads of a step.
    const QUADS: usize;

    /// Quad `k`, a constant where it is called, of the lines at `lines`.
    ///
    /// # Safety
    /// `64 * LINES` bytes are readable.
    unsafe fn quad<S: Simd>(s: S, lines: *const u8, k: usize) -> S::B;

    /// Adds the dot products with four activations.
    fn dot<S: Simd>(s: S, acc: S::I, codes: S::B, activations: i32) -> S::I;

    /// Scales and biases, which follow a tile's lines; whether they are bfloat16 counts where the type does not tell.
    ///
    /// # Safety
    /// `tail` points at them.
    unsafe fn scales<S: Simd>(s: S, tail: *const u8, bf16: bool) -> (S::F, S::F);

    /// Adds a group to `y`: `total` are the sums of products of its codes, `sx` is the scale of the activations and `sq`
    /// the sum of theirs.
    fn add_group<S: Simd>(s: S, scales: (S::F, S::F), total: S::F, sx: f32, sq: f32, y: S::F) -> S::F;
}

/// Affine codes of `BITS` bits, scales and biases in bfloat16 or single precision.
pub(super) struct Affine<const BITS: usize, const BF16: bool>;

impl<const BITS: usize, const BF16: bool> Codes for Affine<BITS, BF16> {
    // A chunk of 32 columns; of 8-bit codes half of one, which has as many lines as one of 4-bit codes.
    const LINES: usize = if BITS == 8 { 4 } else { BITS };
    const QUADS: usize = if BITS == 8 { 4 } else { 8 };

    #[inline(always)]
    unsafe fn quad<S: Simd>(s: S, lines: *const u8, k: usize) -> S::B {
        let [low, high] = const {
            match Bits::of(BITS) {
                Some(bits) => bits.planes(),
                None => panic!("no such width"),
            }
        };
        // SAFETY: forwarded; planes lie one after the other, as many lines each as it has bits.
        unsafe {
            let codes = of_plane(s, lines, low, k);
            if high.0 == 0 {
                return codes;
            }
            s.or_bytes(codes, of_plane(s, lines.add(64 * low.0), high, k))
        }
    }

    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I, codes: S::B, activations: i32) -> S::I {
        if BITS == 8 { s.dot(acc, codes, activations) } else { s.dot_small(acc, codes, activations) }
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, tail: *const u8, _: bool) -> (S::F, S::F) {
        // SAFETY: forwarded.
        unsafe {
            if BF16 {
                (s.load_bf16(tail.cast()), s.load_bf16(tail.cast::<u16>().add(TILE_ROWS)))
            } else {
                (s.load(tail.cast()), s.load(tail.cast::<f32>().add(TILE_ROWS)))
            }
        }
    }

    #[inline(always)]
    fn add_group<S: Simd>(s: S, (scale, bias): (S::F, S::F), total: S::F, sx: f32, sq: f32, y: S::F) -> S::F {
        s.fma(s.fma(scale, total, s.mul(bias, s.splat(sq))), s.splat(sx), y)
    }
}

/// Affine codes whose scales are of either type: one more test a group, half the code to compile.
pub(super) struct EitherScale<const BITS: usize>;

impl<const BITS: usize> Codes for EitherScale<BITS> {
    const LINES: usize = Affine::<BITS, true>::LINES;
    const QUADS: usize = Affine::<BITS, true>::QUADS;

    #[inline(always)]
    unsafe fn quad<S: Simd>(s: S, lines: *const u8, k: usize) -> S::B {
        // SAFETY: forwarded.
        unsafe { Affine::<BITS, true>::quad(s, lines, k) }
    }

    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I, codes: S::B, activations: i32) -> S::I {
        Affine::<BITS, true>::dot(s, acc, codes, activations)
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, tail: *const u8, bf16: bool) -> (S::F, S::F) {
        // SAFETY: forwarded.
        unsafe {
            if bf16 {
                Affine::<BITS, true>::scales(s, tail, bf16)
            } else {
                Affine::<BITS, false>::scales(s, tail, bf16)
            }
        }
    }

    #[inline(always)]
    fn add_group<S: Simd>(s: S, scales: (S::F, S::F), total: S::F, sx: f32, sq: f32, y: S::F) -> S::F {
        Affine::<BITS, true>::add_group(s, scales, total, sx, sq, y)
    }
}

/// The part of quad `k` that a plane of some width holds, moved to where its first bit belongs.
#[inline(always)]
unsafe fn of_plane<S: Simd>(s: S, lines: *const u8, (width, first): (usize, usize), k: usize) -> S::B {
    let stacked = 8 / width;
    // SAFETY: forwarded.
    let line = unsafe { s.load_bytes(lines.add(64 * (k / stacked))) };
    s.take_bits(line, width * (k % stacked), width, first)
}

/// e2m1 codes with e8m0 scales.
pub(super) struct Mxfp4;

/// Twice the e2m1 values, plus 12, so that they are unsigned.
const E2M1_TWICE_PLUS_12: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

impl Codes for Mxfp4 {
    const LINES: usize = 4;
    const QUADS: usize = 8;

    #[inline(always)]
    unsafe fn quad<S: Simd>(s: S, lines: *const u8, k: usize) -> S::B {
        // SAFETY: forwarded.
        s.lookup_bytes(&E2M1_TWICE_PLUS_12, unsafe { of_plane(s, lines, (4, 0), k) })
    }

    #[inline(always)]
    fn dot<S: Simd>(s: S, acc: S::I, codes: S::B, activations: i32) -> S::I {
        s.dot_small(acc, codes, activations)
    }

    #[inline(always)]
    unsafe fn scales<S: Simd>(s: S, tail: *const u8, _: bool) -> (S::F, S::F) {
        // SAFETY: forwarded.
        let exponents = s.add_int(unsafe { s.load_u8(tail) }, s.splat_int(-127));
        (s.exp2_int(exponents), s.splat(0.0))
    }

    #[inline(always)]
    fn add_group<S: Simd>(s: S, (scale, _): (S::F, S::F), total: S::F, sx: f32, sq: f32, y: S::F) -> S::F {
        // Exact: both are integers below 2^24.
        let centred = s.sub(total, s.splat(12.0 * sq));
        s.fma(s.mul(scale, centred), s.splat(0.5 * sx), y)
    }
}
