//! Integer throughput: independent chains of 8-bit dot products that live in registers.

use std::hint::black_box;

use super::team;

/// What the integer units of `threads` cores multiplied.
#[derive(Debug, Clone, PartialEq)]
pub struct DotCeiling {
    /// Threads that multiplied.
    pub threads: usize,
    /// The best repeat: 8-bit multiply-accumulates a second, all threads together.
    pub macs_per_second: f64,
    /// Every repeat.
    pub samples: Vec<f64>,
    /// Instructions that were measured: the fastest that this processor has.
    pub isa: &'static str,
}

/// Measures 8-bit dot-product throughput at `threads` threads; `reps` repeats of at least 20 ms.
pub fn int8_dot(threads: usize, reps: usize) -> DotCeiling {
    let threads = threads.max(1);
    let mut best: Option<DotCeiling> = None;
    for chain in chains() {
        let mut rounds = 1usize << 12;
        while team::timed(1, 1, |_| run(&chain, rounds))[0] < 0.02 && rounds < 1 << 32 {
            rounds *= 2;
        }
        let macs = chain.macs_per_round as f64 * rounds as f64 * threads as f64;
        let samples: Vec<f64> = team::timed(threads, reps.max(1), |_| run(&chain, rounds))
            .into_iter()
            .map(|s| macs / s.max(f64::MIN_POSITIVE))
            .collect();
        let top = samples.iter().copied().fold(0.0, f64::max);
        if best.as_ref().is_none_or(|b| top > b.macs_per_second) {
            best = Some(DotCeiling { threads, macs_per_second: top, samples, isa: chain.isa });
        }
    }
    best.unwrap_or(DotCeiling { threads, macs_per_second: 0.0, samples: Vec::new(), isa: "none" })
}

fn run(chain: &Chain, rounds: usize) {
    black_box((chain.run)(black_box(3), black_box(-5), rounds));
}

/// One way to multiply. `run(a, b, rounds)` multiplies vectors filled with `a` (0..=127) and `b`, `macs_per_round`
/// products a round, and returns the sum of all of them (modulo 2^32).
struct Chain {
    isa: &'static str,
    macs_per_round: usize,
    run: fn(a: i8, b: i8, rounds: usize) -> i32,
}

/// The chains that this processor can run.
fn chains() -> Vec<Chain> {
    let mut chains = vec![Chain { isa: "scalar", macs_per_round: 16, run: scalar }];
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx2") {
            chains.push(Chain { isa: "avx2", macs_per_round: 8 * 32, run: x86::run_avx2 });
        }
        if is_x86_feature_detected!("avxvnni") {
            chains.push(Chain { isa: "avx-vnni", macs_per_round: 12 * 32, run: x86::run_avx_vnni });
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
            chains.push(Chain { isa: "avx512-vnni", macs_per_round: 16 * 64, run: x86::run_avx512_vnni });
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        if std::arch::is_aarch64_feature_detected!("neon") {
            chains.push(Chain { isa: "neon", macs_per_round: 8 * 16, run: arm::run_neon });
        }
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            chains.push(Chain { isa: "neon-dotprod", macs_per_round: 16 * 16, run: arm::run_dotprod });
        }
        if std::arch::is_aarch64_feature_detected!("i8mm") {
            chains.push(Chain { isa: "neon-i8mm", macs_per_round: 16 * 32, run: arm::run_i8mm });
        }
    }
    chains
}

fn scalar(a: i8, b: i8, rounds: usize) -> i32 {
    let mut sums = [0i32; 16];
    for _ in 0..rounds {
        let (a, b) = (i32::from(black_box(a)), i32::from(black_box(b)));
        for sum in &mut sums {
            *sum = sum.wrapping_add(a.wrapping_mul(b));
        }
    }
    sums.into_iter().fold(0, i32::wrapping_add)
}

