//! Decoders against the values that MLX computed, and layouts against the decoders.

use std::path::PathBuf;

use mach_quant::{Axes, Bits, Codec, FloatType, MatrixLayout, Order, Source, decode};
use proptest::prelude::*;
use safetensors::SafeTensors;

fn fixture() -> Vec<u8> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/quant/mlx.safetensors");
    std::fs::read(file).expect("fixture")
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn float_type(dtype: safetensors::Dtype) -> FloatType {
    match dtype {
        safetensors::Dtype::F32 => FloatType::F32,
        safetensors::Dtype::F16 => FloatType::F16,
        _ => FloatType::Bf16,
    }
}

#[test]
fn affine_of_all_widths_equals_mlx() {
    let bytes = fixture();
    let st = SafeTensors::deserialize(&bytes).unwrap();
    let mut checked = 0;
    for bits in Bits::ALL {
        for group in [32, 64, 128] {
            for suffix in ["", "_f16", "_f32"] {
                let name = format!("affine_b{bits}_g{group}{suffix}");
                let Ok(w) = st.tensor(&format!("{name}.weight")) else { continue };
                let s = st.tensor(&format!("{name}.scales")).unwrap();
                let b = st.tensor(&format!("{name}.biases")).unwrap();
                let values = floats(st.tensor(&format!("{name}.values")).unwrap().data());
                let t = float_type(s.dtype());
                let mut out = vec![0.0; 256];
                for row in 0..24 {
                    let (wl, sl) = (w.data().len() / 24, s.data().len() / 24);
                    decode::affine_row(
                        bits,
                        group,
                        t,
                        &w.data()[row * wl..(row + 1) * wl],
                        &s.data()[row * sl..(row + 1) * sl],
                        &b.data()[row * sl..(row + 1) * sl],
                        &mut out,
                    );
                    for (o, v) in out.iter().zip(&values[row * 256..]) {
                        // MLX rounds the product before the sum; with 16-bit scales the product is exact.
                        let tolerance = if t == FloatType::F32 { 1e-6 } else { 0.0 };
                        assert!((o - v).abs() <= tolerance, "{name} row {row}: {o} {v}");
                    }
                }
                checked += 1;
            }
        }
    }
    assert_eq!(checked, 20);
}

/// What MLX reads out of its matrices comes out of both orders too, whichever row is asked for.
#[test]
fn layouts_of_all_widths_equal_mlx() {
    let bytes = fixture();
    let st = SafeTensors::deserialize(&bytes).unwrap();
    for (bits, group) in Bits::ALL.into_iter().flat_map(|b| [32, 64, 128].map(|g| (b, g))) {
        let name = format!("affine_b{bits}_g{group}");
        let part = |suffix: &str| st.tensor(&format!("{name}.{suffix}")).unwrap();
        let values = floats(part("values").data());
        let codec = Codec::Affine { bits, group, scales: FloatType::Bf16 };
        let (w, s, b) = (part("weight"), part("scales"), part("biases"));
        let source = Source::new(codec, 24, 256, w.data(), s.data(), b.data()).unwrap();
        for order in [Order::Tiles, Order::Rows] {
            let layout = MatrixLayout::of(&source, order);
            let mut data = vec![0xAA; layout.bytes()];
            layout.pack(&source, 0, &mut data);
            let mut out = vec![0.0; 256];
            for row in 0..24 {
                layout.decode_row(&data, row, &mut out);
                assert!(out == values[row * 256..(row + 1) * 256], "{name} {order:?} row {row}");
            }
        }
    }
}

/// Where the documentation of the tile layout says that each bit of each code lies. Files hold tiles, so this never
/// changes without a new version of their formats.
#[test]
fn every_bit_lies_where_it_is_said_to() {
    let planes = |bits| -> &[(usize, usize)] {
        match bits {
            Bits::B2 => &[(2, 0)],
            Bits::B3 => &[(2, 0), (1, 2)],
            Bits::B4 => &[(4, 0)],
            Bits::B5 => &[(4, 0), (1, 4)],
            Bits::B6 => &[(4, 0), (2, 4)],
            Bits::B8 => &[(8, 0)],
        }
    };
    for (bits, group) in Bits::ALL.into_iter().flat_map(|b| [32usize, 64, 128].map(|g| (b, g))) {
        let (rows, cols) = (19, 2 * group);
        let weight: Vec<u8> =
            (0..rows * cols * bits.get() / 8).map(|i| (i * 73 + i / 7 * 31 + 5) as u8).collect();
        let scales: Vec<u8> = (0..rows * 2 * 2).map(|i| i as u8).collect();
        let biases: Vec<u8> = scales.iter().map(|b| b ^ 0x55).collect();
        let codec = Codec::Affine { bits, group, scales: FloatType::Bf16 };
        let source = Source::new(codec, rows, cols, &weight, &scales, &biases).unwrap();
        let layout = MatrixLayout::of(&source, Order::Tiles);
        let mut data = vec![0xAA; layout.bytes()];
        layout.pack(&source, 0, &mut data);
        let code_bytes = 16 * group * bits.get() / 8;
        assert_eq!(layout.tile_bytes(), code_bytes + 16 * 2 * 2);
        for row in 0..32 {
            for col in 0..cols {
                let tile = &data[(row / 16 * 2 + col / group) * layout.tile_bytes()..][..layout.tile_bytes()];
                let (chunk, quad, c) = (col % group / 32, col % 32 / 4, col % 4);
                let (mut line, mut code) = (chunk * bits.get(), 0);
                for &(width, first) in planes(bits) {
                    let per_line = 8 / width;
                    let byte = tile[(line + quad / per_line) * 64 + 4 * (row % 16) + c];
                    let value = u32::from(byte) >> (width * (quad % per_line)) & ((1 << width) - 1);
                    code |= value << first;
                    line += width;
                }
                let packed = |row: usize| &weight[row * cols * bits.get() / 8..];
                let expected = if row < rows { decode::code(packed(row), bits, col) } else { 0 };
                assert_eq!(code, expected, "{bits} bits, row {row}, column {col}");
                let at = code_bytes + row % 16 * 2;
                let stored = |part: &[u8]| if row < rows { part[(row * 2 + col / group) * 2] } else { 0 };
                assert_eq!((tile[at], tile[at + 32]), (stored(&scales), stored(&biases)));
            }
        }
    }
}

