//! Attention gives the bits of the scalar twin: split over pages and not, with windows, sinks, odd shapes.

mod common;

use common::{DEADLINE, differing, floats, uniform};
use mach_gpu::kernels::attention::{self, Attention, Batch, Blocks, Buffers, attend, attention, gate};
use mach_gpu::kernels::heads::page_words;
use mach_gpu::{Pipelines, Recorder, Storage};
use mach_kernels::attention::{AttentionScratch, KvCache, KvShape, KvType, PAGE, Scores, attend_ranges};
use mach_kernels::{Cores, Isa, elementwise};

struct Case {
    heads: usize,
    query_heads: usize,
    head_dim: usize,
    len: usize,
    rows: usize,
    window: Option<usize>,
    causal: bool,
    sinks: bool,
}

fn check(pipelines: &Pipelines, case: &Case, split: bool) {
    let context = pipelines.context();
    let &Case { heads, query_heads, head_dim, len, rows, window, causal, sinks } = case;
    let shape = KvShape { heads, head_dim, kind: KvType::Bf16 };
    let mut cache = KvCache::new(shape);
    let (k, v) = (uniform(len * heads * head_dim, 1, 2.0), floats(len * heads * head_dim, 2, 3));
    cache.append(Isa::SCALAR, &k, &v, len);
    let q = uniform(rows * query_heads * head_dim, 3, 2.0);
    let sink = uniform(query_heads, 4, 3.0);
    let ranges: Vec<(usize, usize)> = (len - rows..len)
        .map(|at| {
            let first = (at + 1).saturating_sub(window.unwrap_or(usize::MAX));
            (first, if causal { at + 1 } else { len })
        })
        .collect();
    let scale = 1.0 / (head_dim as f32).sqrt();
    let mut want = vec![0.0; q.len()];
    let scores = Scores { scale, sinks: sinks.then_some(&sink[..]) };
    let mut scratch = AttentionScratch::default();
    let mut cores = Cores::new(1, Isa::SCALAR);
    attend_ranges(&mut cores, &mut scratch, &cache, &q, query_heads, &ranges, scores, &mut want);

    // Pages in falling order; rows behind one of another sequence.
    let words = page_words(heads as u32, head_dim as u32) as usize;
    let count = len.div_ceil(PAGE);
    let mut pool = vec![0x7FC0_7FC0u32; count * words];
    let mut full = cache.clone();
    let pad = count * PAGE - len;
    full.append(
        Isa::SCALAR,
        &vec![f32::NAN; pad * heads * head_dim],
        &vec![f32::NAN; pad * heads * head_dim],
        pad,
    );
    for (p, page) in full.sections(0).into_iter().enumerate() {
        pool[(count - 1 - p) * words..][..words].copy_from_slice(page);
    }
    let table: Vec<u32> = [77, 77].into_iter().chain((0..count as u32).rev()).collect();
    let flat: Vec<u32> = ranges.iter().flat_map(|&(a, b)| [a as u32, b as u32]).collect();
    let behind = [vec![f32::NAN; query_heads * head_dim], q].concat();
    let params = Attention {
        heads: heads as u32,
        query_heads: query_heads as u32,
        head_dim: head_dim as u32,
        rows: rows as u32,
        first_row: 1,
        table_at: 2,
        ranges_at: 0,
        pages: (ranges[0].0 / PAGE) as u32..count as u32,
        scale,
    };
    let q = Storage::of(context, &behind).unwrap();
    let [pool, table, ranges] = [&pool, &table, &flat].map(|x| Storage::of(context, x).unwrap());
    let sink = Storage::of(context, &sink).unwrap();
    let parts = split.then(|| Storage::new(context, params.parts_bytes()).unwrap());
    let out = Storage::new(context, 4 * behind.len() as u64).unwrap();
    let mut recorder = Recorder::new(context);
    let buffers = Buffers {
        q: (&q).into(),
        pages: (&pool).into(),
        table: (&table).into(),
        ranges: (&ranges).into(),
        sinks: sinks.then_some((&sink).into()),
        parts: parts.as_ref(),
        out: (&out).into(),
    };
    attention(&mut recorder, pipelines, &params, &buffers).unwrap();
    recorder.submit().wait(DEADLINE).unwrap();
    let got: Vec<f32> = out.read(context, DEADLINE).unwrap();
    let why = differing(&got[query_heads * head_dim..], &want);
    assert_eq!(
        why, None,
        "{heads} of {head_dim} for {query_heads}, {rows} of {len}, {window:?}, sinks {sinks}, split {split}"
    );
}

