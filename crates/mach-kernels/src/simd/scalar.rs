//! The scalar twin: arrays and loops, the definition of what the vector implementations must return.
//!
//! Its operations are calls, not inlined: unrolled into the kernels they took most of the build's time and gained none.

use super::Simd;

/// Plain Rust.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scalar(());

impl Scalar {
    pub(crate) fn new() -> Self {
        Scalar(())
    }
}

#[inline(always)]
fn zip<T: Copy>(a: [T; 16], b: [T; 16], f: impl Fn(T, T) -> T) -> [T; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// To bfloat16, nearest even; NaN stays NaN.
#[inline(never)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return ((bits >> 16) | 0x40) as u16;
    }
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

impl Simd for Scalar {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];
    const PANEL_ROWS: usize = 8;

    #[inline(always)]
    fn call<K: crate::Kernel>(self, kernel: K) {
        crate::isa::scalar(kernel);
    }

    #[inline(never)]
    fn splat(self, x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(never)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        // SAFETY: the caller vouches for 16 readable values.
        std::array::from_fn(|i| unsafe { p.add(i).read_unaligned() })
    }
    #[inline(never)]
    unsafe fn store(self, p: *mut f32, x: Self::F) {
        for (i, v) in x.into_iter().enumerate() {
            // SAFETY: the caller vouches for 16 writable values.
            unsafe { p.add(i).write_unaligned(v) };
        }
    }
    #[inline(never)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F {
        // SAFETY: the caller vouches for 16 readable values.
        std::array::from_fn(|i| unsafe { f32::from_bits(u32::from(p.add(i).read_unaligned()) << 16) })
    }
    #[inline(never)]
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F) {
        for (i, v) in x.into_iter().enumerate() {
            // SAFETY: the caller vouches for 16 writable values.
            unsafe { p.add(i).write_unaligned(to_bf16(v)) };
        }
    }
    #[inline(never)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x + y)
    }
    #[inline(never)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x - y)
    }
    #[inline(never)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x * y)
    }
    #[inline(never)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| x / y)
    }
    #[inline(never)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(never)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(never)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(never)]
    fn zero_below(self, x: Self::F, limit: f32, v: Self::F) -> Self::F {
        std::array::from_fn(|i| if x[i] >= limit { v[i] } else { 0.0 })
    }
    #[inline(never)]
    fn abs(self, x: Self::F) -> Self::F {
        x.map(f32::abs)
    }
    #[inline(never)]
    fn reduce_add(self, x: Self::F) -> f32 {
        let a: [f32; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
        let b: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
        (b[0] + b[2]) + (b[1] + b[3])
    }
    #[inline(never)]
    fn reduce_max(self, x: Self::F) -> f32 {
        x.into_iter().fold(f32::NEG_INFINITY, |m, v| if v > m { v } else { m })
    }
    #[inline(never)]
    fn reduce_add_16(self, x: [Self::F; 16]) -> Self::F {
        x.map(|v| self.reduce_add(v))
    }
    #[inline(never)]
    fn splat_int(self, x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(never)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(never)]
    fn to_int(self, x: Self::F) -> Self::I {
        x.map(|v| v.round_ties_even() as i32)
    }
    #[inline(never)]
    fn to_float(self, x: Self::I) -> Self::F {
        x.map(|v| v as f32)
    }
    #[inline(never)]
    fn exp2_int(self, n: Self::I) -> Self::F {
        n.map(|n| f32::from_bits((n.wrapping_add(127) as u32) << 23))
    }
    #[inline(never)]
    unsafe fn store_i8(self, p: *mut i8, x: Self::I) {
        for (i, v) in x.into_iter().enumerate() {
            // SAFETY: the caller vouches for 16 writable bytes.
            unsafe { p.add(i).write(v as i8) };
        }
    }
    #[inline(never)]
    unsafe fn load_bytes(self, p: *const u8) -> Self::B {
        // SAFETY: the caller vouches for 64 readable bytes.
        unsafe { p.cast::<[u8; 64]>().read_unaligned() }
    }
    #[inline(never)]
    fn low_nibbles(self, b: Self::B) -> Self::B {
        b.map(|b| b & 15)
    }
    #[inline(never)]
    fn high_nibbles(self, b: Self::B) -> Self::B {
        b.map(|b| b >> 4)
    }
    #[inline(never)]
    fn take_bits(self, b: Self::B, from: usize, width: usize, to: usize) -> Self::B {
        b.map(|b| ((u32::from(b) >> from & ((1 << width) - 1)) << to) as u8)
    }
    #[inline(never)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        std::array::from_fn(|i| a[i] | b[i])
    }
    #[inline(never)]
    fn lookup_bytes(self, table: &[u8; 16], b: Self::B) -> Self::B {
        b.map(|b| table[usize::from(b & 15)])
    }
    #[inline(never)]
    fn dot_small(self, acc: Self::I, w: Self::B, a: i32) -> Self::I {
        self.dot(acc, w, a)
    }
    #[inline(never)]
    fn dot(self, acc: Self::I, w: Self::B, a: i32) -> Self::I {
        let a = a.to_le_bytes().map(|b| i32::from(b as i8));
        std::array::from_fn(|i| (0..4).fold(acc[i], |s, c| s.wrapping_add(i32::from(w[4 * i + c]) * a[c])))
    }
    #[inline(never)]
    unsafe fn load_nibbles(self, p: *const u8) -> Self::I {
        // SAFETY: the caller vouches for 8 readable bytes.
        std::array::from_fn(|i| i32::from((unsafe { p.add(i / 2).read() } >> (4 * (i % 2))) & 15))
    }
    #[inline(never)]
    unsafe fn load_codes<const BITS: usize>(self, p: *const u8) -> Self::I {
        std::array::from_fn(|i| {
            let bit = |k: usize| {
                // SAFETY: the caller vouches for `2 * BITS` readable bytes, which are 16 codes.
                let byte = unsafe { p.add((i * BITS + k) / 8).read() };
                i32::from(byte >> ((i * BITS + k) % 8) & 1) << k
            };
            (0..BITS).map(bit).sum()
        })
    }
    #[inline(never)]
    unsafe fn load_u8(self, p: *const u8) -> Self::I {
        // SAFETY: the caller vouches for 16 readable bytes.
        std::array::from_fn(|i| i32::from(unsafe { p.add(i).read() }))
    }
    #[inline(never)]
    fn lookup(self, table: &[f32; 16], i: Self::I) -> Self::F {
        i.map(|i| table[(i & 15) as usize])
    }
    #[inline(never)]
    fn prefetch(self, _p: *const u8) {}
    #[inline(never)]
    fn prefetch_far(self, _p: *const u8) {}
}
