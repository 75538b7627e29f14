//! AVX2 and FMA, with or without AVX-VNNI: two registers are the whole vector.

use std::arch::x86_64::*;

use super::{Simd, packed_codes, place_of_code};

/// Proof that the machine has AVX2 and FMA, and AVX-VNNI if `VNNI`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// # Safety
    /// The machine has avx2 and fma, and avxvnni if `VNNI`, and the caller runs with these target features enabled.
    #[inline(always)]
    pub(crate) unsafe fn new() -> Self {
        Avx2(())
    }
}

// Macros, not functions that take closures: a closure is compiled without the target features unless it happens to be
// inlined, and then every intrinsic in it is a call.

/// Both halves through one expression.
macro_rules! each {
    ($x:expr, |$a:ident| $body:expr) => {{
        let both = $x;
        [
            {
                let $a = both[0];
                $body
            },
            {
                let $a = both[1];
                $body
            },
        ]
    }};
}

/// Both halves of two vectors through one expression.
macro_rules! both {
    ($x:expr, $y:expr, |$a:ident, $b:ident| $body:expr) => {{
        let (first, second) = ($x, $y);
        [
            {
                let ($a, $b) = (first[0], second[0]);
                $body
            },
            {
                let ($a, $b) = (first[1], second[1]);
                $body
            },
        ]
    }};
}

/// `acc + bytes(w) . bytes(a)` for `w` up to 127: two products of at most 127 * 128 fit 16 bits.
#[inline(always)]
fn dot_half(acc: __m256i, w: __m256i, a: __m256i, factor: i16) -> __m256i {
    // SAFETY: callers hold an `Avx2`, so the machine has the instructions.
    unsafe {
        let pairs = _mm256_maddubs_epi16(w, a);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(factor)))
    }
}

/// For [`Simd::load_codes`]: the bytes that go to each lane of 32 bits (0x80 for a zero), and how far they are shifted.
pub(super) const fn lanes<const BITS: usize>() -> ([u8; 64], [i32; 16]) {
    let (mut bytes, mut shifts) = ([0x80; 64], [0; 16]);
    let mut i = 0;
    while i < 16 {
        let (byte, bit) = place_of_code::<BITS>(i);
        bytes[4 * i] = byte as u8;
        bytes[4 * i + 1] = byte as u8 + 1;
        shifts[i] = bit as i32;
        i += 1;
    }
    (bytes, shifts)
}