#[test]
fn attention_gives_the_twin_s_bits() {
    let Some(pipelines) = common::pipelines() else { return };
    let plain = Case {
        heads: 2,
        query_heads: 8,
        head_dim: 64,
        len: 700,
        rows: 1,
        window: None,
        causal: true,
        sinks: false,
    };
    let cases = [
        Case { heads: 2, query_heads: 16, head_dim: 128, len: 513, ..plain },
        Case { rows: 5, sinks: true, ..plain },
        Case { heads: 1, query_heads: 3, head_dim: 80, len: 300, rows: 11, ..plain },
        Case { len: 1, ..plain },
        Case { len: 257, rows: 257, query_heads: 2, ..plain },
        Case { window: Some(128), len: 600, rows: 40, sinks: true, ..plain },
        Case { window: Some(300), len: 1100, rows: 7, ..plain },
        Case { window: Some(20), len: 530, rows: 20, causal: false, ..plain },
        Case { heads: 1, query_heads: 2, head_dim: 256, len: 520, rows: 9, ..plain },
        Case { heads: 1, query_heads: 4, head_dim: 512, len: 270, rows: 3, ..plain },
    ];
    for case in &cases {
        check(&pipelines, case, false);
        check(&pipelines, case, true);
    }
}

#[test]
fn attention_without_shuffles_gives_the_twin_s_bits() {
    let Some(context) = common::context_without(wgpu::Features::SUBGROUP) else { return };
    assert!(!context.has_shuffles());
    let Some(pipelines) = common::pipelines_of(context) else { return };
    let case = Case {
        heads: 2,
        query_heads: 8,
        head_dim: 128,
        len: 300,
        rows: 3,
        window: None,
        causal: true,
        sinks: true,
    };
    check(&pipelines, &case, false);
    check(&pipelines, &Case { query_heads: 2, rows: 1, ..case }, true);
}

