//! A manifest is read back as written; any other bytes are an error or a manifest that holds together.

use mach_experts::{LayerEntry, MANIFEST_FORMAT, Manifest, RECORD_ALIGN, RecordLayout};
use mach_quant::{Codec, FloatType, MatrixLayout, Order};
use proptest::prelude::*;

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![
        Just(Codec::Mxfp4),
        Just(Codec::Dense(FloatType::Bf16)),
        Just(Codec::Dense(FloatType::F32)),
        (prop_oneof![Just(4u8), Just(8u8)], prop_oneof![Just(32usize), Just(64), Just(128)], any::<bool>())
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

prop_compose! {
    fn manifest()(
        experts in 0usize..6,
        layers in prop::collection::btree_set(0usize..200, 0..4),
        codecs in prop::collection::vec((codec(), codec()), 4),
        (hidden, width) in (1usize..5, 1usize..5),
        crc in any::<u32>(),
    ) -> Manifest {
        let layers = layers.into_iter().zip(codecs).map(|(layer, (a, b))| {
            let up = matrix(width * 128, hidden * 128, a);
            let down = matrix(hidden * 128, width * 128, b);
            let stride = RecordLayout::new(up, up, down).stride();
            LayerEntry {
                layer,
                file: LayerEntry::file_name(layer),
                length: (stride * experts) as u64,
                stride,
                gate: up,
                up,
                down,
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
        assert!(entry.record().weight_bytes() <= entry.stride);
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
    fn numbers_of_any_size_never_make_nonsense(manifest in manifest(), field in 0usize..9, value in any::<u64>()) {
        let mut json: serde_json::Value = serde_json::from_slice(&manifest.to_json().unwrap()).unwrap();
        let places = [
            "/num_experts", "/record_align", "/layers/0/layer", "/layers/0/length", "/layers/0/stride",
            "/layers/0/gate/rows", "/layers/0/gate/cols", "/layers/0/down/rows", "/layers/0/down/cols",
        ];
        if let Some(place) = json.pointer_mut(places[field]) {
            *place = value.into();
        }
        if let Ok(other) = Manifest::parse(json.to_string().as_bytes()) {
            holds_together(&other);
        }
    }
}
