//! Heads and pages give the bits of the scalar twin.

mod common;

use common::{DEADLINE, differing, floats};
use mach_gpu::kernels::heads::{Append, Heads, append, heads, page_words};
use mach_gpu::kernels::prepare::{self, Prepare, prepare};
use mach_gpu::{Recorder, Storage};
use mach_kernels::attention::{KvCache, KvShape, KvType};
use mach_kernels::elementwise::{self, Rope, prepare_heads, rms_norm};
use mach_kernels::{Cores, Isa};

#[test]
fn heads_are_normed_and_rotated_to_the_twin_s_bits() {
    let Some(pipelines) = common::pipelines() else { return };
    let context = pipelines.context();
    // rows, heads, head_dim, head_stride, rotary_dim, normed
    let cases = [
        (1, 32, 128, 128, 128, true),
        (3, 5, 256, 512, 64, true),
        (7, 3, 80, 80, 40, false),
        (2, 2, 512, 512, 512, true),
        (1, 1, 16, 16, 2, true),
        (5, 3, 64, 64, 0, true),
    ];
    for case @ (rows, n, head_dim, stride, rotary_dim, normed) in cases {
        let x = floats(rows * n * stride, 1, 4);
        let w = floats(head_dim, 2, 2);
        let rope = Rope::new(1e6, rotary_dim);
        let mut angles = Vec::new();
        (0..rows).for_each(|row| rope.angles(1000 + 37 * row, &mut angles));
        let mut want = vec![0.0; rows * n * head_dim];
        let spec = elementwise::Heads {
            heads: n,
            head_dim,
            head_stride: stride,
            norm: normed.then_some(&w[..]),
            eps: 1e-6,
            rotary_dim,
        };
        prepare_heads(&mut Cores::new(1, Isa::SCALAR), spec, &x, &angles, &mut want);
        angles.push(0.0);
        let [bx, bw, ba] = [&x, &w, &angles].map(|v| Storage::of(context, v).unwrap());
        let out = Storage::new(context, 4 * want.len() as u64).unwrap();
        let mut recorder = Recorder::new(context);
        let params = Heads {
            rows: rows as u32,
            heads: n as u32,
            head_dim: head_dim as u32,
            head_stride: stride as u32,
            x_at: 0,
            rotary_dim: rotary_dim as u32,
            angles_at: 0,
            out_at: 0,
            eps: 1e-6,
        };
        let weight = normed.then_some((&bw).into());
        heads(&mut recorder, &pipelines, &params, (&bx).into(), weight, (&ba).into(), (&out).into()).unwrap();
        recorder.submit().wait(DEADLINE).unwrap();
        let got: Vec<f32> = out.read(context, DEADLINE).unwrap();
        assert_eq!(differing(&got, &want), None, "{case:?}");
    }
}

#[test]
fn keys_and_values_lie_in_pages_as_the_twin_s() {
    let Some(pipelines) = common::pipelines() else { return };
    let context = pipelines.context();
    for (n, head_dim) in [(2, 64), (3, 80), (1, 256)] {
        let shape = KvShape { heads: n, head_dim, kind: KvType::Bf16 };
        let mut cache = KvCache::new(shape);
        let words = page_words(n as u32, head_dim as u32) as usize;
        assert_eq!(4 * words, shape.page_bytes());
        // Pages of the pool in another order than those of the sequence, whose table begins at word 3.
        let table = [9u32, 9, 9, 2, 0, 1];
        let table = Storage::of(context, &table).unwrap();
        let pages = Storage::new(context, 3 * 4 * words as u64).unwrap();
        let mut position = 0;
        for rows in [1, 250, 7, 300, 210] {
            let (k, v) = (floats(rows * n * head_dim, rows as u32, 6), floats(rows * n * head_dim, 5, 6));
            cache.append(Isa::SCALAR, &k, &v, rows);
            // One row of another sequence in front.
            let behind = |x: &[f32]| [&vec![7.0; n * head_dim], x].concat();
            let [k, v] = [k, v].map(|x| Storage::of(context, &behind(&x)).unwrap());
            let mut recorder = Recorder::new(context);
            let params = Append {
                heads: n as u32,
                head_dim: head_dim as u32,
                rows: rows as u32,
                position,
                first_row: 1,
                table_at: 3,
            };
            let (k, v) = ((&k).into(), (&v).into());
            append(&mut recorder, &pipelines, &params, k, v, (&table).into(), (&pages).into()).unwrap();
            recorder.submit().wait(DEADLINE).unwrap();
            position += rows as u32;
        }
        assert_eq!(cache.len(), 768);
        let got: Vec<u32> = pages.read(context, DEADLINE).unwrap();
        let want = cache.sections(0);
        for (page, at) in [2, 0, 1].into_iter().enumerate() {
            assert!(got[at * words..(at + 1) * words] == *want[page], "{n} x {head_dim}, page {page}");
        }
    }
}