#[test]
fn widths_are_known_or_named() {
    for bits in 0..70u64 {
        match Bits::try_from(bits) {
            Ok(known) => assert_eq!((u64::from(known), known.to_string()), (bits, bits.to_string())),
            Err(e) => assert!(e.to_string().starts_with(&format!("{bits} bits")), "{e}"),
        }
    }
    assert_eq!(Bits::ALL.map(Bits::get), [2, 3, 4, 5, 6, 8]);
}

#[test]
fn microscaling_formats_equal_mlx() {
    let bytes = fixture();
    let st = SafeTensors::deserialize(&bytes).unwrap();
    for name in ["mxfp4", "mxfp8", "nvfp4", "nvfp4_global"] {
        let w = st.tensor(&format!("{name}.weight")).unwrap();
        let s = st.tensor(&format!("{name}.scales")).unwrap();
        let values = floats(st.tensor(&format!("{name}.values")).unwrap().data());
        let global = st.tensor(&format!("{name}.global_scale")).ok().map(|t| floats(t.data())[0]);
        let mut out = vec![0.0; 256];
        for row in 0..24 {
            let (wl, sl) = (w.data().len() / 24, s.data().len() / 24);
            let (wr, sr) = (&w.data()[row * wl..(row + 1) * wl], &s.data()[row * sl..(row + 1) * sl]);
            match name {
                "mxfp4" => decode::mxfp4_row(wr, sr, &mut out),
                "mxfp8" => decode::mxfp8_row(wr, sr, &mut out),
                _ => decode::nvfp4_row(wr, sr, global, &mut out),
            }
            for (o, v) in out.iter().zip(&values[row * 256..]) {
                assert!((o - v).abs() <= v.abs() * 1e-6, "{name} row {row}: {o} {v}");
            }
        }
    }
}

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![
        Just(Codec::Mxfp4),
        (prop::sample::select(&Bits::ALL[..]), prop_oneof![Just(32usize), Just(64), Just(128)], 0..3usize)
            .prop_map(|(bits, group, t)| Codec::Affine {
                bits,
                group,
                scales: [FloatType::F32, FloatType::F16, FloatType::Bf16][t]
            }),
        (0..3usize).prop_map(|t| Codec::Dense([FloatType::F32, FloatType::F16, FloatType::Bf16][t])),
    ]
}

