//! Attention over quantized keys and values: the same bits whatever the instruction set, the threads and how rows were
//! appended; close to attention over exact ones; pages that come back from their bytes.

use mach_kernels::attention::turbo::{TurboQuant, Width};
use mach_kernels::attention::{
    AttentionScratch, KvCache, KvShape, KvType, PAGE, Scores, attend, attend_ranges,
};
use mach_kernels::{Cores, Isa};
use proptest::prelude::*;

/// `n` values in -1..1.
fn floats(seed: u64, n: usize) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn width() -> impl Strategy<Value = Width> {
    prop::sample::select(Width::ALL.to_vec())
}

/// Appends in pieces of `piece` rows.
fn cache(isa: Isa, shape: KvShape, k: &[f32], v: &[f32], rows: usize, piece: usize) -> KvCache {
    let row = shape.heads * shape.head_dim;
    let mut cache = KvCache::new(shape);
    for first in (0..rows).step_by(piece) {
        let n = piece.min(rows - first);
        cache.append(isa, &k[first * row..], &v[first * row..], n);
    }
    cache
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn one_answer(
        keys in width(),
        values in width(),
        head_dim in prop::sample::select(vec![64usize, 80, 128, 256]),
        len in 1usize..600,
        rows in 1usize..9,
        piece in 1usize..300,
        with_sinks: bool,
        seed: u64,
    ) {
        let (heads, kv_heads, rows) = (4, 2, rows.min(len));
        let shape = KvShape { heads: kv_heads, head_dim, kind: KvType::Turbo(TurboQuant { keys, values }) };
        let (k, v) = (floats(seed, len * kv_heads * head_dim), floats(seed ^ 1, len * kv_heads * head_dim));
        let q = floats(seed ^ 2, rows * heads * head_dim);
        let sinks = floats(seed ^ 3, heads);
        let scores = Scores { scale: 0.2, sinks: with_sinks.then_some(&sinks) };
        let look = |isa, threads, cache: &KvCache, first: usize, n: usize| {
            let ranges: Vec<_> = (first..first + n).map(|i| (0, len - rows + i + 1)).collect();
            let mut out = vec![f32::NAN; n * heads * head_dim];
            let (scratch, q) = (&mut AttentionScratch::default(), &q[first * heads * head_dim..]);
            attend_ranges(&mut Cores::new(threads, isa), scratch, cache, q, heads, &ranges, scores, &mut out);
            out
        };
        let whole = cache(Isa::SCALAR, shape, &k, &v, len, len);
        let expected = look(Isa::SCALAR, 1, &whole, 0, rows);
        for isa in Isa::available() {
            let pieces = cache(isa, shape, &k, &v, len, piece);
            prop_assert_eq!(pieces.sections(0), whole.sections(0));
            prop_assert_eq!(bits(&look(isa, 2, &pieces, 0, rows)), bits(&expected), "{}", isa);
        }
        let one = heads * head_dim;
        for row in 0..rows {
            let alone = look(Isa::best(), 1, &whole, row, 1);
            prop_assert_eq!(bits(&alone), bits(&expected[row * one..(row + 1) * one]));
        }
        // Its bytes are all that it is.
        let mut back = KvCache::with_len(shape, 0, len);
        for (to, from) in back.sections_mut().into_iter().zip(whole.sections(0)) {
            to.copy_from_slice(from);
        }
        prop_assert_eq!(bits(&look(Isa::best(), 1, &back, 0, rows)), bits(&expected));
        let mut cut = whole.clone();
        cut.truncate(len - rows + 1);
        prop_assert_eq!(bits(&look(Isa::best(), 1, &cut, 0, 1)), bits(&expected[..one]));
    }
}

#[test]
fn pages_are_as_small_as_they_say_and_results_close() {
    let (heads, kv_heads, head_dim, len) = (4, 2, 128, 700);
    let (k, v) = (floats(5, len * kv_heads * head_dim), floats(6, len * kv_heads * head_dim));
    let q = floats(7, heads * head_dim);
    let run = |kind| {
        let shape = KvShape { heads: kv_heads, head_dim, kind };
        let cache = cache(Isa::best(), shape, &k, &v, len, 64);
        assert_eq!(cache.bytes(), len.div_ceil(PAGE) * shape.page_bytes());
        let mut out = vec![0.0; heads * head_dim];
        let scratch = &mut AttentionScratch::default();
        let scores = Scores { scale: 0.09, sinks: Some(&[-1.0, 0.0, 1.0, 2.0]) };
        attend(&mut Cores::new(1, Isa::best()), scratch, &cache, &q, heads, 1, scores, &mut out);
        (out, cache.bytes())
    };
    let (exact, full) = run(KvType::F32);
    let length = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    let mut before = f32::INFINITY;
    for (width, ratio) in [(Width::Two, 7.1), (Width::Three, 4.9), (Width::Four, 3.7), (Width::Eight, 1.9)] {
        let (out, bytes) = run(KvType::Turbo(TurboQuant { keys: width, values: width }));
        assert!(full as f32 / 2.0 / bytes as f32 >= ratio, "{width:?}: {bytes} bytes of {full}");
        let error: Vec<f32> = out.iter().zip(&exact).map(|(a, b)| a - b).collect();
        let error = length(&error) / length(&exact);
        assert!(error < before && error < 0.6, "{width:?}: {error}");
        before = error;
    }
    assert!(before < 0.02, "8 bits: {before}");
}