/// Queries, keys and values of two sequences in one go.
#[test]
fn rows_of_a_pass_are_prepared_at_once() {
    let Some(pipelines) = common::pipelines() else { return };
    let context = pipelines.context();
    // query heads, heads, head_dim, stride, rotary_dim, which norms
    let cases = [
        (8usize, 2usize, 128usize, 128usize, 128usize, [true, true, false]),
        (3, 1, 80, 160, 40, [false, false, false]),
        (2, 2, 512, 512, 512, [true, true, true]),
        (0, 2, 64, 64, 64, [false, true, false]),
    ];
    for case @ (query_heads, n, head_dim, stride, rotary_dim, [q_norm, k_norm, v_norm]) in cases {
        // Two rows at 254 of the one, three at 7 of the other; rows before them are zeros.
        let starts = [(254usize, 2usize), (7, 3)];
        let rows = 5;
        let q = floats(rows * query_heads * stride, 1, 4);
        let [k, v] = [2, 3].map(|seed| floats(rows * n * head_dim, seed, 4));
        let [wq, wk] = [4, 5].map(|seed| floats(head_dim, seed, 2));
        let rope = Rope::new(1e6, rotary_dim);
        let (mut angles, mut places, mut table) = (Vec::new(), Vec::<u32>::new(), vec![9u32]);
        let mut page = 0;
        for (position, count) in starts {
            for at in position..position + count {
                rope.angles(at, &mut angles);
                places.extend([at as u32, table.len() as u32]);
            }
            let pages = (position + count).div_ceil(256) as u32;
            table.extend(page..page + pages);
            page += pages;
        }
        let mut cores = Cores::new(1, Isa::SCALAR);
        let spec = |heads, head_stride, norm| elementwise::Heads {
            heads,
            head_dim,
            head_stride,
            norm,
            eps: 1e-6,
            rotary_dim,
        };
        let mut queries = vec![0.0; rows * query_heads * head_dim];
        let spec_q = spec(query_heads, stride, q_norm.then_some(&wq[..]));
        if query_heads > 0 {
            prepare_heads(&mut cores, spec_q, &q, &angles, &mut queries);
        }
        let mut keys = vec![0.0; k.len()];
        prepare_heads(&mut cores, spec(n, head_dim, k_norm.then_some(&wk[..])), &k, &angles, &mut keys);
        let mut values = v.clone();
        if v_norm {
            rms_norm(&mut cores, &v, &vec![1.0; head_dim], 1e-5, &mut values);
        }
        let shape = KvShape { heads: n, head_dim, kind: KvType::Bf16 };
        let mut want = Vec::new();
        let mut row = 0;
        for (position, count) in starts {
            let mut cache = KvCache::new(shape);
            let zeros = |rows: usize| vec![0.0; rows * n * head_dim];
            cache.append(Isa::SCALAR, &zeros(position), &zeros(position), position);
            let part = row * n * head_dim..(row + count) * n * head_dim;
            cache.append(Isa::SCALAR, &keys[part.clone()], &values[part], count);
            let rest = cache.len().next_multiple_of(256) - cache.len();
            cache.append(Isa::SCALAR, &zeros(rest), &zeros(rest), rest);
            cache.sections(0).into_iter().for_each(|page| want.extend_from_slice(page));
            row += count;
        }
        let q = if query_heads == 0 { vec![0.0] } else { q };
        let [q, k, v, wq, wk, angles] =
            [&q, &k, &v, &wq, &wk, &angles].map(|x| Storage::of(context, x).unwrap());
        let [places, table] = [&places, &table].map(|x| Storage::of(context, x).unwrap());
        let out = Storage::new(context, 4 * queries.len() as u64).unwrap();
        let pages = Storage::new(context, 4 * want.len() as u64).unwrap();
        let params = Prepare {
            rows: rows as u32,
            query_heads: query_heads as u32,
            heads: n as u32,
            head_dim: head_dim as u32,
            query_stride: stride as u32,
            rotary_dim: rotary_dim as u32,
            angles_at: 0,
            places_at: 0,
            eps: 1e-6,
            value_norm: v_norm.then_some(1e-5),
        };
        let buffers = prepare::Buffers {
            q: (&q).into(),
            k: (&k).into(),
            v: (&v).into(),
            q_norm: q_norm.then_some((&wq).into()),
            k_norm: k_norm.then_some((&wk).into()),
            angles: (&angles).into(),
            places: (&places).into(),
            table: (&table).into(),
            queries: (&out).into(),
            pages: (&pages).into(),
        };
        let mut recorder = Recorder::new(context);
        prepare(&mut recorder, &pipelines, &params, &buffers).unwrap();
        recorder.submit().wait(DEADLINE).unwrap();
        let got: Vec<f32> = out.read(context, DEADLINE).unwrap();
        assert_eq!(differing(&got[..queries.len()], &queries), None, "{case:?}");
        let got: Vec<u32> = pages.read(context, DEADLINE).unwrap();
        assert!(got == want, "pages of {case:?}");
    }
}
