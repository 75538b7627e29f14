//! Kernels against plain definitions, and against themselves on every instruction set and thread count, bit by bit, on
//! random shapes with unaligned tails.

mod common;

use common::{Weights, bits, everywhere, int8_definition, product, random};
use mach_kernels::attention::{AttentionScratch, KvCache, KvShape, KvType, attend};
use mach_kernels::delta::{DeltaInputs, DeltaScratch, DeltaShape, DeltaState, DeltaWeights, gated_delta};
use mach_kernels::elementwise::{self, Activation, Gating, Rope, SoftmaxOver, Stretch};
use mach_kernels::experts::{BiasRef, ExpertJob, ExpertRef, FfnScratch, combine, expert_ffn};
use mach_kernels::{Cores, Isa};
use mach_quant::{Bits, Codec, FloatType, Order};
use proptest::prelude::*;

fn quantized() -> impl Strategy<Value = Codec> {
    let scales = prop_oneof![Just(FloatType::Bf16), Just(FloatType::F32)];
    prop_oneof![
        Just(Codec::Mxfp4),
        (prop::sample::select(&Bits::ALL[..]), prop_oneof![Just(32usize), Just(64), Just(128)], scales)
            .prop_map(|(bits, group, scales)| Codec::Affine { bits, group, scales }),
    ]
}

fn gating() -> impl Strategy<Value = Gating> {
    let activation = prop_oneof![
        Just(Activation::Silu),
        Just(Activation::GeluTanh),
        Just(Activation::SigmoidPlusOne { alpha: 1.702 })
    ];
    (activation, prop::option::of(0.3f32..2.0)).prop_map(|(activation, clamp)| Gating { activation, clamp })
}

