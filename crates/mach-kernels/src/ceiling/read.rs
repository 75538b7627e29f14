//! Memory read bandwidth: streaming loads over a buffer that no cache holds.

use std::hint::black_box;
use std::io;

use super::buffer::Buffer;
use super::team;

/// Bytes that one step of a stream loads; parts are cut to multiples of it times [`MAX_STREAMS`].
const STEP: usize = 512;
const MAX_STREAMS: usize = 4;

/// What memory delivered to `threads` threads.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadCeiling {
    /// Threads that read, each its own part.
    pub threads: usize,
    /// The best repeat, bytes a second.
    pub bytes_per_second: f64,
    /// Every repeat of the best access pattern.
    pub samples: Vec<f64>,
    /// Instruction set of the loads.
    pub isa: &'static str,
    /// The best access pattern.
    pub pattern: ReadPattern,
    /// Size of the buffer.
    pub buffer_bytes: u64,
    /// How much of it lay on huge pages (Linux; 0 where the system does not say).
    pub huge_bytes: u64,
}

/// How a thread walks its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadPattern {
    /// Streams read side by side.
    pub streams: usize,
    /// How many bytes ahead lines are asked for in software; 0 leaves it to the processor.
    pub prefetch: usize,
}

/// Measures read bandwidth at each of the thread counts, over one buffer of `bytes` bytes, `reps` passes a pattern.
/// `bytes` should be many times the last-level cache.
pub fn read_bandwidth(threads: &[usize], bytes: usize, reps: usize) -> io::Result<Vec<ReadCeiling>> {
    let most = threads.iter().copied().max().unwrap_or(1).max(1);
    let buffer = Buffer::new(bytes, most)?;
    let (isa, fold, prefetches) = best_fold();
    let patterns: Vec<ReadPattern> = [(1, 0), (2, 0), (MAX_STREAMS, 0), (1, 1024), (1, 4096)]
        .into_iter()
        .map(|(streams, prefetch)| ReadPattern { streams, prefetch })
        .filter(|pattern| prefetches || pattern.prefetch == 0)
        .collect();
    Ok(threads
        .iter()
        .map(|&threads| {
            let threads = threads.max(1);
            let part = buffer.bytes().len() / threads / (STEP * MAX_STREAMS) * (STEP * MAX_STREAMS);
            let mut best: Option<ReadCeiling> = None;
            for &pattern in &patterns {
                let seconds = team::timed(threads, reps.max(1), |member| {
                    let mine = buffer.bytes().get(member * part..(member + 1) * part).unwrap_or_default();
                    black_box(fold(mine, pattern));
                });
                let samples: Vec<f64> =
                    seconds.iter().map(|s| (part * threads) as f64 / s.max(f64::MIN_POSITIVE)).collect();
                let top = samples.iter().copied().fold(0.0, f64::max);
                if best.as_ref().is_none_or(|b| top > b.bytes_per_second) {
                    best = Some(ReadCeiling {
                        threads,
                        bytes_per_second: top,
                        samples,
                        isa,
                        pattern,
                        buffer_bytes: buffer.bytes().len() as u64,
                        huge_bytes: buffer.huge_bytes(),
                    });
                }
            }
            best
        })
        .collect::<Option<Vec<_>>>()
        .unwrap_or_default())
}

/// Exclusive or of all 8-byte words of `data`, read as `pattern` says; a value, so that no load can be dropped.
type Fold = fn(data: &[u8], pattern: ReadPattern) -> u64;

/// The widest loads of this processor, and whether they know how to prefetch.
fn best_fold() -> (&'static str, Fold, bool) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return ("avx512", x86::fold_avx512, true);
        }
        if is_x86_feature_detected!("avx2") {
            return ("avx2", x86::fold_avx2, true);
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        if std::arch::is_aarch64_feature_detected!("neon") {
            return ("neon", neon::fold_neon, false);
        }
    }
    ("scalar", fold_scalar, false)
}

fn fold_scalar(data: &[u8], pattern: ReadPattern) -> u64 {
    let streams = pattern.streams;
    let stride = stride(data.len(), streams);
    let mut sum = 0u64;
    for offset in (0..stride).step_by(STEP) {
        for stream in 0..streams {
            for word in data[stream * stride + offset..][..STEP].as_chunks::<8>().0 {
                sum ^= u64::from_ne_bytes(*word);
            }
        }
    }
    sum
}

