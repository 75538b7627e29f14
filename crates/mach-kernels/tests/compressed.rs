//! Compressed attention, residual streams and routing by score: against plain definitions, and the same bits on every
//! instruction set and thread count, however the tokens are split.

mod common;

use common::{Random, bits, everywhere, random};
use mach_kernels::compressed::{
    CellType, CompressedInputs, CompressedScratch, CompressedShape, CompressedState, CompressedWeights,
    IndexInputs, IndexShape, PoolInputs, PoolShape, PoolWeights, attend,
};
use mach_kernels::elementwise::Rope;
use mach_kernels::routing::{Choice, route_by_score};
use mach_kernels::streams::{StreamScratch, StreamShape, StreamWeights, collapse, mix};
use mach_kernels::{Cores, Isa};
use proptest::prelude::*;

const HEAD_DIM: usize = 48;
const ROTARY: usize = 16;
const INDEX_DIM: usize = 16;
const EPS: f32 = 1e-6;

/// A layer's weights and the projections of some tokens.
struct Layer {
    shape: CompressedShape,
    kv_norm: Vec<f32>,
    sinks: Vec<f32>,
    /// `ape` and norm of the two pools.
    pools: [(Vec<f32>, Vec<f32>); 2],
    queries: Vec<f32>,
    keys: Vec<f32>,
    /// Values and gates of the two pools.
    projections: [[Vec<f32>; 2]; 2],
    index_queries: Vec<f32>,
    index_weights: Vec<f32>,
}

fn inner(pool: &PoolShape, width: usize) -> usize {
    if pool.overlap { 2 * width } else { width }
}

impl Layer {
    fn new(r: &mut Random, shape: CompressedShape, tokens: usize) -> Self {
        let ratio = shape.pool.map_or(1, |p| p.ratio);
        let widths = [HEAD_DIM, INDEX_DIM].map(|w| shape.pool.map_or(0, |p| inner(&p, w)));
        let index = shape.pool.and_then(|p| p.index).map_or(0, |i| i.heads);
        Layer {
            shape,
            kv_norm: r.floats(HEAD_DIM),
            sinks: r.floats(shape.heads),
            pools: [(HEAD_DIM, widths[0]), (INDEX_DIM, widths[1])]
                .map(|(width, inner)| (r.floats(ratio * inner), r.floats(width))),
            queries: r.floats(tokens * shape.heads * HEAD_DIM),
            keys: r.floats(tokens * HEAD_DIM),
            projections: widths.map(|w| [r.floats(tokens * w), r.floats(tokens * w)]),
            index_queries: r.floats(tokens * index * INDEX_DIM),
            index_weights: r.floats(tokens * index),
        }
    }

    /// Runs tokens `from..to` of the sequence.
    fn run(&self, cores: &mut Cores, state: &mut CompressedState, from: usize, to: usize) -> Vec<f32> {
        let cut = |x: &[f32], width: usize| x[from * width..to * width].to_vec();
        let CompressedShape { heads, pool, .. } = self.shape;
        let rows = to - from;
        let mut out = vec![f32::NAN; rows * heads * HEAD_DIM];
        let weights = |(ape, norm): &'_ (Vec<f32>, Vec<f32>)| (ape.clone(), norm.clone());
        let pools: Vec<_> = self.pools.iter().map(weights).collect();
        let of = |i: usize| PoolWeights { ape: &pools[i].0, norm: &pools[i].1 };
        let index = pool.and_then(|p| p.index);
        let projected: Vec<[Vec<f32>; 2]> = [HEAD_DIM, INDEX_DIM]
            .iter()
            .zip(&self.projections)
            .map(|(w, both)| {
                let w = pool.map_or(0, |p| inner(&p, *w));
                [cut(&both[0], w), cut(&both[1], w)]
            })
            .collect();
        let inputs_of = |i: usize| PoolInputs { values: &projected[i][0], gates: &projected[i][1] };
        let index_heads = index.map_or(0, |i| i.heads);
        let index_queries = cut(&self.index_queries, index_heads * INDEX_DIM);
        let index_weights = cut(&self.index_weights, index_heads);
        let (queries, keys) = (cut(&self.queries, heads * HEAD_DIM), cut(&self.keys, HEAD_DIM));
        attend(
            cores,
            &self.shape,
            &CompressedWeights {
                kv_norm: &self.kv_norm,
                sinks: &self.sinks,
                pool: pool.map(|_| of(0)),
                index: index.map(|_| of(1)),
                eps: EPS,
            },
            &Rope::new(1e4, ROTARY),
            state,
            &mut CompressedScratch::default(),
            &CompressedInputs {
                queries: &queries,
                keys: &keys,
                pool: pool.map(|_| inputs_of(0)),
                index: index.map(|_| IndexInputs {
                    pool: inputs_of(1),
                    queries: &index_queries,
                    weights: &index_weights,
                }),
            },
            rows,
            &mut out,
        );
        out
    }

