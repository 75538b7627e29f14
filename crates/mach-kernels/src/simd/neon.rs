//! NEON: four registers are the whole vector; with the dot-product extension or without.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Simd, packed_codes, place_of_code};

/// Proof that the machine has NEON, and with `DOT` its dot-product extension.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Neon<const DOT: bool>(());

impl<const DOT: bool> Neon<DOT> {
    /// # Safety
    /// The machine has neon, with `DOT` also dotprod, and the caller runs with these target features enabled.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Neon(())
    }
}

/// All four quarters through one function.
#[inline(always)]
fn each<A: Copy, R>(x: [A; 4], f: impl Fn(A) -> R) -> [R; 4] {
    [f(x[0]), f(x[1]), f(x[2]), f(x[3])]
}

/// All four quarters of two vectors through one function.
#[inline(always)]
fn both<A: Copy, B: Copy, R>(x: [A; 4], y: [B; 4], f: impl Fn(A, B) -> R) -> [R; 4] {
    [f(x[0], y[0]), f(x[1], y[1]), f(x[2], y[2]), f(x[3], y[3])]
}

/// `acc + w . a` per 32-bit lane, four signed bytes each.
#[inline(always)]
fn dot_quarter<const DOT: bool>(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    if DOT {
        let mut acc = acc;
        // The intrinsic is not stable yet; the instruction is.
        // SAFETY: registers only; callers hold a `Neon<true>`, so the machine has the instruction.
        unsafe {
            asm!(
                "sdot {acc:v}.4s, {w:v}.16b, {a:v}.16b",
                acc = inout(vreg) acc, w = in(vreg) w, a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        acc
    } else {
        // SAFETY: callers hold a `Neon`, so the machine has the instructions.
        unsafe {
            // Pairs are added in 32 bits: -128 * -128 twice does not fit 16.
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)));
            let high = vpaddlq_s16(vmull_high_s8(w, a));
            vaddq_s32(acc, vpaddq_s32(low, high))
        }
    }
}

/// For [`Simd::load_codes`]: the bytes that go to each lane of 32 bits (255 for a zero), and how far they are shifted, to
/// the left if positive.
const fn lanes<const BITS: usize>() -> ([u8; 64], [i32; 16]) {
    let (mut bytes, mut shifts) = ([255; 64], [0; 16]);
    let mut i = 0;
    while i < 16 {
        let (byte, bit) = place_of_code::<BITS>(i);
        bytes[4 * i] = byte as u8;
        bytes[4 * i + 1] = byte as u8 + 1;
        shifts[i] = -(bit as i32);
        i += 1;
    }
    (bytes, shifts)
}