/// Sequences of several lengths in one pass, with gates: each row's result is that of its sequence alone.
#[test]
fn sequences_share_a_pass() {
    let Some(pipelines) = common::pipelines() else { return };
    let context = pipelines.context();
    // Positions and rows of each sequence.
    let sequences = [(300usize, 1usize), (1, 1), (700, 3), (257, 9)];
    for (heads, query_heads, head_dim) in [(2usize, 8usize, 64usize), (1, 2, 128), (1, 1, 16)] {
        let rows: usize = sequences.iter().map(|(_, rows)| rows).sum();
        let width = query_heads * head_dim;
        let (q, gates) = (uniform(rows * width, 1, 2.0), uniform(rows * width, 2, 4.0));
        let raw: Vec<f32> =
            q.chunks(head_dim).zip(gates.chunks(head_dim)).flat_map(|(q, gate)| [q, gate].concat()).collect();
        let (scale, group) = (1.0 / (head_dim as f32).sqrt(), (query_heads / heads) as u32);
        let words = page_words(heads as u32, head_dim as u32) as usize;
        let most = sequences.iter().map(|(_, rows)| *rows).max().unwrap() as u32;
        let queries = attention::queries(group, head_dim as u32, most);
        let (mut want, mut pool, mut table) = (vec![0.0; rows * width], Vec::new(), vec![5u32]);
        let (mut ranges, mut blocks, mut row) = (Vec::<u32>::new(), Vec::new(), 0);
        for (n, &(len, count)) in sequences.iter().enumerate() {
            let shape = KvShape { heads, head_dim, kind: KvType::Bf16 };
            let mut cache = KvCache::new(shape);
            let (k, v) =
                (uniform(len * heads * head_dim, n as u32, 2.0), floats(len * heads * head_dim, 9, 3));
            cache.append(Isa::SCALAR, &k, &v, len);
            let seen: Vec<(usize, usize)> = (len - count..len).map(|at| (0, at + 1)).collect();
            let part = row * width..(row + count) * width;
            let (mut cores, mut scratch) = (Cores::new(1, Isa::SCALAR), AttentionScratch::default());
            let out = &mut want[part.clone()];
            attend_ranges(&mut cores, &mut scratch, &cache, &q[part], query_heads, &seen, scale, out);
            let pages = len.div_ceil(PAGE);
            let pad = pages * PAGE - len;
            let zeros = vec![0.0; pad * heads * head_dim];
            cache.append(Isa::SCALAR, &zeros, &zeros, pad);
            attention::blocks((row as u32, count as u32), table.len() as u32, group, queries, &mut blocks);
            table.extend((0..pages).map(|page| (pool.len() / words + page) as u32));
            cache.sections(0).into_iter().for_each(|page| pool.extend_from_slice(page));
            ranges.extend(seen.iter().flat_map(|&(first, end)| [first as u32, end as u32]));
            row += count;
        }
        elementwise::sigmoid_mul(&mut Cores::new(1, Isa::SCALAR), &mut want, &gates);
        let [q, raw] = [&q, &raw].map(|x| Storage::of(context, x).unwrap());
        let [pool, table, ranges] = [&pool, &table, &ranges].map(|x| Storage::of(context, x).unwrap());
        let list = Storage::of(context, blocks.as_flattened()).unwrap();
        let params = Attention {
            heads: heads as u32,
            query_heads: query_heads as u32,
            head_dim: head_dim as u32,
            rows: rows as u32,
            first_row: 0,
            table_at: 0,
            ranges_at: 0,
            pages: 0..3,
            scale,
        };
        for split in [false, true] {
            let parts = split.then(|| Storage::new(context, params.parts_bytes()).unwrap());
            let out = Storage::new(context, 4 * want.len() as u64).unwrap();
            let buffers = Buffers {
                q: (&q).into(),
                pages: (&pool).into(),
                table: (&table).into(),
                ranges: (&ranges).into(),
                sinks: None,
                parts: parts.as_ref(),
                out: (&out).into(),
            };
            let batch = Batch {
                blocks: Some(Blocks { list: (&list).into(), count: blocks.len() as u32, queries }),
                gates: Some(((&raw).into(), 0)),
            };
            let mut recorder = Recorder::new(context);
            attend(&mut recorder, &pipelines, &params, &buffers, &batch).unwrap();
            recorder.submit().wait(DEADLINE).unwrap();
            let got: Vec<f32> = out.read(context, DEADLINE).unwrap();
            assert_eq!(
                differing(&got, &want),
                None,
                "{heads} of {head_dim} for {query_heads}, split {split}"
            );
        }
    }
}

#[test]
fn gates_give_the_twin_s_bits() {
    let Some(pipelines) = common::pipelines() else { return };
    let context = pipelines.context();
    let (rows, heads, head_dim) = (3, 5, 80);
    let (q, mut x) = (floats(rows * heads * 2 * head_dim, 1, 5), floats(rows * heads * head_dim, 2, 5));
    let (bq, bx) = (Storage::of(context, &q).unwrap(), Storage::of(context, &x).unwrap());
    let gates: Vec<f32> = q.chunks(2 * head_dim).flat_map(|head| head[head_dim..].to_vec()).collect();
    elementwise::sigmoid_mul(&mut Cores::new(1, Isa::SCALAR), &mut x, &gates);
    let mut recorder = Recorder::new(context);
    let shape = (rows as u32, heads as u32, head_dim as u32);
    gate(&mut recorder, &pipelines, shape, (0, 0), (&bq).into(), (&bx).into()).unwrap();
    recorder.submit().wait(DEADLINE).unwrap();
    assert_eq!(differing(&bx.read::<f32>(context, DEADLINE).unwrap(), &x), None);
}