    fn norm(x: &[f32], w: Option<&[f32]>) -> Vec<f64> {
        let mean = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / x.len() as f64;
        let factor = 1.0 / (mean + f64::from(EPS)).sqrt();
        let weight = |i: usize| w.map_or(1.0, |w| f64::from(w[i]));
        x.iter().enumerate().map(|(i, v)| f64::from(*v) * factor * weight(i)).collect()
    }

    fn rotate(x: &mut [f64], position: usize, sign: f64) {
        let start = x.len() - ROTARY;
        for i in 0..ROTARY / 2 {
            let angle = position as f64 * 1e4f64.powf(-2.0 * i as f64 / ROTARY as f64);
            let (sin, cos) = (sign * angle.sin(), angle.cos());
            let (a, b) = (x[start + 2 * i], x[start + 2 * i + 1]);
            x[start + 2 * i] = a * cos - b * sin;
            x[start + 2 * i + 1] = b * cos + a * sin;
        }
    }

    /// The entry of a window of pool `which`, by the definition.
    fn entry(&self, which: usize, width: usize, window: usize) -> Vec<f64> {
        let pool = self.shape.pool.unwrap();
        let inner = inner(&pool, width);
        let (ape, norm) = &self.pools[which];
        let [values, gates] = &self.projections[which];
        let mut slots = Vec::new();
        for (half, window) in [(0, window as i64 - 1), (1, window as i64)] {
            if window < 0 || (half == 0 && !pool.overlap) {
                continue;
            }
            for j in 0..pool.ratio {
                slots.push((
                    window as usize * pool.ratio + j,
                    j,
                    if pool.overlap { half * width } else { 0 },
                ));
            }
        }
        let pooled: Vec<f32> = (0..width)
            .map(|c| {
                let gate = |&(t, j, from): &(usize, usize, usize)| {
                    f64::from(gates[t * inner + from + c]) + f64::from(ape[j * inner + from + c])
                };
                let top = slots.iter().map(gate).fold(f64::MIN, f64::max);
                let total: f64 = slots.iter().map(|s| (gate(s) - top).exp()).sum();
                let value = |s: &(usize, usize, usize)| f64::from(values[s.0 * inner + s.2 + c]);
                (slots.iter().map(|s| (gate(s) - top).exp() * value(s)).sum::<f64>() / total) as f32
            })
            .collect();
        let mut entry = Self::norm(&pooled, Some(norm));
        Self::rotate(&mut entry, window * pool.ratio, 1.0);
        entry
    }

