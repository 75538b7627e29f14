//! AVX-512 F/BW/VL/VNNI: one register is the whole vector.

use std::arch::x86_64::*;

use super::avx2::lanes;
use super::{Simd, packed_codes};

/// Proof that the machine has AVX-512 F, BW, VL, DQ and VNNI.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// # Safety
    /// The machine has avx512f, avx512bw, avx512vl, avx512dq and avx512vnni, and the caller runs with these target
    /// features enabled.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx512(())
    }
}

/// Splits into the upper and lower eight lanes and adds them.
#[inline(always)]
fn halves(x: __m512) -> __m256 {
    // SAFETY: callers hold an `Avx512`, so the machine has the instructions.
    unsafe { _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)) }
}

// Every method below only runs with an `Avx512` value, which proves the target features; that is the soundness reason
// of each block. Pointer methods forward their caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    const PANEL_ROWS: usize = 8;

    #[inline(always)]
    fn call<K: crate::Kernel>(self, kernel: K) {
        unsafe { crate::isa::avx512(kernel) };
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: __m512) {
        unsafe { _mm512_storeu_ps(p, x) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> __m512 {
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: __m512) {
        unsafe {
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let bits = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(bits));
        }
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn zero_below(self, x: __m512, limit: f32, v: __m512) -> __m512 {
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(limit)), v) }
    }
    #[inline(always)]
    fn abs(self, x: __m512) -> __m512 {
        unsafe { _mm512_abs_ps(x) }
    }
    #[inline(always)]
    fn reduce_add(self, x: __m512) -> f32 {
        unsafe {
            let a = halves(x);
            let b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let c = _mm_add_ps(b, _mm_movehl_ps(b, b));
            _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps::<1>(c, c)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, x: __m512) -> f32 {
        unsafe { _mm512_reduce_max_ps(x) }
    }
    #[inline(always)]
    fn reduce_add_16(self, x: [__m512; 16]) -> __m512 {
        unsafe {
            // Each step adds the two halves that the tree pairs while keeping two vectors' sums in one register.
            // Distance 8: register i holds [x_i sums | x_{i+8} sums], 8 lanes each.
            let mut a = [_mm512_setzero_ps(); 8];
            for i in 0..8 {
                let low = _mm512_shuffle_f32x4::<0x44>(x[i], x[i + 8]);
                let high = _mm512_shuffle_f32x4::<0xEE>(x[i], x[i + 8]);
                a[i] = _mm512_add_ps(low, high);
            }
            // Distance 4: 4 lanes each of x_i, x_{i+8} (from a_i) and x_{i+4}, x_{i+12} (from a_{i+4}).
            let mut b = [_mm512_setzero_ps(); 4];
            for i in 0..4 {
                let low = _mm512_shuffle_f32x4::<0x88>(a[i], a[i + 4]);
                let high = _mm512_shuffle_f32x4::<0xDD>(a[i], a[i + 4]);
                b[i] = _mm512_add_ps(low, high);
            }
            // Distance 2, inside 128-bit lanes: pairs of x_i.. and x_{i+2}..
            let mut c = [_mm512_setzero_ps(); 2];
            for i in 0..2 {
                let low = _mm512_shuffle_ps::<0x44>(b[i], b[i + 2]);
                let high = _mm512_shuffle_ps::<0xEE>(b[i], b[i + 2]);
                c[i] = _mm512_add_ps(low, high);
            }
            // Distance 1.
            let low = _mm512_shuffle_ps::<0x88>(c[0], c[1]);
            let high = _mm512_shuffle_ps::<0xDD>(c[0], c[1]);
            let d = _mm512_add_ps(low, high);
            // Lane 4 q + (0,1,2,3) of d: 128-bit lane q = 0..3 carries x offsets 0, 8, 4, 12; inside: 0, 2, 1, 3.
            let order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
            _mm512_permutexvar_ps(order, d)
        }
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn add_int(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn to_int(self, x: __m512) -> __m512i {
        unsafe { _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
    }
    #[inline(always)]
    fn to_float(self, x: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    fn exp2_int(self, n: __m512i) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127)))) }
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: __m512i) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(x)) }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    fn low_nibbles(self, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(b, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    fn high_nibbles(self, b: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(b), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    fn take_bits(self, b: __m512i, from: usize, width: usize, to: usize) -> __m512i {
        unsafe {
            // What crosses into another byte of its pair is not in the mask.
            let mask = _mm512_set1_epi8((((1u32 << width) - 1) << to) as i8);
            let moved = if from >= to {
                _mm512_srl_epi16(b, _mm_cvtsi32_si128((from - to) as i32))
            } else {
                _mm512_sll_epi16(b, _mm_cvtsi32_si128((to - from) as i32))
            };
            _mm512_and_si512(moved, mask)
        }
    }
    #[inline(always)]
    fn or_bytes(self, a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }
    #[inline(always)]
    fn lookup_bytes(self, table: &[u8; 16], b: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), b) }
    }
    #[inline(always)]
    fn dot_small(self, acc: __m512i, w: __m512i, a: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a)) }
    }
    #[inline(always)]
    fn dot(self, acc: __m512i, w: __m512i, a: i32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a)) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, p: *const u8) -> __m512i {
        unsafe {
            let words = _mm512_broadcastq_epi64(_mm_loadl_epi64(p.cast()));
            let halves = _mm512_permutexvar_epi32(
                _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1),
                words,
            );
            let shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
            _mm512_and_si512(_mm512_srlv_epi32(halves, shifts), _mm512_set1_epi32(15))
        }
    }
    #[inline(always)]
    unsafe fn load_codes<const BITS: usize>(self, p: *const u8) -> __m512i {
        // The two bytes that a code lies in go to its lane, where it moves to the lowest bit.
        let places = const { lanes::<BITS>() };
        unsafe {
            let [low, high] = packed_codes::<BITS>(p);
            let bytes = _mm512_broadcast_i32x4(_mm_set_epi64x(high as i64, low as i64));
            let pairs = _mm512_shuffle_epi8(bytes, _mm512_loadu_si512(places.0.as_ptr().cast()));
            let codes = _mm512_srlv_epi32(pairs, _mm512_loadu_si512(places.1.as_ptr().cast()));
            _mm512_and_si512(codes, _mm512_set1_epi32((1 << BITS) - 1))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; 16], i: __m512i) -> __m512 {
        unsafe { _mm512_permutexvar_ps(i, _mm512_loadu_ps(table.as_ptr())) }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(self, p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}
