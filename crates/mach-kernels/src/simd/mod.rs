//! Sixteen lanes of f32 or i32 and 64 bytes of codes, on every instruction set with the same bits.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;
#[cfg(test)]
mod tests;

use crate::Kernel;

/// One instruction set. A value of an implementing type is proof that the machine has it: values are made only by
/// [`crate::dispatch`] after detection, which is what makes the arithmetic methods safe to call.
///
/// Contract: every method returns the same bits on every implementation, NaN payloads excepted. Reductions follow one
/// tree: lanes `i` and `i + 8`, then `i + 4`, `i + 2`, `i + 1`.
pub trait Simd: Copy + Send + Sync + 'static {
    /// 16 x f32.
    type F: Copy;
    /// 16 x i32.
    type I: Copy;
    /// 64 x u8: 16 lanes of 4 codes.
    type B: Copy;

    /// Runs a kernel as a function of its own, so that its code exists once however many kernels use it.
    fn call<K: Kernel>(self, kernel: K);

    /// Rows of activations whose integer and float sums the registers hold at once.
    const PANEL_ROWS: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;
    /// Loads 16 values.
    ///
    /// # Safety
    /// `p..p + 16` is readable.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Stores 16 values.
    ///
    /// # Safety
    /// `p..p + 16` is writable.
    unsafe fn store(self, p: *mut f32, x: Self::F);
    /// Loads and widens 16 bfloat16.
    ///
    /// # Safety
    /// `p..p + 16` is readable.
    unsafe fn load_bf16(self, p: *const u16) -> Self::F;
    /// Rounds to bfloat16, to nearest even, and stores 16 values. NaN lanes store some NaN.
    ///
    /// # Safety
    /// `p..p + 16` is writable.
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F);
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c` with one rounding.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a < b ? a : b` (b if either is NaN).
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a > b ? a : b` (b if either is NaN).
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Lanes of `v` where `x >= limit`, else 0.
    fn zero_below(self, x: Self::F, limit: f32, v: Self::F) -> Self::F;
    /// `|x|`.
    fn abs(self, x: Self::F) -> Self::F;
    /// Sum over the lanes by the tree.
    fn reduce_add(self, x: Self::F) -> f32;
    /// Maximum over the lanes (no NaN).
    fn reduce_max(self, x: Self::F) -> f32;
    /// Lane `i` of the result is `reduce_add(x[i])`.
    fn reduce_add_16(self, x: [Self::F; 16]) -> Self::F;

    /// All lanes `x`.
    fn splat_int(self, x: i32) -> Self::I;
    /// `a + b`, wrapping.
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I;
    /// To the nearest integer, ties to even. Lanes are within i32.
    fn to_int(self, x: Self::F) -> Self::I;
    /// To f32, to nearest even.
    fn to_float(self, x: Self::I) -> Self::F;
    /// `2^n`, `n` in -126..=127.
    fn exp2_int(self, n: Self::I) -> Self::F;
    /// Stores the low bytes of 16 lanes that are within i8.
    ///
    /// # Safety
    /// `p..p + 16` is writable.
    unsafe fn store_i8(self, p: *mut i8, x: Self::I);

    /// Loads 64 bytes.
    ///
    /// # Safety
    /// `p..p + 64` is readable.
    unsafe fn load_bytes(self, p: *const u8) -> Self::B;
    /// `b & 15` per byte.
    fn low_nibbles(self, b: Self::B) -> Self::B;
    /// `b >> 4` per byte.
    fn high_nibbles(self, b: Self::B) -> Self::B;
    /// Bits `from..from + width` of each byte, at bit `to` of the result, which has nothing else. Constants where it is
    /// called.
    fn take_bits(self, b: Self::B, from: usize, width: usize, to: usize) -> Self::B;
    /// `a | b`.
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B;
    /// `table[b]` per byte; bytes are below 16.
    fn lookup_bytes(self, table: &[u8; 16], b: Self::B) -> Self::B;
    /// Lane `i`: `acc[i] + sum_c w[4 i + c] * a_c`, `a` four signed bytes (little-endian), `w` unsigned and at most 63.
    fn dot_small(self, acc: Self::I, w: Self::B, a: i32) -> Self::I;
    /// As [`Simd::dot_small`] with any unsigned `w`.
    fn dot(self, acc: Self::I, w: Self::B, a: i32) -> Self::I;

    /// 16 four-bit codes of 8 bytes, low nibble first, as integers.
    ///
    /// # Safety
    /// `p..p + 8` is readable.
    unsafe fn load_nibbles(self, p: *const u8) -> Self::I;
    /// 16 codes of `BITS` bits (2, 3, 5 or 6) of `2 * BITS` bytes, one little-endian bit string, as integers.
    ///
    /// # Safety
    /// `p..p + 2 * BITS` is readable.
    unsafe fn load_codes<const BITS: usize>(self, p: *const u8) -> Self::I;
    /// 16 bytes as integers.
    ///
    /// # Safety
    /// `p..p + 16` is readable.
    unsafe fn load_u8(self, p: *const u8) -> Self::I;
    /// `table[i]` per lane; lanes are in 0..16.
    fn lookup(self, table: &[f32; 16], i: Self::I) -> Self::F;
    /// Asks for the cache line at `p`; any address is allowed.
    fn prefetch(self, p: *const u8);
    /// As [`Simd::prefetch`], into the second-level cache.
    fn prefetch_far(self, p: *const u8);
}

/// `2 * BITS` bytes, for `BITS` of 2, 3, 5 or 6, as words of a 16-byte register; no byte beyond them is read.
///
/// # Safety
/// `p..p + 2 * BITS` is readable.
#[inline(always)]
#[allow(dead_code)]
unsafe fn packed_codes<const BITS: usize>(p: *const u8) -> [u64; 2] {
    // SAFETY: the caller's promise; every read ends at or before `2 * BITS`.
    unsafe {
        let four = |at: usize| u64::from(p.add(at).cast::<u32>().read_unaligned());
        let two = |at: usize| u64::from(p.add(at).cast::<u16>().read_unaligned());
        let eight = || p.cast::<u64>().read_unaligned();
        match BITS {
            2 => [four(0), 0],
            3 => [four(0) | (two(4) << 32), 0],
            5 => [eight(), two(8)],
            6 => [eight(), four(8)],
            _ => unreachable!("other widths have loads of their own"),
        }
    }
}

/// Where code `i` of a bit string of `BITS` bits each begins: byte and bit. A code and its bit fit two bytes.
const fn place_of_code<const BITS: usize>(i: usize) -> (usize, usize) {
    (i * BITS / 8, i * BITS % 8)
}
