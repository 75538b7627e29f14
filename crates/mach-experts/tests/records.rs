//! Records of the second version: any set of projections, of any codec, with and without biases, come back from a file as
//! they were put there; what this build cannot compute with is refused by name.

use std::path::Path;

use mach_experts::{
    Bank, BankOptions, EvictionPolicy, ExpertFiles, LayerEntry, MANIFEST_FORMAT, Manifest, Projection,
    RECORD_ALIGN, RecordLayout, Sidecar, StreamingBank,
};
use mach_io::{HugeBuf, Read, ReaderOptions};
use mach_quant::{Bits, Codec, FloatType, MatrixLayout, Order};

const EXPERTS: usize = 3;

fn matrix(rows: usize, cols: usize, bits: Bits) -> MatrixLayout {
    let codec = Codec::Affine { bits, group: 64, scales: FloatType::Bf16 };
    MatrixLayout { rows, cols, codec, order: Order::Tiles }
}

/// A sidecar of one layer; every byte of matrices and biases is another than its neighbours.
fn sidecar(dir: &Path, record: RecordLayout) -> Sidecar {
    let stride = record.stride();
    let mut bytes = vec![0u8; stride * EXPERTS];
    for (e, expert) in bytes.chunks_mut(stride).enumerate() {
        for projection in Projection::ALL {
            let seed = 31 * e + 7 * projection as usize;
            let fill = |out: &mut [u8], seed: usize| {
                for (i, b) in out.iter_mut().enumerate() {
                    *b = ((i * 13 + i / 256 * 7 + seed) % 251) as u8;
                }
            };
            if let Some(out) = record.matrix_mut(expert, projection) {
                fill(out, seed);
            }
            if let Some(out) = record.bias_mut(expert, projection) {
                fill(out, seed + 100);
            }
        }
    }
    let entry = LayerEntry {
        layer: 0,
        file: LayerEntry::file_name(0),
        length: bytes.len() as u64,
        stride,
        record,
        crc32c: bytes.chunks(stride).map(crc32c::crc32c).collect(),
    };
    std::fs::write(dir.join(&entry.file), &bytes).unwrap();
    let manifest = Manifest {
        format: MANIFEST_FORMAT.0.to_owned(),
        version: MANIFEST_FORMAT.1,
        architecture: "qwen3_moe".to_owned(),
        source: String::new(),
        record_align: RECORD_ALIGN,
        num_experts: EXPERTS,
        layers: vec![entry],
    };
    // By way of its text, as files are read.
    let manifest = Manifest::parse(&manifest.to_json().unwrap()).unwrap();
    Sidecar::from_manifest(dir, manifest).unwrap()
}

/// The bytes of one record, as a direct read brings them.
fn read(sidecar: &Sidecar, expert: usize) -> Vec<u8> {
    let at = sidecar.location(0, expert).unwrap();
    let mut reader = sidecar.reader(&ReaderOptions::default()).unwrap();
    let slot = HugeBuf::zeroed(at.len).unwrap().into_slots(at.len).pop().unwrap();
    reader.submit([Read { file: at.file, offset: at.offset, len: at.len, slot, tag: 0 }]);
    let slot = reader.wait_any().unwrap().result.unwrap();
    sidecar.check_record(0, expert, &slot).unwrap();
    slot.to_vec()
}

