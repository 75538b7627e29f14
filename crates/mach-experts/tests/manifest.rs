//! A manifest is read back as written; any other bytes are an error or a manifest that holds together.

use mach_experts::{LayerEntry, MANIFEST_FORMAT, Manifest, Projection, RECORD_ALIGN, RecordLayout};
use mach_quant::{Bits, Codec, FloatType, MatrixLayout, Order};
use proptest::prelude::*;

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![
        Just(Codec::Mxfp4),
        Just(Codec::Dense(FloatType::Bf16)),
        Just(Codec::Dense(FloatType::F32)),
        (
            prop::sample::select(&Bits::ALL[..]),
            prop_oneof![Just(32usize), Just(64), Just(128)],
            any::<bool>()
        )
            .prop_map(|(bits, group, wide)| Codec::Affine {
                bits,
                group,
                scales: if wide { FloatType::F32 } else { FloatType::Bf16 }
            }),
    ]
}

fn matrix(rows: usize, cols: usize, codec: Codec) -> MatrixLayout {
    MatrixLayout { rows, cols, codec, order: Order::Rows }.in_order(Order::Tiles)
}

/// Any set of projections, in any order, with or without biases.
fn record() -> impl Strategy<Value = RecordLayout> {
    let bias = prop_oneof![Just(None), Just(Some(FloatType::F32)), Just(Some(FloatType::Bf16))];
    let part = (codec(), bias, 1usize..5, 1usize..5);
    let projections = prop::sample::subsequence(&Projection::ALL[..], 1..=4).prop_shuffle();
    (projections, prop::collection::vec(part, 4)).prop_map(|(projections, parts)| {
        let matrices: Vec<_> = projections
            .into_iter()
            .zip(parts)
            .map(|(projection, (codec, bias, rows, cols))| {
                // Rows that do not fill a tile, vectors that do not fill a line.
                (projection, matrix(rows * 24 + 1, cols * 128, codec), bias)
            })
            .collect();
        RecordLayout::with(&matrices).unwrap()
    })
}

prop_compose! {
    fn manifest()(
        experts in 0usize..6,
        layers in prop::collection::btree_set(0usize..200, 0..4),
        records in prop::collection::vec(record(), 4),
        crc in any::<u32>(),
    ) -> Manifest {
        let layers = layers.into_iter().zip(records).map(|(layer, record)| {
            let stride = record.stride();
            LayerEntry {
                layer,
                file: LayerEntry::file_name(layer),
                length: (stride * experts) as u64,
                stride,
                record,
                crc32c: (0..experts as u32).map(|e| crc.wrapping_mul(e)).collect(),
            }
        }).collect();
        Manifest {
            format: MANIFEST_FORMAT.0.to_owned(),
            version: MANIFEST_FORMAT.1,
            architecture: "qwen3_moe".to_owned(),
            source: format!("{crc:x}"),
            record_align: RECORD_ALIGN,
            num_experts: experts,
            layers,
        }
    }
}

fn holds_together(manifest: &Manifest) {
    for entry in &manifest.layers {
        assert_eq!(entry.stride % RECORD_ALIGN, 0);
        assert!(entry.record.weight_bytes() <= entry.stride);
        let mut end = 0;
        for part in entry.record.parts() {
            let bias = part.bias.map(|b| (b.at, part.layout.rows * b.float.size()));
            for (at, len) in [Some((part.at, part.layout.bytes())), bias].into_iter().flatten() {
                assert!(at % 64 == 0 && at >= end && at + len <= entry.stride);
                end = at + len;
            }
            assert_eq!(entry.record.part(part.projection), Some(part), "there once");
        }
        assert_eq!(entry.length, (entry.stride * manifest.num_experts) as u64);
        assert_eq!(entry.crc32c.len(), manifest.num_experts);
        assert!(!entry.file.contains('/'));
    }
}

proptest! {
    #[test]
    fn written_and_read_back(manifest in manifest()) {
        prop_assert_eq!(&Manifest::parse(&manifest.to_json().unwrap()).unwrap(), &manifest);
        holds_together(&manifest);
    }

    #[test]
    fn changed_bytes_never_make_nonsense(manifest in manifest(), at in any::<usize>(), to in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = manifest.to_json().unwrap();
        let at = at % bytes.len();
        bytes[at] = to;
        if cut {
            bytes.truncate(at);
        }
        if let Ok(other) = Manifest::parse(&bytes) {
            holds_together(&other);
        }
    }

    #[test]
    fn numbers_of_any_size_never_make_nonsense(manifest in manifest(), field in 0usize..11, value in prop_oneof![any::<u64>(), 0u64..1 << 20]) {
        let mut json: serde_json::Value = serde_json::from_slice(&manifest.to_json().unwrap()).unwrap();
        let places = [
            "/num_experts", "/record_align", "/layers/0/layer", "/layers/0/length", "/layers/0/stride",
            "/layers/0/projections/0/layout/rows", "/layers/0/projections/0/layout/cols",
            "/layers/0/projections/0/at", "/layers/0/projections/1/at", "/layers/0/projections/0/bias/at",
            "/layers/0/projections/0/layout/codec/affine/bits",
        ];
        if let Some(place) = json.pointer_mut(places[field]) {
            *place = value.into();
        }
        if let Ok(other) = Manifest::parse(json.to_string().as_bytes()) {
            holds_together(&other);
        }
    }
}