    /// The output of the token at `position`, by the definition.
    fn definition(&self, position: usize) -> Vec<f64> {
        let CompressedShape { heads, window, pool, .. } = self.shape;
        let key = |p: usize| {
            let mut key = Self::norm(&self.keys[p * HEAD_DIM..(p + 1) * HEAD_DIM], Some(&self.kv_norm));
            Self::rotate(&mut key, p, 1.0);
            key
        };
        let mut keys: Vec<Vec<f64>> = ((position + 1).saturating_sub(window)..=position).map(key).collect();
        if let Some(pool) = pool {
            let mut seen: Vec<usize> = (0..(position + 1) / pool.ratio).collect();
            if let Some(IndexShape { heads, top_k, .. }) = pool.index {
                let score = |w: usize| -> f64 {
                    let entry = self.entry(1, INDEX_DIM, w);
                    (0..heads)
                        .map(|h| {
                            let at = (position * heads + h) * INDEX_DIM;
                            let wide = |v: &f32| f64::from(*v);
                            let mut q: Vec<f64> =
                                self.index_queries[at..at + INDEX_DIM].iter().map(wide).collect();
                            Self::rotate(&mut q, position, 1.0);
                            let dot: f64 = q.iter().zip(&entry).map(|(a, b)| a * b).sum();
                            f64::from(self.index_weights[position * heads + h]) * dot.max(0.0)
                        })
                        .sum()
                };
                let scores: Vec<f64> = seen.iter().map(|&w| score(w)).collect();
                seen.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                seen.truncate(top_k);
            }
            keys.extend(seen.into_iter().map(|w| self.entry(0, HEAD_DIM, w)));
        }
        let mut out = Vec::new();
        for h in 0..heads {
            let at = (position * heads + h) * HEAD_DIM;
            let mut q = Self::norm(&self.queries[at..at + HEAD_DIM], None);
            Self::rotate(&mut q, position, 1.0);
            let scale = (HEAD_DIM as f64).sqrt();
            let scores: Vec<f64> =
                keys.iter().map(|k| q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() / scale).collect();
            let sink = f64::from(self.sinks[h]);
            let total = scores.iter().map(|s| s.exp()).sum::<f64>() + sink.exp();
            let mut o: Vec<f64> = (0..HEAD_DIM)
                .map(|c| scores.iter().zip(&keys).map(|(s, k)| s.exp() * k[c]).sum::<f64>() / total)
                .collect();
            Self::rotate(&mut o, position, -1.0);
            out.extend(o);
        }
        out
    }
}