// The chains are inline assembly because their operands do not change from round to round: a compiler that sees
// through an intrinsic may hoist the product out of the loop, and nothing would be measured. The blocks are not
// `pure`, so none is dropped or moved out of the loop either.

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    pub(super) fn run_avx2(a: i8, b: i8, rounds: usize) -> i32 {
        assert!(is_x86_feature_detected!("avx2"));
        // SAFETY: the processor has AVX2.
        unsafe { avx2(a, b, rounds) }
    }

    pub(super) fn run_avx_vnni(a: i8, b: i8, rounds: usize) -> i32 {
        assert!(is_x86_feature_detected!("avx2") && is_x86_feature_detected!("avxvnni"));
        // SAFETY: the processor has AVX2 and AVX-VNNI.
        unsafe { avx_vnni(a, b, rounds) }
    }

    pub(super) fn run_avx512_vnni(a: i8, b: i8, rounds: usize) -> i32 {
        assert!(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni"));
        // SAFETY: the processor has AVX-512F and AVX-512 VNNI.
        unsafe { avx512_vnni(a, b, rounds) }
    }

    /// Pairs of bytes to 16 bits, pairs of those to 32, add: the three steps of a dot product without VNNI.
    #[target_feature(enable = "avx2")]
    fn avx2(a: i8, b: i8, rounds: usize) -> i32 {
        let (a, b, ones) = (_mm256_set1_epi8(a), _mm256_set1_epi8(b), _mm256_set1_epi16(1));
        let mut sums = [_mm256_setzero_si256(); 8];
        for _ in 0..rounds {
            for sum in &mut sums {
                // SAFETY: registers only; AVX2 is enabled here.
                unsafe {
                    asm!(
                        "vpmaddubsw {t}, {a}, {b}",
                        "vpmaddwd {t}, {t}, {ones}",
                        "vpaddd {sum}, {sum}, {t}",
                        t = out(ymm_reg) _, a = in(ymm_reg) a, b = in(ymm_reg) b, ones = in(ymm_reg) ones,
                        sum = inout(ymm_reg) *sum, options(nomem, nostack, preserves_flags)
                    );
                }
            }
        }
        sum256(sums.into_iter().fold(_mm256_setzero_si256(), |x, y| _mm256_add_epi32(x, y)))
    }

    #[target_feature(enable = "avx2,avxvnni")]
    fn avx_vnni(a: i8, b: i8, rounds: usize) -> i32 {
        let (a, b) = (_mm256_set1_epi8(a), _mm256_set1_epi8(b));
        let mut sums = [_mm256_setzero_si256(); 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                // SAFETY: registers only; AVX-VNNI is enabled here.
                unsafe {
                    asm!(
                        "{{vex}} vpdpbusd {sum}, {a}, {b}",
                        a = in(ymm_reg) a, b = in(ymm_reg) b, sum = inout(ymm_reg) *sum,
                        options(nomem, nostack, preserves_flags)
                    );
                }
            }
        }
        sum256(sums.into_iter().fold(_mm256_setzero_si256(), |x, y| _mm256_add_epi32(x, y)))
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn avx512_vnni(a: i8, b: i8, rounds: usize) -> i32 {
        let (a, b) = (_mm512_set1_epi8(a), _mm512_set1_epi8(b));
        let mut sums = [_mm512_setzero_si512(); 16];
        for _ in 0..rounds {
            for sum in &mut sums {
                // SAFETY: registers only; AVX-512 VNNI is enabled here.
                unsafe {
                    asm!(
                        "vpdpbusd {sum}, {a}, {b}",
                        a = in(zmm_reg) a, b = in(zmm_reg) b, sum = inout(zmm_reg) *sum,
                        options(nomem, nostack, preserves_flags)
                    );
                }
            }
        }
        let sum = sums.into_iter().fold(_mm512_setzero_si512(), |x, y| _mm512_add_epi32(x, y));
        _mm512_reduce_add_epi32(sum)
    }

    #[target_feature(enable = "avx2")]
    fn sum256(sum: __m256i) -> i32 {
        let mut lanes = [0i32; 8];
        // SAFETY: `lanes` is 32 bytes long.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum) };
        lanes.into_iter().fold(0, i32::wrapping_add)
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;
    use std::arch::asm;

    pub(super) fn run_neon(a: i8, b: i8, rounds: usize) -> i32 {
        assert!(std::arch::is_aarch64_feature_detected!("neon"));
        // SAFETY: the processor has NEON.
        unsafe { neon(a, b, rounds) }
    }

    pub(super) fn run_dotprod(a: i8, b: i8, rounds: usize) -> i32 {
        assert!(std::arch::is_aarch64_feature_detected!("dotprod"));
        // SAFETY: the processor has NEON and its dot product.
        unsafe { dotprod(a, b, rounds) }
    }

    pub(super) fn run_i8mm(a: i8, b: i8, rounds: usize) -> i32 {
        assert!(std::arch::is_aarch64_feature_detected!("i8mm"));
        // SAFETY: the processor has NEON and the 8-bit matrix product.
        unsafe { i8mm(a, b, rounds) }
    }

    /// Widening products and pairwise adds: a dot product without the extension.
    #[target_feature(enable = "neon")]
    fn neon(a: i8, b: i8, rounds: usize) -> i32 {
        let (a, b) = (vdupq_n_s8(a), vdupq_n_s8(b));
        let mut sums = [vdupq_n_s32(0); 8];
        for _ in 0..rounds {
            for sum in &mut sums {
                // SAFETY: registers only; NEON is enabled here.
                unsafe {
                    asm!(
                        "smull {t:v}.8h, {a:v}.8b, {b:v}.8b",
                        "sadalp {sum:v}.4s, {t:v}.8h",
                        "smull2 {t:v}.8h, {a:v}.16b, {b:v}.16b",
                        "sadalp {sum:v}.4s, {t:v}.8h",
                        t = out(vreg) _, a = in(vreg) a, b = in(vreg) b, sum = inout(vreg) *sum,
                        options(nomem, nostack, preserves_flags)
                    );
                }
            }
        }
        vaddvq_s32(sums.into_iter().fold(vdupq_n_s32(0), |x, y| vaddq_s32(x, y)))
    }

    #[target_feature(enable = "neon,dotprod")]
    fn dotprod(a: i8, b: i8, rounds: usize) -> i32 {
        let (a, b) = (vdupq_n_s8(a), vdupq_n_s8(b));
        let mut sums = [vdupq_n_s32(0); 16];
        for _ in 0..rounds {
            for sum in &mut sums {
                // SAFETY: registers only; the dot product is enabled here.
                unsafe {
                    asm!(
                        "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                        a = in(vreg) a, b = in(vreg) b, sum = inout(vreg) *sum,
                        options(nomem, nostack, preserves_flags)
                    );
                }
            }
        }
        vaddvq_s32(sums.into_iter().fold(vdupq_n_s32(0), |x, y| vaddq_s32(x, y)))
    }

    #[target_feature(enable = "neon,i8mm")]
    fn i8mm(a: i8, b: i8, rounds: usize) -> i32 {
        let (a, b) = (vdupq_n_s8(a), vdupq_n_s8(b));
        let mut sums = [vdupq_n_s32(0); 16];
        for _ in 0..rounds {
            for sum in &mut sums {
                // SAFETY: registers only; the matrix product is enabled here.
                unsafe {
                    asm!(
                        "smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                        a = in(vreg) a, b = in(vreg) b, sum = inout(vreg) *sum,
                        options(nomem, nostack, preserves_flags)
                    );
                }
            }
        }
        vaddvq_s32(sums.into_iter().fold(vdupq_n_s32(0), |x, y| vaddq_s32(x, y)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chain_does_the_products_it_counts() {
        for chain in chains() {
            for (a, b, rounds) in [(1, 1, 1), (3, -5, 7), (127, -128, 9), (127, 127, 100), (0, 77, 3)] {
                let expected = (chain.macs_per_round * rounds) as i64 * i64::from(a) * i64::from(b);
                assert_eq!((chain.run)(a, b, rounds), expected as i32, "{} {a} {b} {rounds}", chain.isa);
            }
        }
    }

    #[test]
    fn best_is_one_of_the_samples() {
        let ceiling = int8_dot(2, 2);
        assert_eq!((ceiling.threads, ceiling.samples.len()), (2, 2));
        assert!(ceiling.samples.contains(&ceiling.macs_per_second));
    }
}