/// A gated pair by its definition.
fn by_definition(Gating { activation, clamp }: Gating, gate: f32, up: f32) -> f64 {
    let bounds = clamp.map_or((f64::NEG_INFINITY, f64::INFINITY), |c| (-f64::from(c), f64::from(c)));
    let (g, u) = (f64::from(gate).min(bounds.1), f64::from(up).clamp(bounds.0, bounds.1));
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Silu => g * sigmoid(g) * u,
        Activation::GeluTanh => {
            let z = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3));
            0.5 * g * (1.0 + z.tanh()) * u
        }
        Activation::SigmoidPlusOne { alpha } => g * sigmoid(f64::from(alpha) * g) * (u + 1.0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn int8_products(codec in quantized(), n in 1usize..70, groups in 1usize..5, m in 1usize..24, seed: u64) {
        let mut r = random(seed);
        let cols = groups * codec.group().unwrap();
        let w = Weights::new(&mut r, codec, n, cols, Order::Tiles);
        let mut x = r.floats(m * cols);
        x[..cols.min(32)].fill(0.0);
        let y = everywhere(|isa, threads| product(isa, threads, &w, &x, m));
        for row in 0..m {
            let xr = &x[row * cols..(row + 1) * cols];
            let size: f32 = xr.iter().map(|v| v.abs()).sum::<f32>() * 30.0 + 1.0;
            for o in 0..n {
                let expected = int8_definition(&w, xr, o);
                prop_assert!((y[row * n + o] - expected).abs() < size * 1e-6, "{} {expected}", y[row * n + o]);
            }
            // A row alone has the same bits as in company.
            let alone = product(Isa::best(), 1, &w, xr, 1);
            prop_assert_eq!(bits(&alone), bits(&y[row * n..(row + 1) * n]));
        }
    }

    #[test]
    fn float_products(codec in prop_oneof![quantized(), Just(Codec::Dense(FloatType::Bf16)), Just(Codec::Dense(FloatType::F32))],
                      n in 1usize..40, groups in 1usize..4, tail in 0usize..16, m in 1usize..14, seed: u64) {
        let mut r = random(seed);
        let cols = codec.group().map_or(groups * 16 + tail, |g| g * groups);
        let w = Weights::new(&mut r, codec, n, cols, Order::Rows);
        let x = r.floats(m * cols);
        let y = everywhere(|isa, threads| product(isa, threads, &w, &x, m));
        for row in 0..m {
            let xr = &x[row * cols..(row + 1) * cols];
            for o in 0..n {
                let terms: Vec<f64> = w.row(o).iter().zip(xr).map(|(w, x)| f64::from(*w) * f64::from(*x)).collect();
                let (expected, size): (f64, f64) = (terms.iter().sum(), terms.iter().map(|t| t.abs()).sum());
                prop_assert!((f64::from(y[row * n + o]) - expected).abs() <= size * 1e-5 + 1e-6);
            }
            let alone = product(Isa::best(), 1, &w, xr, 1);
            prop_assert_eq!(bits(&alone), bits(&y[row * n..(row + 1) * n]));
        }
    }

    #[test]
    fn attention_is_softmax(kv_heads in 1usize..3, group in 1usize..6, dims in 1usize..5, len in 1usize..600, rows in 1usize..9, seed: u64) {
        let rows = rows.min(len);
        let (head_dim, heads) = (16 * dims, kv_heads * group);
        let mut r = random(seed);
        let k = r.floats(len * kv_heads * head_dim);
        let v = r.floats(len * kv_heads * head_dim);
        let q: Vec<f32> = r.floats(rows * heads * head_dim).iter().map(|x| x * 3.0).collect();
        let scale = 1.0 / (head_dim as f32).sqrt();
        for kind in [KvType::F32, KvType::Bf16] {
            let run = |isa, threads, rows_at_once: usize| {
                let mut cache = KvCache::new(KvShape { heads: kv_heads, head_dim, kind });
                let (w, qw) = (kv_heads * head_dim, heads * head_dim);
                cache.append(isa, &k[..(len - rows) * w], &v[..(len - rows) * w], len - rows);
                let (mut cores, mut out) = (Cores::new(threads, isa), vec![f32::NAN; rows * qw]);
                for first in (0..rows).step_by(rows_at_once) {
                    let n = rows_at_once.min(rows - first);
                    let at = (len - rows + first) * w;
                    cache.append(isa, &k[at..], &v[at..], n);
                    let (q, out) = (&q[first * qw..], &mut out[first * qw..]);
                    attend(&mut cores, &mut AttentionScratch::default(), &cache, q, heads, n, scale, out);
                }
                out
            };
            let got = everywhere(|isa, threads| run(isa, threads, rows));
            prop_assert_eq!(bits(&run(Isa::best(), 2, 1)), bits(&got), "row by row");
            let tolerance = if kind == KvType::F32 { 1e-4 } else { 0.05 };
            for row in 0..rows {
                for h in 0..heads {
                    let qh = &q[(row * heads + h) * head_dim..][..head_dim];
                    let at = |j: usize| (j * kv_heads + h / group) * head_dim;
                    let seen = len - rows + row + 1;
                    let logits: Vec<f64> = (0..seen).map(|j| {
                        qh.iter().zip(&k[at(j)..]).map(|(a, b)| f64::from(a * b)).sum::<f64>() * f64::from(scale)
                    }).collect();
                    let top = logits.iter().fold(f64::MIN, |m, &l| m.max(l));
                    let total: f64 = logits.iter().map(|l| (l - top).exp()).sum();
                    for d in 0..head_dim {
                        let expected: f64 = (0..seen).map(|j| (logits[j] - top).exp() / total * f64::from(v[at(j) + d])).sum();
                        let y = got[(row * heads + h) * head_dim + d];
                        prop_assert!((f64::from(y) - expected).abs() < tolerance, "{y} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn gated_delta_is_the_recurrence(key_heads in 1usize..3, r_heads in 1usize..3, kd in 1usize..3, vd in 1usize..6, rows in 1usize..9, seed: u64) {
        let shape = DeltaShape { key_heads, value_heads: key_heads * r_heads, key_dim: 16 * kd, value_dim: 16 * vd, taps: 4 };
        let (channels, hv) = (shape.channels(), shape.value_heads);
        let width = hv * shape.value_dim;
        let mut r = random(seed);
        let conv = r.floats(4 * channels);
        let (dt_bias, norm) = (r.floats(hv), r.floats(shape.value_dim));
        let neg_exp_a: Vec<f32> = r.floats(hv).iter().map(|x| -x.abs()).collect();
        let (u, z, b, a) = (r.floats(rows * channels), r.floats(rows * width), r.floats(rows * hv), r.floats(rows * hv));
        let weights = DeltaWeights { conv: &conv, dt_bias: &dt_bias, neg_exp_a: &neg_exp_a, norm: &norm, eps: 1e-6 };
        let run = |isa, threads, step: usize| {
            let (mut cores, mut state) = (Cores::new(threads, isa), DeltaState::new(&shape));
            let mut out = vec![f32::NAN; rows * width];
            for first in (0..rows).step_by(step) {
                let n = step.min(rows - first);
                let inputs = DeltaInputs { u: &u[first * channels..], z: &z[first * width..], b: &b[first * hv..], a: &a[first * hv..] };
                let out = &mut out[first * width..(first + n) * width];
                gated_delta(&mut cores, &shape, &weights, &mut state, &mut DeltaScratch::default(), &inputs, n, out);
            }
            [out, state.conv, state.state].concat()
        };
        let got = everywhere(|isa, threads| run(isa, threads, rows));
        prop_assert_eq!(bits(&run(Isa::best(), 2, 1)), bits(&got), "token by token");

        // architectures.md section 2.6 in f64.
        let silu = |x: f64| x / (1.0 + (-x).exp());
        let mut s = vec![0.0f64; hv * shape.key_dim * shape.value_dim];
        for t in 0..rows {
            let c: Vec<f64> = (0..channels).map(|ch| {
                silu((0..4).filter(|j| t + j >= 3).map(|j| f64::from(conv[j * channels + ch]) * f64::from(u[(t + j - 3) * channels + ch])).sum())
            }).collect();
            let unit = |at: usize| -> Vec<f64> {
                let v = &c[at..at + shape.key_dim];
                let length = (v.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                v.iter().map(|x| x / length).collect()
            };
            for h in 0..hv {
                let kh = h / r_heads;
                let q: Vec<f64> = unit(kh * shape.key_dim).iter().map(|x| x / (shape.key_dim as f64).sqrt()).collect();
                let k = unit((key_heads + kh) * shape.key_dim);
                let v = &c[2 * key_heads * shape.key_dim + h * shape.value_dim..][..shape.value_dim];
                let beta = 1.0 / (1.0 + (-f64::from(b[t * hv + h])).exp());
                let g = f64::from(neg_exp_a[h]) * (1.0 + f64::from(a[t * hv + h] + dt_bias[h]).exp()).ln();
                let s = &mut s[h * shape.key_dim * shape.value_dim..][..shape.key_dim * shape.value_dim];
                s.iter_mut().for_each(|x| *x *= g.exp());
                let mut o = vec![0.0; shape.value_dim];
                for j in 0..shape.value_dim {
                    let m: f64 = (0..shape.key_dim).map(|i| k[i] * s[i * shape.value_dim + j]).sum();
                    let d = (v[j] - m) * beta;
                    for i in 0..shape.key_dim {
                        s[i * shape.value_dim + j] += k[i] * d;
                        o[j] += q[i] * s[i * shape.value_dim + j];
                    }
                }
                let rms = (o.iter().map(|x| x * x).sum::<f64>() / o.len() as f64 + 1e-6).sqrt();
                for j in 0..shape.value_dim {
                    let at = (t * hv + h) * shape.value_dim + j;
                    let expected = o[j] / rms * f64::from(norm[j]) * silu(f64::from(z[at]));
                    prop_assert!((f64::from(got[at]) - expected).abs() < 2e-3, "{} {expected}", got[at]);
                }
            }
        }
    }

    #[test]
    fn experts_are_their_networks(codec in quantized(), tokens in 1usize..13, experts in 1usize..5, gating in gating(), biased: bool, seed: u64) {
        let mut r = random(seed);
        let (hidden, width) = (128, 128);
        let order = if seed % 2 == 0 { Order::Tiles } else { Order::Rows };
        let nets: Vec<[Weights; 3]> = (0..experts)
            .map(|_| [(width, hidden), (width, hidden), (hidden, width)].map(|(n, c)| Weights::new(&mut r, codec, n, c, order)))
            .collect();
        // Every other expert's are bfloat16, at addresses that are no multiple of their size.
        let biases: Vec<[Vec<f32>; 3]> = (0..experts).map(|e| {
            let round = |v: f32| if e % 2 == 0 { v } else { half::bf16::from_f32(v).to_f32() };
            [width, width, hidden].map(|n| r.floats(n).into_iter().map(round).collect())
        }).collect();
        let stored: Vec<[Vec<u8>; 3]> = biases.iter().map(|b| b.each_ref().map(|values| {
            std::iter::once(0).chain(values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes())).collect()
        })).collect();
        let bias = |e: usize, m: usize| biased.then(|| match e % 2 {
            0 => BiasRef::Floats(&biases[e][m]),
            _ => BiasRef::Stored(FloatType::Bf16, &stored[e][m][1..]),
        });
        let x = r.floats(tokens * hidden);
        let lists: Vec<Vec<u32>> = (0..experts).map(|_| (0..tokens as u32).filter(|_| !r.next().is_multiple_of(3)).collect()).collect();
        let run = |isa, threads| {
            let mut first_pair = 0;
            let jobs: Vec<ExpertJob<'_>> = nets.iter().zip(&lists).enumerate().filter(|(_, (_, l))| !l.is_empty()).map(|(e, ([g, u, d], rows))| {
                let biases = [0, 1, 2].map(|m| bias(e, m));
                let expert = ExpertRef { gate: g.view(), up: u.view(), down: d.view(), biases, gating };
                let job = ExpertJob { expert, rows, first_pair };
                first_pair += rows.len();
                job
            }).collect();
            let mut out = vec![f32::NAN; first_pair * hidden];
            expert_ffn(&mut Cores::new(threads, isa), &mut FfnScratch::default(), &x, &jobs, &mut out);
            out
        };
        let got = everywhere(run);
        let mut pair = 0;
        for (e, ([g, u, d], list)) in nets.iter().zip(&lists).enumerate() {
            for &row in list {
                let xr = &x[row as usize * hidden..(row as usize + 1) * hidden];
                let isa = Isa::best();
                let (mut h, up) = (product(isa, 1, g, xr, 1), product(isa, 1, u, xr, 1));
                let mut cores = Cores::new(1, isa);
                let mut up = up;
                if biased {
                    elementwise::add_bias(&mut cores, &mut h, &biases[e][0]);
                    elementwise::add_bias(&mut cores, &mut up, &biases[e][1]);
                }
                elementwise::gate(&mut cores, gating, &mut h, &up);
                let mut y = product(isa, 1, d, &h, 1);
                if biased {
                    elementwise::add_bias(&mut cores, &mut y, &biases[e][2]);
                }
                prop_assert_eq!(bits(&y), bits(&got[pair * hidden..(pair + 1) * hidden]));
                pair += 1;
            }
        }
    }

    #[test]
    fn norms_and_activations(rows in 1usize..9, n in 1usize..200, gating in gating(), seed: u64) {
        let mut r = random(seed);
        let (x, y, w) = (r.floats(rows * n), r.floats(rows * n), r.floats(n));
        let normed = everywhere(|isa, threads| {
            let mut out = vec![0.0; rows * n];
            elementwise::rms_norm(&mut Cores::new(threads, isa), &x, &w, 1e-6, &mut out);
            out
        });
        for row in 0..rows {
            let xs = &x[row * n..(row + 1) * n];
            let rms = (xs.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n as f64 + 1e-6).sqrt();
            for i in 0..n {
                prop_assert!((f64::from(normed[row * n + i]) - f64::from(xs[i]) / rms * f64::from(w[i])).abs() < 1e-5);
            }
        }
        let gated = everywhere(|isa, threads| {
            let mut out = x.clone();
            elementwise::gate(&mut Cores::new(threads, isa), Gating::SILU, &mut out, &y);
            elementwise::sigmoid_mul(&mut Cores::new(threads, isa), &mut out, &y);
            elementwise::add(&mut Cores::new(threads, isa), &mut out, &y);
            out
        });
        for i in 0..rows * n {
            let (a, b) = (f64::from(x[i]), f64::from(y[i]));
            let expected = a / (1.0 + (-a).exp()) * b / (1.0 + (-b).exp()) + b;
            prop_assert!((f64::from(gated[i]) - expected).abs() < 1e-5);
        }
        let (wide, other): (Vec<f32>, Vec<f32>) = x.iter().zip(&y).map(|(x, y)| (6.0 * x, 6.0 * y)).unzip();
        let combined = everywhere(|isa, threads| {
            let mut out = wide.clone();
            elementwise::gate(&mut Cores::new(threads, isa), gating, &mut out, &other);
            out
        });
        for i in 0..rows * n {
            let expected = by_definition(gating, wide[i], other[i]);
            prop_assert!((f64::from(combined[i]) - expected).abs() < 2e-5, "{gating:?}: {} {expected}", combined[i]);
        }
        let biased = everywhere(|isa, threads| {
            let mut out = x.clone();
            elementwise::add_bias(&mut Cores::new(threads, isa), &mut out, &w);
            out
        });
        prop_assert!((0..rows * n).all(|i| biased[i] == x[i] + w[i % n]));
        let soft = everywhere(|isa, _| { let mut out = x[..n].to_vec(); elementwise::softmax(isa, &mut out); out });
        prop_assert!((soft.iter().sum::<f32>() - 1.0).abs() < 1e-4);
    }

    #[test]
    fn top_k_is_a_sorted_prefix(scores in prop::collection::vec(-4i32..4, 1..60), k in 1usize..9) {
        let scores: Vec<f32> = scores.into_iter().map(|v| v as f32).collect();
        let mut out = Vec::new();
        elementwise::top_k(&scores, k.min(scores.len()), &mut out);
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
        order.truncate(k.min(scores.len()));
        prop_assert_eq!(out, order);
    }
}

#[test]
fn what_is_no_number_stays_so_in_a_clamp() {
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::SigmoidPlusOne { alpha: 1.702 }] {
        for isa in Isa::available() {
            let mut out = [f32::NAN, 1.0, 100.0];
            let gating = Gating { activation, clamp: Some(7.0) };
            elementwise::gate(&mut Cores::new(1, isa), gating, &mut out, &[1.0, f32::NAN, -100.0]);
            assert!(out[0].is_nan() && out[1].is_nan(), "{isa} {activation:?}: {out:?}");
            assert!((f64::from(out[2]) - by_definition(gating, 100.0, -100.0)).abs() < 1e-4, "{out:?}");
        }
    }
}

/// architectures.md section 1.2, for the sizes of gpt-oss and for others that meet every bound.
#[test]
fn stretched_rotations_are_those_of_yarn() {
    for (dim, theta, factor, original, truncate, magnitude) in [
        (64usize, 150_000.0f64, 32.0f64, 4096usize, false, 1.346_573_59f64),
        (64, 150_000.0, 32.0, 4096, true, 1.0),
        (32, 10_000.0, 16.0, 65_536, true, 1.0),
        (16, 10_000.0, 4.0, 16, false, 1.2),
    ] {
        let (beta_fast, beta_slow) = (32.0f64, 1.0f64);
        let stretch = Stretch { factor, original, beta_fast, beta_slow, truncate, magnitude };
        let rope = Rope::stretched(theta, dim, &stretch);
        let bound = |b: f64| {
            dim as f64 * (original as f64 / (2.0 * std::f64::consts::PI * b)).ln() / (2.0 * theta.ln())
        };
        let (mut low, mut high) = (bound(beta_fast), bound(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        for position in [0, 1, 77, 5000] {
            let mut angles = Vec::new();
            rope.angles(position, &mut angles);
            assert_eq!(angles.len(), dim);
            for i in 0..dim / 2 {
                let plain = theta.powf(-2.0 * i as f64 / dim as f64);
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                let f = plain / factor * ramp + plain * (1.0 - ramp);
                // The product of position and frequency is rounded to f32.
                let angle = f64::from(position as f32 * f as f32);
                let (cos, sin) = (magnitude * angle.cos(), magnitude * angle.sin());
                let close = |a: f32, b: f64| (f64::from(a) - b).abs() < 1e-3;
                assert!(close(angles[i], cos) && close(angles[dim / 2 + i], sin), "{dim} {position} {i}");
            }
        }
    }
    let (mut plain, mut stretched) = (Vec::new(), Vec::new());
    Rope::new(1e4, 32).angles(9, &mut plain);
    let none = Stretch {
        factor: 1.0,
        original: 4096,
        beta_fast: 32.0,
        beta_slow: 1.0,
        truncate: true,
        magnitude: 1.0,
    };
    Rope::stretched(1e4, 32, &none).angles(9, &mut stretched);
    assert!(plain.iter().zip(&stretched).all(|(a, b)| (a - b).abs() < 1e-6));
}

#[test]
fn routing_over_the_chosen_is_their_softmax() {
    let logits = [0.5f32, 3.0, -1.0, 2.0, 2.5, -200.0, 1.0, 0.0];
    let (mut experts, mut weights) = (vec![0; 6], vec![0.0; 6]);
    for isa in Isa::available() {
        let mut scores = [logits, logits.map(|x| -x)].concat();
        let over = SoftmaxOver::Chosen;
        elementwise::route(&mut Cores::new(1, isa), &mut scores, 8, over, &mut experts, &mut weights);
        assert_eq!(experts, [1, 4, 3, 5, 2, 7]);
        let total: f32 = [3.0f32, 2.5, 2.0].iter().map(|x| x.exp()).sum();
        for (weight, logit) in weights.iter().zip([3.0f32, 2.5, 2.0]) {
            assert!((weight - logit.exp() / total).abs() < 1e-6, "{isa}: {weights:?}");
        }
        assert_eq!(weights[3], 1.0, "{weights:?}");
    }
}

#[test]
fn ranks_are_summed_in_order() {
    let pairs = [1.0f32, 2.0, 10.0, 20.0, 100.0, 200.0, 1000.0, 2000.0];
    let (weights, places) = ([1.0, 0.5, 2.0, 0.25], [1, 0, 3, 2]);
    let out = everywhere(|isa, threads| {
        let mut out = vec![1.0; 4];
        combine(&mut Cores::new(threads, isa), &pairs, &weights, &places, 2, 2, &mut out);
        out
    });
    assert_eq!(out, [1.0 + 10.5, 1.0 + 21.0, 1.0 + 2025.0, 1.0 + 4050.0]);
}