proptest! {
    /// Packing into either order loses nothing: every row decodes to the same bits as its source.
    #[test]
    fn layouts_keep_every_value(codec in codec(), rows in 1usize..40, groups in 1usize..4, seed in any::<u64>()) {
        let cols = groups * codec.group().unwrap_or(24);
        let mut state = seed | 1;
        let mut bytes = |n: usize| -> Vec<u8> {
            (0..n).map(|_| { state ^= state << 13; state ^= state >> 7; state ^= state << 17; (state >> 32) as u8 }).collect()
        };
        let weight = bytes(rows * cols * codec.bits() / 8);
        let per = codec.scale_bytes() / if codec == Codec::Mxfp4 { 1 } else { 2 };
        let scales = bytes(rows * codec.group().map_or(0, |g| cols / g) * per);
        let biases = if codec == Codec::Mxfp4 { Vec::new() } else { bytes(scales.len()) };
        let source = Source::new(codec, rows, cols, &weight, &scales, &biases).unwrap();
        for order in [Order::Tiles, Order::Rows] {
            let layout = MatrixLayout::of(&source, order);
            let mut data = vec![0xAA; layout.bytes()];
            layout.pack(&source, 0, &mut data);
            let (mut a, mut b) = (vec![0.0; cols], vec![0.0; cols]);
            for row in 0..rows {
                source.decode_row(row, &mut a);
                layout.decode_row(&data, row, &mut b);
                for (x, y) in a.iter().zip(&b) {
                    prop_assert!(x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()));
                }
            }
        }
        // Tiles and row-major order hold the same bits.
        let (tiles, plain) = (MatrixLayout::of(&source, Order::Tiles), MatrixLayout::of(&source, Order::Rows));
        let (mut a, mut b) = (vec![0xAA; tiles.bytes()], vec![0x55; plain.bytes()]);
        tiles.pack(&source, 0, &mut a);
        plain.pack(&source, 0, &mut b);
        prop_assert!(plain.repacks_from(&tiles) && tiles.repacks_from(&tiles));
        prop_assert!(tiles == plain || !tiles.repacks_from(&plain));
        let first = seed as usize % rows;
        let mut c = vec![0; plain.bytes() - first * plain.unit_bytes()];
        plain.repack(&tiles, &a, first, &mut c);
        prop_assert!(c == b[first * plain.unit_bytes()..]);
        let mut d = vec![0; tiles.bytes()];
        tiles.repack(&tiles, &a, 0, &mut d);
        prop_assert!(a == d);
        tiles.validate().unwrap();
        plain.validate().unwrap();
    }

    /// Two matrices whose rows lie in turn, and floats column after column, are packed as those by themselves.
    #[test]
    fn a_matrix_is_the_same_however_it_lies(codec in codec(), rows in 1usize..40, groups in 1usize..4, seed in any::<u64>()) {
        let cols = groups * codec.group().unwrap_or(24);
        let mut state = seed | 1;
        let mut bytes = |n: usize| -> Vec<u8> {
            (0..n).map(|_| { state ^= state << 13; state ^= state >> 7; state ^= state << 17; (state >> 32) as u8 }).collect()
        };
        let per = codec.scale_bytes() / if codec == Codec::Mxfp4 { 1 } else { 2 };
        let scale_row = codec.group().map_or(0, |g| cols / g) * per;
        let lengths = [cols * codec.bits() / 8, scale_row, if codec == Codec::Mxfp4 { 0 } else { scale_row }];
        let both: [[Vec<u8>; 3]; 2] = [0, 1].map(|_| lengths.map(|n| bytes(rows * n)));
        let plain = both.each_ref().map(|[w, s, b]| Source::new(codec, rows, cols, w, s, b).unwrap());
        let pack = |source: &Source<'_>, order| {
            let layout = MatrixLayout::of(source, order);
            let mut data = vec![0xAA; layout.bytes()];
            layout.pack(source, 0, &mut data);
            (layout, data)
        };
        let same = |a: &Source<'_>, b: &Source<'_>| {
            let (mut x, mut y) = (vec![0.0; cols], vec![0.0; cols]);
            [Order::Tiles, Order::Rows].into_iter().all(|order| pack(a, order) == pack(b, order))
                && (0..rows).all(|row| {
                    a.decode_row(row, &mut x);
                    b.decode_row(row, &mut y);
                    x.iter().zip(&y).all(|(x, y)| x.to_bits() == y.to_bits())
                })
        };
        // Rows of the first and of the second in turn.
        let woven: [Vec<u8>; 3] = [0, 1, 2].map(|part| {
            (0..2 * rows).flat_map(|r| {
                let at = r / 2 * lengths[part];
                both[r % 2][part][at..at + lengths[part]].to_vec()
            }).collect()
        });
        for (which, plain) in plain.iter().enumerate() {
            let parts = [0, 1, 2].map(|part| &woven[part][(which * lengths[part]).min(woven[part].len())..]);
            let lies = Source::with_axes(codec, (rows, cols), Axes::Rows { every: 2 }, parts).unwrap();
            prop_assert!(same(&lies, plain), "rows in turn");
        }
        let axes = Axes::Columns { across: 2 * rows, every: 2 };
        let Codec::Dense(float) = codec else {
            prop_assert!(Source::with_axes(codec, (rows, cols), axes, [&woven[0], &woven[1], &woven[2]]).is_err());
            return Ok(());
        };
        let size = float.size();
        let columns: Vec<u8> = (0..cols).flat_map(|c| (0..2 * rows).map(move |r| (c, r))).flat_map(|(c, r)| {
            let at = (r / 2 * cols + c) * size;
            both[r % 2][0][at..at + size].to_vec()
        }).collect();
        for (which, plain) in plain.iter().enumerate() {
            let weight = &columns[which * size..];
            let lies = Source::with_axes(codec, (rows, cols), axes, [weight, &[], &[]]).unwrap();
            prop_assert!(same(&lies, plain), "columns in turn");
            let short = &weight[..weight.len() - 2 * size];
            prop_assert!(Source::with_axes(codec, (rows, cols), axes, [short, &[], &[]]).is_err());
        }
    }

    #[test]
    fn lengths_are_checked(extra in 1usize..100) {
        let weight = vec![0; 64 * 16 / 2 + extra];
        let codec = Codec::Affine { bits: Bits::B4, group: 64, scales: FloatType::Bf16 };
        prop_assert!(Source::new(codec, 16, 64, &weight, &[0; 32], &[0; 32]).is_err());
    }
}