/// Bytes of each stream.
fn stride(len: usize, streams: usize) -> usize {
    assert!(streams > 0 && len.is_multiple_of(STEP * streams), "a part is cut to whole steps");
    len / streams
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{ReadPattern, STEP, stride};

    /// Asks for the lines of one step.
    #[inline(always)]
    fn ask(at: *const u8) {
        for line in 0..STEP / 64 {
            // SAFETY: a prefetch is a hint; it does not fault at any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(64 * line).cast()) };
        }
    }

    pub(super) fn fold_avx512(data: &[u8], pattern: ReadPattern) -> u64 {
        let stride = stride(data.len(), pattern.streams);
        assert!(is_x86_feature_detected!("avx512f"));
        // SAFETY: the processor has AVX-512F, and `stride * streams` is the length of `data`.
        unsafe { avx512(data.as_ptr(), stride, pattern) }
    }

    pub(super) fn fold_avx2(data: &[u8], pattern: ReadPattern) -> u64 {
        let stride = stride(data.len(), pattern.streams);
        assert!(is_x86_feature_detected!("avx2"));
        // SAFETY: the processor has AVX2, and `stride * streams` is the length of `data`.
        unsafe { avx2(data.as_ptr(), stride, pattern) }
    }

    /// # Safety
    /// `data` must be readable for `stride * streams` bytes, `stride` a multiple of `STEP`.
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512(data: *const u8, stride: usize, pattern: ReadPattern) -> u64 {
        let ReadPattern { streams, prefetch } = pattern;
        let mut sums = [_mm512_setzero_si512(); STEP / 64];
        for offset in (0..stride).step_by(STEP) {
            for stream in 0..streams {
                if prefetch > 0 {
                    ask(data.wrapping_add(stream * stride + offset + prefetch));
                }
                for (lane, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `offset + 64 * lane + 64 <= stride`, so the load ends inside stream `stream`.
                    let line =
                        unsafe { _mm512_loadu_si512(data.add(stream * stride + offset + 64 * lane).cast()) };
                    *sum = _mm512_xor_si512(*sum, line);
                }
            }
        }
        let sum = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_xor_si512(a, b));
        let mut words = [0u64; 8];
        // SAFETY: `words` is 64 bytes long.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), sum) };
        words.into_iter().fold(0, |a, b| a ^ b)
    }

    /// # Safety
    /// As for `avx512`.
    #[target_feature(enable = "avx2")]
    unsafe fn avx2(data: *const u8, stride: usize, pattern: ReadPattern) -> u64 {
        let ReadPattern { streams, prefetch } = pattern;
        let mut sums = [_mm256_setzero_si256(); 8];
        for offset in (0..stride).step_by(STEP) {
            for stream in 0..streams {
                if prefetch > 0 {
                    ask(data.wrapping_add(stream * stride + offset + prefetch));
                }
                for half in 0..STEP / 256 {
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: `offset + 256 * half + 32 * lane + 32 <= stride`.
                        let line = unsafe {
                            let at = stream * stride + offset + 256 * half + 32 * lane;
                            _mm256_loadu_si256(data.add(at).cast())
                        };
                        *sum = _mm256_xor_si256(*sum, line);
                    }
                }
            }
        }
        let sum = sums.into_iter().fold(_mm256_setzero_si256(), |a, b| _mm256_xor_si256(a, b));
        let mut words = [0u64; 4];
        // SAFETY: `words` is 32 bytes long.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), sum) };
        words.into_iter().fold(0, |a, b| a ^ b)
    }
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::*;

    use super::{ReadPattern, STEP, stride};

    pub(super) fn fold_neon(data: &[u8], pattern: ReadPattern) -> u64 {
        let stride = stride(data.len(), pattern.streams);
        assert!(std::arch::is_aarch64_feature_detected!("neon"));
        // SAFETY: the processor has NEON, and `stride * streams` is the length of `data`.
        unsafe { neon(data.as_ptr(), stride, pattern.streams) }
    }

    /// # Safety
    /// `data` must be readable for `stride * streams` bytes, `stride` a multiple of `STEP`.
    #[target_feature(enable = "neon")]
    unsafe fn neon(data: *const u8, stride: usize, streams: usize) -> u64 {
        let mut sums = [vdupq_n_u8(0); 8];
        for offset in (0..stride).step_by(STEP) {
            for stream in 0..streams {
                for part in 0..STEP / 128 {
                    for (lane, sum) in sums.iter_mut().enumerate() {
                        // SAFETY: `offset + 128 * part + 16 * lane + 16 <= stride`.
                        let line =
                            unsafe { vld1q_u8(data.add(stream * stride + offset + 128 * part + 16 * lane)) };
                        *sum = veorq_u8(*sum, line);
                    }
                }
            }
        }
        let sum = sums.into_iter().fold(vdupq_n_u8(0), |a, b| veorq_u8(a, b));
        let words = vreinterpretq_u64_u8(sum);
        vgetq_lane_u64::<0>(words) ^ vgetq_lane_u64::<1>(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folds() -> Vec<Fold> {
        #[allow(unused_mut)]
        let mut folds: Vec<Fold> = vec![fold_scalar, best_fold().1];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            folds.push(x86::fold_avx2);
        }
        folds
    }

    #[test]
    fn every_fold_reads_every_word() {
        let mut data: Vec<u8> = (0..STEP * 24).map(|i| (i * 37 % 251) as u8).collect();
        for at in [0, 8, 1000, STEP * 12 - 1, STEP * 24 - 1] {
            data[at] ^= 0x40;
            let words = data.as_chunks::<8>().0.iter().fold(0, |a, w| a ^ u64::from_ne_bytes(*w));
            for fold in folds() {
                for (streams, prefetch) in [(1, 0), (2, 0), (4, 0), (1, 1024)] {
                    assert_eq!(fold(&data, ReadPattern { streams, prefetch }), words);
                }
            }
        }
    }

    #[test]
    fn measures_each_thread_count_in_order() {
        let found = read_bandwidth(&[2, 1], 4 << 20, 2).unwrap();
        assert_eq!(found.iter().map(|c| c.threads).collect::<Vec<_>>(), [2, 1]);
        for ceiling in found {
            assert_eq!(ceiling.samples.len(), 2);
            assert!(ceiling.samples.contains(&ceiling.bytes_per_second));
            assert_eq!(ceiling.buffer_bytes, 4 << 20);
            assert!(ceiling.huge_bytes <= ceiling.buffer_bytes);
        }
    }
}