fn shapes() -> impl Strategy<Value = CompressedShape> {
    let index =
        (1usize..20, 1usize..6).prop_map(|(heads, top_k)| IndexShape { heads, head_dim: INDEX_DIM, top_k });
    let pool = prop_oneof![
        Just(None),
        index.prop_map(|index| Some(PoolShape { ratio: 4, overlap: true, index: Some(index) })),
        Just(Some(PoolShape { ratio: 16, overlap: false, index: None })),
    ];
    let cells = prop_oneof![Just(CellType::F32), Just(CellType::Bf16)];
    (pool, 1usize..20, 1usize..12, cells).prop_map(|(pool, heads, window, cells)| CompressedShape {
        heads,
        head_dim: HEAD_DIM,
        rotary_dim: ROTARY,
        window,
        pool,
        cells,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn attention_is_what_it_is_defined_to_be(shape in shapes(), tokens in 1usize..60, seed: u64) {
        let shape = CompressedShape { cells: CellType::F32, ..shape };
        let layer = Layer::new(&mut random(seed), shape, tokens);
        let y = everywhere(|isa, threads| {
            let mut state = CompressedState::new(shape);
            layer.run(&mut Cores::new(threads, isa), &mut state, 0, tokens)
        });
        let width = shape.heads * HEAD_DIM;
        // Where two entries score alike, rounding may choose the other: a row in a hundred, at random weights, does not.
        let wrong = (0..tokens).filter(|&t| {
            let expected = layer.definition(t);
            y[t * width..(t + 1) * width].iter().zip(&expected).any(|(a, b)| (f64::from(*a) - b).abs() > 1e-4)
        });
        prop_assert!(wrong.count() <= tokens / 50);
    }

    /// Passes of any length, blocks that are cut short, copies and exported bytes lead to the same bits.
    #[test]
    fn splits_blocks_and_copies_change_nothing(
        shape in shapes(),
        tokens in 2usize..80,
        steps in prop::collection::vec((1usize..20, 0usize..6), 1..40),
        seed: u64,
    ) {
        let layer = Layer::new(&mut random(seed), shape, tokens);
        let mut cores = Cores::new(2, Isa::best());
        let mut whole = CompressedState::new(shape);
        let expected = bits(&layer.run(&mut cores, &mut whole, 0, tokens));
        let (mut state, mut at, mut found) = (CompressedState::new(shape), 0, Vec::new());
        let width = shape.heads * HEAD_DIM;
        for (rows, extra) in steps.into_iter().cycle() {
            if at == tokens {
                break;
            }
            let rows = rows.min(tokens - at);
            let end = (at + rows + extra).min(tokens);
            match extra {
                // A copy at a position inside the pass, and the whole of it; go on from either.
                0 => {
                    state.copy_after(&[rows.div_ceil(2), rows]);
                    found.extend(bits(&layer.run(&mut cores, &mut state, at, at + rows)));
                    let copies = state.take_copies(&[at + rows.div_ceil(2), at + rows]);
                    prop_assert_eq!(copies.len(), 2);
                    prop_assert!(copies[1] == state);
                    let mut fresh = CompressedState::new(shape);
                    layer.run(&mut cores, &mut fresh, 0, at + rows.div_ceil(2));
                    prop_assert!(copies[0] == fresh);
                    state = copies[1].clone();
                }
                // Bytes there and back.
                1 => {
                    found.extend(bits(&layer.run(&mut cores, &mut state, at, at + rows)));
                    let mut other = CompressedState::with_len(shape, at + rows);
                    for (to, from) in other.sections_mut().into_iter().zip(state.sections()) {
                        to.copy_from_slice(from);
                    }
                    prop_assert!(other == state);
                    state = other;
                }
                _ => {
                    state.begin_block();
                    let out = bits(&layer.run(&mut cores, &mut state, at, end));
                    found.extend(&out[..rows * width]);
                    state.truncate(at + rows);
                    prop_assert!(state.bytes() <= CompressedState::bytes_at(&shape, tokens) + 4096);
                }
            }
            at += rows;
        }
        prop_assert!(found == expected);
        prop_assert!(state == whole);
    }

    #[test]
    fn streams_are_what_they_are_defined_to_be(rows in 1usize..9, streams in 1usize..6, seed: u64) {
        let (hidden, mut r) = (32usize, random(seed));
        let shape = StreamShape { streams, hidden, iterations: 20, eps: 1e-6, norm_eps: EPS };
        let outputs = shape.outputs();
        let (project, base, scale) = (r.floats(outputs * streams * hidden), r.floats(outputs), r.floats(3));
        let (x, y) = (r.floats(rows * streams * hidden), r.floats(rows * hidden));
        let all = everywhere(|isa, threads| {
            let mut cores = Cores::new(threads, isa);
            let weights = StreamWeights { project: &project, base: &base, scale: &scale };
            let (mut mixing, mut out, mut after) = (Vec::new(), vec![0.0; rows * hidden], x.clone());
            collapse(&mut cores, &shape, &weights, &x, &mut StreamScratch::default(), &mut mixing, &mut out);
            mix(&mut cores, &shape, &mixing, &y, &mut after);
            [out, after].concat()
        });
        for row in 0..rows {
            let xr = &x[row * streams * hidden..(row + 1) * streams * hidden];
            let f = Layer::norm(xr, None);
            let m: Vec<f64> = (0..outputs)
                .map(|o| {
                    let w = &project[o * f.len()..(o + 1) * f.len()];
                    let dot: f64 = f.iter().zip(w).map(|(a, b)| a * f64::from(*b)).sum();
                    dot * f64::from(scale[(o / streams).min(2)]) + f64::from(base[o])
                })
                .collect();
            let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
            let mut c: Vec<f64> = m[2 * streams..].to_vec();
            for line in c.chunks_exact_mut(streams) {
                let total: f64 = line.iter().map(|v| v.exp()).sum();
                line.iter_mut().for_each(|v| *v = v.exp() / total + 1e-6);
            }
            for step in 0..20 {
                if step > 0 {
                    for line in c.chunks_exact_mut(streams) {
                        let total = line.iter().sum::<f64>() + 1e-6;
                        line.iter_mut().for_each(|v| *v /= total);
                    }
                }
                for k in 0..streams {
                    let total = (0..streams).map(|j| c[j * streams + k]).sum::<f64>() + 1e-6;
                    (0..streams).for_each(|j| c[j * streams + k] /= total);
                }
            }
            for i in 0..hidden {
                let x = |j: usize| f64::from(xr[j * hidden + i]);
                let input: f64 = (0..streams).map(|j| (sigmoid(m[j]) + 1e-6) * x(j)).sum();
                prop_assert!((f64::from(all[row * hidden + i]) - input).abs() < 1e-4);
                for k in 0..streams {
                    let post = 2.0 * sigmoid(m[streams + k]);
                    let mixed: f64 = (0..streams).map(|j| c[j * streams + k] * x(j)).sum();
                    let expected = post * f64::from(y[row * hidden + i]) + mixed;
                    let found = all[rows * hidden + (row * streams + k) * hidden + i];
                    prop_assert!((f64::from(found) - expected).abs() < 1e-4, "{found} {expected}");
                }
            }
        }
    }

    #[test]
    fn scores_choose_by_bias_or_token(rows in 1usize..12, experts in 3usize..20, seed: u64) {
        let mut r = random(seed);
        let k = 3;
        let (logits, bias) = (r.floats(rows * experts), r.floats(experts));
        let table: Vec<f32> = (0..7 * k).map(|i| ((i * 5 + i / k) % experts) as f32).collect();
        let tokens: Vec<u32> = (0..rows as u32).map(|i| i * 3 % 7).collect();
        for choice in [Choice::Best, Choice::Biased(&bias), Choice::ByToken(&table, &tokens)] {
            let found = everywhere(|isa, threads| {
                let (mut chosen, mut weights) = (vec![0; rows * k], vec![0.0; rows * k]);
                let mut scores = logits.clone();
                let cores = &mut Cores::new(threads, isa);
                route_by_score(cores, &mut scores, experts, choice, true, 1.5, &mut chosen, &mut weights);
                chosen.into_iter().map(|e| e as f32).chain(weights).collect()
            });
            let (chosen, weights) = found.split_at(rows * k);
            for row in 0..rows {
                let score = |e: usize| (1.0 + f64::from(logits[row * experts + e]).exp()).ln().sqrt();
                let mut expected: Vec<usize> = match choice {
                    Choice::ByToken(..) => {
                        let at = tokens[row] as usize * k;
                        table[at..at + k].iter().map(|&e| e as usize).collect()
                    }
                    _ => {
                        let add = |e: usize| if matches!(choice, Choice::Best) { 0.0 } else { f64::from(bias[e]) };
                        let mut all: Vec<usize> = (0..experts).collect();
                        all.sort_by(|&a, &b| (score(b) + add(b)).total_cmp(&(score(a) + add(a))));
                        all.truncate(k);
                        all
                    }
                };
                expected.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
                let total: f64 = expected.iter().map(|&e| score(e)).sum();
                for (rank, &e) in expected.iter().enumerate() {
                    prop_assert_eq!(chosen[row * k + rank] as usize, e);
                    let weight = score(e) / total * 1.5;
                    prop_assert!((f64::from(weights[row * k + rank]) - weight).abs() < 1e-5);
                }
            }
        }
    }
}