#[test]
fn biases_and_fused_projections_come_back() {
    let sets = [
        vec![
            (Projection::GateUp, matrix(2 * 72, 128, Bits::B6), Some(FloatType::F32)),
            (Projection::Down, matrix(128, 64, Bits::B3), Some(FloatType::Bf16)),
        ],
        vec![
            (Projection::Gate, matrix(64, 128, Bits::B2), None),
            (Projection::Up, matrix(64, 128, Bits::B5), Some(FloatType::Bf16)),
            (Projection::Down, matrix(120, 64, Bits::B8), None),
        ],
        vec![(Projection::Down, matrix(16, 64, Bits::B4), Some(FloatType::F32))],
    ];
    for set in sets {
        let dir = tempfile::tempdir().unwrap();
        let record = RecordLayout::with(&set).unwrap();
        let sidecar = sidecar(dir.path(), record);
        assert_eq!(sidecar.record(0), Some(record));
        let rows = record.in_order(Order::Rows);
        assert!(rows.repacks_from(&record) && !record.repacks_from(&rows) && rows != record);
        for expert in 0..EXPERTS {
            let bytes = read(&sidecar, expert);
            let mut plain = vec![0xAA; rows.stride()];
            rows.repack(&record, &bytes, &mut plain);
            let (view, repacked) = (record.view(&bytes), rows.view(&plain));
            for projection in Projection::ALL {
                let Some((_, layout, float)) = set.iter().find(|(p, ..)| *p == projection) else {
                    assert!(view.matrix(projection).is_none() && view.bias(projection).is_none());
                    continue;
                };
                let (matrix, other) =
                    (view.matrix(projection).unwrap(), repacked.matrix(projection).unwrap());
                assert_eq!((&matrix.layout, matrix.data.len()), (layout, layout.bytes()));
                let (mut a, mut b) = (vec![0.0; layout.cols], vec![0.0; layout.cols]);
                for row in 0..layout.rows {
                    matrix.layout.decode_row(matrix.data, row, &mut a);
                    other.layout.decode_row(other.data, row, &mut b);
                    assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
                let seed = 31 * expert + 7 * projection as usize;
                let byte = |i: usize, seed: usize| ((i * 13 + i / 256 * 7 + seed) % 251) as u8;
                assert!(matrix.data.iter().enumerate().all(|(i, &b)| b == byte(i, seed)));
                let (bias, other) = (view.bias(projection), repacked.bias(projection));
                assert_eq!(bias.map(|b| b.float), *float);
                assert_eq!(bias.map(|b| b.data), other.map(|b| b.data));
                if let (Some(bias), Some(float)) = (bias, float) {
                    assert_eq!(bias.data.len(), layout.rows * float.size());
                    assert!(bias.data.iter().enumerate().all(|(i, &b)| b == byte(i, seed + 100)));
                }
            }
        }
    }
}

#[test]
fn what_cannot_be_computed_is_refused_by_name() {
    let (gate, down) = (matrix(64, 128, Bits::B4), matrix(128, 64, Bits::B4));
    let plain = |projection, layout| (projection, layout, None);
    let cases = [
        (vec![plain(Projection::GateUp, gate), plain(Projection::Down, down)], "`gate_up` is fused"),
        (vec![plain(Projection::Gate, gate), plain(Projection::Up, gate)], "there is no `down`"),
    ];
    for (set, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        let sidecar = sidecar(dir.path(), RecordLayout::with(&set).unwrap());
        let mut reader = sidecar.reader(&ReaderOptions::default()).unwrap();
        for order in [Order::Tiles, Order::Rows] {
            let error = Bank::from_sidecar(&sidecar, order, &mut reader, &mut |_| ()).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert!(error.to_string().contains("layer-000.experts"), "{error}");
        }
        let options = BankOptions {
            bank_slots: 3,
            arena_slots: 1,
            top_k: 1,
            order: Order::Tiles,
            eviction: EvictionPolicy::ALL[0],
            probed_bandwidth: None,
        };
        let error = StreamingBank::new(ExpertFiles::Records { sidecar, reader }, options).unwrap_err();
        let source = std::error::Error::source(&error).map_or(String::new(), |e| e.to_string());
        assert!(format!("{error} {source}").contains(words), "{error} {source}");
    }
}

#[test]
fn places_that_cannot_be_are_refused_by_name() {
    let record =
        RecordLayout::new(matrix(64, 128, Bits::B4), matrix(64, 128, Bits::B4), matrix(128, 64, Bits::B6));
    let good = serde_json::to_value(record).unwrap();
    assert_eq!(serde_json::from_value::<RecordLayout>(good.clone()).unwrap(), record);
    let refused = |change: &dyn Fn(&mut serde_json::Value), words: &str| {
        let mut json = good.clone();
        change(&mut json);
        let error = serde_json::from_value::<RecordLayout>(json).unwrap_err().to_string();
        assert!(error.contains(words), "{error} lacks {words}");
    };
    refused(&|j| j[1]["at"] = 64.into(), "`up`: byte 64 is before the end");
    refused(&|j| j[0]["at"] = 32.into(), "`gate`: byte 32");
    refused(&|j| j[2]["at"] = (u64::MAX - 63).into(), "`down`: ends beyond");
    refused(&|j| j[1]["projection"] = "gate".into(), "`gate` is there twice");
    refused(&|j| j[1]["projection"] = "side".into(), "side");
    refused(&|j| j[1]["layout"]["rows"] = (1u64 << 40).into(), "`up`");
    refused(&|j| j[1]["layout"]["codec"]["affine"]["bits"] = 7.into(), "7 bits");
    refused(&|j| j[1]["layout"]["codec"]["affine"]["group"] = 48.into(), "`up`");
    refused(&|j| j[0]["bias"] = serde_json::json!({"at": 0, "float": "f32"}), "`gate`: byte 0");
    refused(&|j| j[0]["offset"] = 0.into(), "offset");
}