// Every method below only runs with a `Neon` value, which proves the target features; that is the soundness reason of
// each block. Pointer methods forward their caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const DOT: bool> Simd for Neon<DOT> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];
    const PANEL_ROWS: usize = 4;

    #[inline(always)]
    fn call<K: crate::Kernel>(self, kernel: K) {
        unsafe { if DOT { crate::isa::neon_dot(kernel) } else { crate::isa::neon(kernel) } };
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [unsafe { vdupq_n_f32(x) }; 4]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            unsafe { vst1q_f32(p.add(4 * i), x) };
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F {
        let quarter = |at: usize| unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(at)))) };
        [quarter(0), quarter(4), quarter(8), quarter(12)]
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            unsafe {
                let bits = vreinterpretq_u32_f32(x);
                let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
                let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
                let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
                let chosen = vbslq_u32(vceqq_f32(x, x), rounded, quiet);
                vst1_u16(p.add(4 * i), vshrn_n_u32::<16>(chosen));
            }
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // Not `fmin`, which orders zeros by sign and passes NaN on.
        both(a, b, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both(a, b, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    fn zero_below(self, x: Self::F, limit: f32, v: Self::F) -> Self::F {
        both(x, v, |x, v| unsafe {
            let keep = vcgeq_f32(x, vdupq_n_f32(limit));
            vreinterpretq_f32_u32(vandq_u32(keep, vreinterpretq_u32_f32(v)))
        })
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        each(x, |x| unsafe { vabsq_f32(x) })
    }
    #[inline(always)]
    fn reduce_add(self, x: Self::F) -> f32 {
        unsafe {
            let b = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            let c = vadd_f32(vget_low_f32(b), vget_high_f32(b));
            vget_lane_f32::<0>(c) + vget_lane_f32::<1>(c)
        }
    }
    #[inline(always)]
    fn reduce_max(self, x: Self::F) -> f32 {
        let [a, b, c, d] = x;
        unsafe { vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d))) }
    }
    #[inline(always)]
    fn reduce_add_16(self, x: [Self::F; 16]) -> Self::F {
        let four = |first: usize| unsafe {
            // Distances 8 and 4.
            let b: [float32x4_t; 4] = std::array::from_fn(|i| {
                let x = x[first + i];
                vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]))
            });
            // Distance 2: pairs of x_i and x_{i+1}.
            let c: [float32x4_t; 2] = std::array::from_fn(|i| {
                let (p, q) = (vreinterpretq_f64_f32(b[2 * i]), vreinterpretq_f64_f32(b[2 * i + 1]));
                vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(p, q)), vreinterpretq_f32_f64(vzip2q_f64(p, q)))
            });
            // Distance 1.
            vpaddq_f32(c[0], c[1])
        };
        [four(0), four(4), four(8), four(12)]
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        [unsafe { vdupq_n_s32(x) }; 4]
    }
    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        both(a, b, |a, b| unsafe { vaddq_s32(a, b) })
    }
    #[inline(always)]
    fn to_int(self, x: Self::F) -> Self::I {
        each(x, |x| unsafe { vcvtnq_s32_f32(x) })
    }
    #[inline(always)]
    fn to_float(self, x: Self::I) -> Self::F {
        each(x, |x| unsafe { vcvtq_f32_s32(x) })
    }
    #[inline(always)]
    fn exp2_int(self, n: Self::I) -> Self::F {
        each(n, |n| unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(n, vdupq_n_s32(127)))) })
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: Self::I) {
        unsafe {
            let low = vcombine_s16(vmovn_s32(x[0]), vmovn_s32(x[1]));
            let high = vcombine_s16(vmovn_s32(x[2]), vmovn_s32(x[3]));
            vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Self::B {
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))] }
    }
    #[inline(always)]
    fn low_nibbles(self, b: Self::B) -> Self::B {
        each(b, |b| unsafe { vandq_u8(b, vdupq_n_u8(15)) })
    }
    #[inline(always)]
    fn high_nibbles(self, b: Self::B) -> Self::B {
        each(b, |b| unsafe { vshrq_n_u8::<4>(b) })
    }
    #[inline(always)]
    fn take_bits(self, b: Self::B, from: usize, width: usize, to: usize) -> Self::B {
        each(b, |b| unsafe {
            let moved = vshlq_u8(b, vdupq_n_s8(to as i8 - from as i8));
            vandq_u8(moved, vdupq_n_u8((((1u32 << width) - 1) << to) as u8))
        })
    }
    #[inline(always)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        both(a, b, |a, b| unsafe { vorrq_u8(a, b) })
    }
    #[inline(always)]
    fn lookup_bytes(self, table: &[u8; 16], b: Self::B) -> Self::B {
        let table = unsafe { vld1q_u8(table.as_ptr()) };
        each(b, |b| unsafe { vqtbl1q_u8(table, b) })
    }
    #[inline(always)]
    fn dot_small(self, acc: Self::I, w: Self::B, a: i32) -> Self::I {
        let a = unsafe { vreinterpretq_s8_s32(vdupq_n_s32(a)) };
        both(acc, w, |acc, w| dot_quarter::<DOT>(acc, unsafe { vreinterpretq_s8_u8(w) }, a))
    }
    #[inline(always)]
    fn dot(self, acc: Self::I, w: Self::B, a: i32) -> Self::I {
        // Signed bytes only: `w . a = (w - 128) . a + 128 sum(a)`, and flipping the top bit subtracts 128.
        let sum: i32 = a.to_le_bytes().into_iter().map(|b| i32::from(b as i8)).sum();
        let (a, rest) = unsafe { (vreinterpretq_s8_s32(vdupq_n_s32(a)), vdupq_n_s32(128 * sum)) };
        both(acc, w, |acc, w| {
            let (acc, w) =
                unsafe { (vaddq_s32(acc, rest), vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(0x80)))) };
            dot_quarter::<DOT>(acc, w, a)
        })
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, p: *const u8) -> Self::I {
        unsafe {
            let bytes = vld1_u8(p);
            // Low nibble first: interleave the low with the high ones.
            let both = vcombine_u8(
                vzip1_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8::<4>(bytes)),
                vzip2_u8(vand_u8(bytes, vdup_n_u8(15)), vshr_n_u8::<4>(bytes)),
            );
            widen(both)
        }
    }
    #[inline(always)]
    unsafe fn load_codes<const BITS: usize>(self, p: *const u8) -> Self::I {
        // The two bytes that a code lies in go to its lane, where it moves to the lowest bit.
        let places = const { lanes::<BITS>() };
        unsafe {
            let words = packed_codes::<BITS>(p);
            let bytes = vld1q_u8(words.as_ptr().cast());
            let quarter = |h: usize| {
                let pairs = vqtbl1q_u8(bytes, vld1q_u8(places.0.as_ptr().add(16 * h)));
                let shift = vld1q_s32(places.1.as_ptr().add(4 * h));
                let codes = vshlq_u32(vreinterpretq_u32_u8(pairs), shift);
                vreinterpretq_s32_u32(vandq_u32(codes, vdupq_n_u32((1 << BITS) - 1)))
            };
            [quarter(0), quarter(1), quarter(2), quarter(3)]
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> Self::I {
        unsafe { widen(vld1q_u8(p)) }
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; 16], i: Self::I) -> Self::F {
        unsafe {
            let table = table.as_ptr().cast::<u8>();
            let table = uint8x16x4_t(
                vld1q_u8(table),
                vld1q_u8(table.add(16)),
                vld1q_u8(table.add(32)),
                vld1q_u8(table.add(48)),
            );
            each(i, |i| {
                // The four bytes of element i: 4 i, 4 i + 1, 4 i + 2, 4 i + 3.
                let first = vmulq_n_u32(vreinterpretq_u32_s32(i), 0x0404_0404);
                let bytes = vaddq_u32(first, vdupq_n_u32(0x0302_0100));
                vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_u32(bytes)))
            })
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a prefetch is a hint; it does not fault at any address.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) };
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        // SAFETY: a prefetch is a hint; it does not fault at any address.
        unsafe { asm!("prfm pldl2keep, [{p}]", p = in(reg) p, options(nostack, preserves_flags, readonly)) };
    }
}

/// 16 bytes as integers.
#[inline(always)]
unsafe fn widen(bytes: uint8x16_t) -> [int32x4_t; 4] {
    // SAFETY: callers hold a `Neon`, so the machine has the instructions.
    unsafe {
        let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
        [
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
            vreinterpretq_s32_u32(vmovl_high_u16(low)),
            vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
            vreinterpretq_s32_u32(vmovl_high_u16(high)),
        ]
    }
}