// Every method below only runs with an `Avx2` value, which proves the target features; that is the soundness reason of
// each block. Pointer methods forward their caller's promise.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type B = [__m256i; 2];
    const PANEL_ROWS: usize = 4;

    #[inline(always)]
    fn call<K: crate::Kernel>(self, kernel: K) {
        unsafe { if VNNI { crate::isa::avx_vnni(kernel) } else { crate::isa::avx2(kernel) } };
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [unsafe { _mm256_set1_ps(x) }; 2]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> Self::F {
        unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, x: Self::F) {
        unsafe {
            _mm256_storeu_ps(p, x[0]);
            _mm256_storeu_ps(p.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u16) -> Self::F {
        unsafe {
            let wide = [
                _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())),
                _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(8).cast())),
            ];
            each!(wide, |w| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(w)))
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16, x: Self::F) {
        let y = each!(x, |x| unsafe {
            let bits = _mm256_castps_si256(x);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
            let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
            let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
            _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
        });
        unsafe {
            let packed = _mm256_permute4x64_epi64::<0xD8>(_mm256_packus_epi32(y[0], y[1]));
            _mm256_storeu_si256(p.cast(), packed);
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(a, b, |a, b| unsafe { _mm256_add_ps(a, b) })
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(a, b, |a, b| unsafe { _mm256_sub_ps(a, b) })
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(a, b, |a, b| unsafe { _mm256_mul_ps(a, b) })
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(a, b, |a, b| unsafe { _mm256_div_ps(a, b) })
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        both!(a, b, |a, b| unsafe { _mm256_min_ps(a, b) })
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        both!(a, b, |a, b| unsafe { _mm256_max_ps(a, b) })
    }
    #[inline(always)]
    fn zero_below(self, x: Self::F, limit: f32, v: Self::F) -> Self::F {
        both!(x, v, |x, v| unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(x, _mm256_set1_ps(limit)), v) })
    }
    #[inline(always)]
    fn abs(self, x: Self::F) -> Self::F {
        each!(x, |x| unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), x) })
    }
    #[inline(always)]
    fn reduce_add(self, x: Self::F) -> f32 {
        unsafe {
            let a = _mm256_add_ps(x[0], x[1]);
            let b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let c = _mm_add_ps(b, _mm_movehl_ps(b, b));
            _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps::<1>(c, c)))
        }
    }
    #[inline(always)]
    fn reduce_max(self, x: Self::F) -> f32 {
        unsafe {
            let a = _mm256_max_ps(x[0], x[1]);
            let b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let c = _mm_max_ps(b, _mm_movehl_ps(b, b));
            _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps::<1>(c, c)))
        }
    }
    #[inline(always)]
    fn reduce_add_16(self, x: [Self::F; 16]) -> Self::F {
        // Each step adds the two halves that the tree pairs while keeping two vectors' sums in one register.
        let mut sums = [unsafe { _mm256_setzero_ps() }; 2];
        for (h, sum) in sums.iter_mut().enumerate() {
            unsafe {
                // Distances 8 and 4: 4 lanes each of x_i and x_{i+4}.
                let mut b = [_mm256_setzero_ps(); 4];
                for i in 0..4 {
                    let at = 8 * h + i;
                    let p = _mm256_add_ps(x[at][0], x[at][1]);
                    let q = _mm256_add_ps(x[at + 4][0], x[at + 4][1]);
                    let low = _mm256_permute2f128_ps::<0x20>(p, q);
                    let high = _mm256_permute2f128_ps::<0x31>(p, q);
                    b[i] = _mm256_add_ps(low, high);
                }
                // Distance 2: pairs of x_i and x_{i+1}.
                let mut c = [_mm256_setzero_ps(); 2];
                for i in 0..2 {
                    let low = _mm256_shuffle_ps::<0x44>(b[2 * i], b[2 * i + 1]);
                    let high = _mm256_shuffle_ps::<0xEE>(b[2 * i], b[2 * i + 1]);
                    c[i] = _mm256_add_ps(low, high);
                }
                // Distance 1.
                let low = _mm256_shuffle_ps::<0x88>(c[0], c[1]);
                let high = _mm256_shuffle_ps::<0xDD>(c[0], c[1]);
                *sum = _mm256_add_ps(low, high);
            }
        }
        sums
    }
    #[inline(always)]
    fn splat_int(self, x: i32) -> Self::I {
        [unsafe { _mm256_set1_epi32(x) }; 2]
    }
    #[inline(always)]
    fn add_int(self, a: Self::I, b: Self::I) -> Self::I {
        both!(a, b, |a, b| unsafe { _mm256_add_epi32(a, b) })
    }
    #[inline(always)]
    fn to_int(self, x: Self::F) -> Self::I {
        each!(x, |x| unsafe {
            _mm256_cvtps_epi32(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x))
        })
    }
    #[inline(always)]
    fn to_float(self, x: Self::I) -> Self::F {
        each!(x, |x| unsafe { _mm256_cvtepi32_ps(x) })
    }
    #[inline(always)]
    fn exp2_int(self, n: Self::I) -> Self::F {
        each!(n, |n| unsafe {
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
        })
    }
    #[inline(always)]
    unsafe fn store_i8(self, p: *mut i8, x: Self::I) {
        unsafe {
            let words = _mm256_permute4x64_epi64::<0xD8>(_mm256_packs_epi32(x[0], x[1]));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(p.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(self, p: *const u8) -> Self::B {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    fn low_nibbles(self, b: Self::B) -> Self::B {
        each!(b, |b| unsafe { _mm256_and_si256(b, _mm256_set1_epi8(15)) })
    }
    #[inline(always)]
    fn high_nibbles(self, b: Self::B) -> Self::B {
        each!(b, |b| unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(b), _mm256_set1_epi8(15)) })
    }
    #[inline(always)]
    fn take_bits(self, b: Self::B, from: usize, width: usize, to: usize) -> Self::B {
        // What crosses into another byte of its pair is not in the mask.
        let mask = unsafe { _mm256_set1_epi8((((1u32 << width) - 1) << to) as i8) };
        if from >= to {
            let count = unsafe { _mm_cvtsi32_si128((from - to) as i32) };
            each!(b, |b| unsafe { _mm256_and_si256(_mm256_srl_epi16(b, count), mask) })
        } else {
            let count = unsafe { _mm_cvtsi32_si128((to - from) as i32) };
            each!(b, |b| unsafe { _mm256_and_si256(_mm256_sll_epi16(b, count), mask) })
        }
    }
    #[inline(always)]
    fn or_bytes(self, a: Self::B, b: Self::B) -> Self::B {
        both!(a, b, |a, b| unsafe { _mm256_or_si256(a, b) })
    }
    #[inline(always)]
    fn lookup_bytes(self, table: &[u8; 16], b: Self::B) -> Self::B {
        let table = unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())) };
        each!(b, |b| unsafe { _mm256_shuffle_epi8(table, b) })
    }
    #[inline(always)]
    fn dot_small(self, acc: Self::I, w: Self::B, a: i32) -> Self::I {
        let a = unsafe { _mm256_set1_epi32(a) };
        if VNNI {
            return both!(acc, w, |acc, w| unsafe { _mm256_dpbusd_avx_epi32(acc, w, a) });
        }
        both!(acc, w, |acc, w| dot_half(acc, w, a, 1))
    }
    #[inline(always)]
    fn dot(self, acc: Self::I, w: Self::B, a: i32) -> Self::I {
        let a = unsafe { _mm256_set1_epi32(a) };
        if VNNI {
            return both!(acc, w, |acc, w| unsafe { _mm256_dpbusd_avx_epi32(acc, w, a) });
        }
        // In nibbles: two products of a whole unsigned byte would not fit 16 bits.
        let low = both!(acc, self.low_nibbles(w), |acc, w| dot_half(acc, w, a, 1));
        both!(low, self.high_nibbles(w), |acc, w| dot_half(acc, w, a, 16))
    }
    #[inline(always)]
    unsafe fn load_nibbles(self, p: *const u8) -> Self::I {
        let half = |at: usize| unsafe {
            let word = _mm256_set1_epi32(p.add(at).cast::<i32>().read_unaligned());
            let shifted = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
            _mm256_and_si256(shifted, _mm256_set1_epi32(15))
        };
        [half(0), half(4)]
    }
    #[inline(always)]
    unsafe fn load_codes<const BITS: usize>(self, p: *const u8) -> Self::I {
        // The two bytes that a code lies in go to its lane, where it moves to the lowest bit.
        let places = const { lanes::<BITS>() };
        unsafe {
            let [low, high] = packed_codes::<BITS>(p);
            let bytes = _mm256_broadcastsi128_si256(_mm_set_epi64x(high as i64, low as i64));
            let half = |h: usize| {
                let (from, shift) = (places.0.as_ptr().add(32 * h), places.1.as_ptr().add(8 * h));
                let pairs = _mm256_shuffle_epi8(bytes, _mm256_loadu_si256(from.cast()));
                let codes = _mm256_srlv_epi32(pairs, _mm256_loadu_si256(shift.cast()));
                _mm256_and_si256(codes, _mm256_set1_epi32((1 << BITS) - 1))
            };
            [half(0), half(1)]
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, p: *const u8) -> Self::I {
        unsafe {
            let bytes = _mm_loadu_si128(p.cast());
            [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))]
        }
    }
    #[inline(always)]
    fn lookup(self, table: &[f32; 16], i: Self::I) -> Self::F {
        each!(i, |i| unsafe {
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), i);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), i);
            // Bit 3 of the index, moved to the sign, chooses.
            _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(i)))
        })
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
