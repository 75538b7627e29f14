//! Blocks of tokens that are cut short, and attention over ranges: bit by bit as if the rest had never been.

use mach_kernels::attention::{AttentionScratch, KvCache, KvShape, KvType, Scores, attend, attend_ranges};
use mach_kernels::delta::{
    DeltaInputs, DeltaScratch, DeltaShape, DeltaState, DeltaWeights, gated_delta, rewind,
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_rewound_block_leaves_no_trace(
        heads in 1usize..3, dims in 1usize..6, before in 0usize..6, rows in 1usize..40, keep in 0usize..40, seed: u64,
    ) {
        let keep = keep.min(rows);
        let shape = DeltaShape { key_heads: 1, value_heads: heads, key_dim: 16, value_dim: 16 * dims, taps: 4 };
        let (channels, width) = (shape.channels(), heads * shape.value_dim);
        let all = before + rows + 2;
        let weights = DeltaWeights {
            conv: &floats(seed, 4 * channels),
            dt_bias: &floats(seed ^ 1, heads),
            neg_exp_a: &floats(seed ^ 2, heads).iter().map(|a| -a.abs()).collect::<Vec<_>>(),
            norm: &floats(seed ^ 3, shape.value_dim),
            eps: 1e-6,
        };
        let (u, z) = (floats(seed ^ 4, all * channels), floats(seed ^ 5, all * width));
        let (b, a) = (floats(seed ^ 6, all * heads), floats(seed ^ 7, all * heads));
        for isa in Isa::available() {
            let (mut cores, mut scratch) = (Cores::new(2, isa), DeltaScratch::default());
            let mut step = |state: &mut DeltaState, first: usize, n: usize| {
                let inputs = DeltaInputs {
                    u: &u[first * channels..],
                    z: &z[first * width..],
                    b: &b[first * heads..],
                    a: &a[first * heads..],
                };
                let mut out = vec![f32::NAN; n * width];
                gated_delta(&mut cores, &shape, &weights, state, &mut scratch, &inputs, n, &mut out);
                out
            };
            let (mut plain, mut block) = (DeltaState::new(&shape), DeltaState::new(&shape));
            step(&mut plain, 0, before);
            step(&mut block, 0, before);
            let mut expected = step(&mut plain.clone(), before, rows);
            block.begin_block();
            prop_assert_eq!(bits(&step(&mut block, before, rows)), bits(&expected));
            prop_assert_eq!(block.block_rows(), rows);
            step(&mut plain, before, keep);
            rewind(&mut Cores::new(1, isa), &shape, &weights, &mut block, &mut DeltaScratch::default(), keep);
            prop_assert_eq!(bits(&block.conv), bits(&plain.conv));
            prop_assert_eq!(bits(&block.state), bits(&plain.state));
            // And what follows is the same, a second block included.
            block.begin_block();
            expected = step(&mut plain, before + keep, 2);
            prop_assert_eq!(bits(&step(&mut block, before + keep, 2)), bits(&expected));
            prop_assert_eq!(bits(&block.state), bits(&plain.state));
        }
    }

    #[test]
    fn a_truncated_cache_forgets(len in 1usize..600, extra in 0usize..300, shared: bool, seed: u64) {
        let (dim, rows) = (16, len + extra);
        let (k, v, q) = (floats(seed, rows * dim), floats(seed ^ 1, rows * dim), floats(seed ^ 2, dim));
        let (isa, kind) = (Isa::best(), KvType::Bf16);
        let mut plain = KvCache::new(KvShape { heads: 1, head_dim: dim, kind });
        plain.append(isa, &k, &v, len);
        let mut block = KvCache::new(KvShape { heads: 1, head_dim: dim, kind });
        block.append(isa, &k, &v, rows);
        let other = shared.then(|| block.clone());
        block.truncate(len);
        prop_assert_eq!((block.len(), block.bytes()), (plain.len(), plain.bytes()));
        let look = |cache: &KvCache| {
            let mut out = vec![0.0; dim];
            attend(&mut Cores::new(1, isa), &mut AttentionScratch::default(), cache, &q, 1, 1, 0.25, &mut out);
            bits(&out)
        };
        prop_assert_eq!(look(&block), look(&plain));
        let before = other.as_ref().map(look);
        block.append(isa, &q, &q, 1);
        plain.append(isa, &q, &q, 1);
        prop_assert_eq!(look(&block), look(&plain));
        prop_assert_eq!(other.as_ref().map(look), before);
    }

    #[test]
    fn ranges_are_softmax(len in 1usize..700, rows in 1usize..7, forget: bool, with_sinks: bool, seed: u64) {
        let (dim, heads, kv_heads) = (32, 4, 2);
        let (k, v) = (floats(seed, len * kv_heads * dim), floats(seed ^ 1, len * kv_heads * dim));
        let q = floats(seed ^ 2, rows * heads * dim);
        // Some above every score, some far below.
        let sinks: Vec<f32> = floats(seed ^ 3, heads).into_iter().map(|x| 12.0 * x).collect();
        let scores = Scores { scale: 0.5, sinks: with_sinks.then_some(&sinks) };
        let ranges: Vec<(usize, usize)> = (0..rows)
            .map(|i| {
                let first = (seed as usize).wrapping_add(i * 97) % len;
                (first, first + 1 + (seed as usize).wrapping_add(i * 31) % (len - first))
            })
            .collect();
        let run = |isa, threads, ranges: &[(usize, usize)], q: &[f32]| {
            let mut cache = KvCache::new(KvShape { heads: kv_heads, head_dim: dim, kind: KvType::F32 });
            cache.append(isa, &k, &v, len);
            if forget {
                cache.forget_before(ranges.iter().map(|r| r.0).min().unwrap_or(0));
            }
            let mut out = vec![f32::NAN; ranges.len() * heads * dim];
            let scratch = &mut AttentionScratch::default();
            attend_ranges(&mut Cores::new(threads, isa), scratch, &cache, q, heads, ranges, scores, &mut out);
            out
        };
        let got = run(Isa::SCALAR, 1, &ranges, &q);
        for isa in Isa::available() {
            prop_assert_eq!(bits(&run(isa, 2, &ranges, &q)), bits(&got));
        }
        for (row, &(first, end)) in ranges.iter().enumerate() {
            let alone = run(Isa::best(), 1, &ranges[row..=row], &q[row * heads * dim..(row + 1) * heads * dim]);
            prop_assert_eq!(bits(&alone), bits(&got[row * heads * dim..(row + 1) * heads * dim]));
            for h in 0..heads {
                let qh = &q[(row * heads + h) * dim..][..dim];
                let at = |j: usize| (j * kv_heads + h / 2) * dim;
                let weight: Vec<f64> = (first..end)
                    .map(|j| (0.5 * qh.iter().zip(&k[at(j)..]).map(|(a, b)| f64::from(a * b)).sum::<f64>()).exp())
                    .collect();
                let sink = if with_sinks { f64::from(sinks[h]).exp() } else { 0.0 };
                let total: f64 = weight.iter().sum::<f64>() + sink;
                for d in 0..dim {
                    let sum: f64 = (first..end).zip(&weight).map(|(j, w)| w / total * f64::from(v[at(j) + d])).sum();
                    prop_assert!((f64::from(got[(row * heads + h) * dim + d]) - sum).abs() < 1e-4);
                }
            }
        }
    }
}
