//! Experts that stream through a small bank are those of the files; faults are errors of one expert and nothing more.

use std::path::Path;
use std::sync::Arc;

use mach_experts::{
    EvictionPolicy, LayerEntry, MANIFEST_FORMAT, Manifest, RECORD_ALIGN, RecordLayout, Sidecar,
    StreamingBank, StreamingError,
};
use mach_io::faults::Fault;
use mach_io::{Reader, ReaderOptions, Submission};
use mach_quant::{Codec, FloatType, MatrixLayout, Order};
use proptest::prelude::*;

const LAYERS: [usize; 3] = [0, 2, 3];
const EXPERTS: usize = 8;

/// A sidecar of random records, the second file with larger ones.
fn sidecar(dir: &Path) -> (Sidecar, Vec<Vec<u8>>) {
    let mut files = Vec::new();
    let mut layers = Vec::new();
    for (i, layer) in LAYERS.into_iter().enumerate() {
        let group = if i == 1 { 32 } else { 64 };
        let codec = Codec::Affine { bits: 4, group, scales: FloatType::Bf16 };
        let matrix = |rows, cols| MatrixLayout { rows, cols, codec, order: Order::Tiles };
        let (up, down) = (matrix(64, 128), matrix(128, 64));
        let stride = RecordLayout::new(up, up, down).stride();
        let bytes: Vec<u8> =
            (0..stride * EXPERTS).map(|b| ((b * 31 + b / 256 * 7 + layer * 13) % 251) as u8).collect();
        let entry = LayerEntry {
            layer,
            file: LayerEntry::file_name(layer),
            length: bytes.len() as u64,
            stride,
            gate: up,
            up,
            down,
            crc32c: bytes.chunks(stride).map(crc32c::crc32c).collect(),
        };
        std::fs::write(dir.join(&entry.file), &bytes).unwrap();
        layers.push(entry);
        files.push(bytes);
    }
    let manifest = Manifest {
        format: MANIFEST_FORMAT.0.to_owned(),
        version: MANIFEST_FORMAT.1,
        architecture: "qwen3_moe".to_owned(),
        source: String::new(),
        record_align: RECORD_ALIGN,
        num_experts: EXPERTS,
        layers,
    };
    (Sidecar::from_manifest(dir, manifest).unwrap(), files)
}

fn reader(sidecar: &Sidecar, submission: Submission) -> Reader {
    sidecar.reader(&ReaderOptions { submission, depth: 3, ..Default::default() }).unwrap()
}

fn bank(
    dir: &Path,
    slots: usize,
    policy: EvictionPolicy,
    submission: Submission,
) -> (StreamingBank, Vec<Vec<u8>>) {
    let (sidecar, files) = sidecar(dir);
    let reader = reader(&sidecar, submission);
    (StreamingBank::new(sidecar, reader, slots, 2, Order::Tiles, policy).unwrap(), files)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_streams_in_is_what_lies_on_disk(
        slots in 6usize..30,
        policy in 0usize..3,
        pread in any::<bool>(),
        passes in prop::collection::vec(prop::collection::btree_set(0..EXPERTS, 1..4), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let submission = if pread { Submission::Pread } else { Submission::Auto };
        let (mut bank, files) = bank(dir.path(), slots, EvictionPolicy::ALL[policy], submission);
        prop_assert_eq!(bank.slots(), slots.min(LAYERS.len() * EXPERTS));
        for (i, experts) in passes.into_iter().enumerate() {
            let (file, layer) = (i % 3, LAYERS[i % 3]);
            let experts: Vec<usize> = experts.into_iter().collect();
            let mut there = bank.begin(layer, &experts).unwrap();
            while let Some(landed) = bank.next() {
                let key = landed.unwrap().key;
                prop_assert_eq!(key.layer, layer);
                there.push(key.expert);
            }
            there.sort_unstable();
            prop_assert_eq!(&there, &experts);
            for &e in &experts {
                let view = bank.expert(layer, e).unwrap();
                let stride = files[file].len() / EXPERTS;
                let record = &files[file][e * stride..(e + 1) * stride];
                prop_assert!(view.gate.data == &record[..view.gate.data.len()]);
                let at = record.windows(view.down.data.len()).any(|w| w == view.down.data);
                prop_assert!(at && view.up.layout.rows == 64);
            }
            bank.end(layer, &experts);
        }
        let stats = bank.layers();
        let misses: u64 = stats.iter().map(|s| s.misses).sum();
        prop_assert_eq!(bank.reads().reads, misses);
        let resident: usize = stats.iter().map(|s| s.resident).sum();
        let evictions: u64 = stats.iter().map(|s| s.evictions).sum();
        prop_assert_eq!(resident as u64 + evictions, misses);
        if slots >= LAYERS.len() * EXPERTS {
            prop_assert_eq!(evictions, 0);
        }
    }
}

#[test]
fn too_small_a_bank_is_refused_with_the_number_that_would_do() {
    let dir = tempfile::tempdir().unwrap();
    let (sidecar, _) = sidecar(dir.path());
    let reader = reader(&sidecar, Submission::Auto);
    let stride = sidecar.max_stride();
    let error = StreamingBank::new(sidecar, reader, 5, 2, Order::Tiles, EvictionPolicy::Lru).unwrap_err();
    match error {
        StreamingError::TooSmall { slots: 5, needed: 6, bytes } => assert_eq!(bytes, 6 * stride),
        other => panic!("{other}"),
    }
}

#[test]
fn a_full_bank_refuses_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bank, _) = bank(dir.path(), 6, EvictionPolicy::Lru, Submission::Auto);
    bank.begin(0, &[0, 1, 2, 3, 4]).unwrap();
    while let Some(landed) = bank.next() {
        landed.unwrap();
    }
    let error = bank.begin(2, &[0, 1]).unwrap_err().to_string();
    assert!(error.contains("2 slots are needed, 1 of 6"), "{error}");
    bank.end(0, &[0, 1, 2, 3, 4]);
    assert!(bank.begin(2, &[0, 1]).unwrap().is_empty());
    assert!(bank.begin(1, &[0]).is_err(), "a layer without experts");
    assert!(bank.begin(0, &[EXPERTS]).is_err());
}

#[test]
fn a_bad_record_fails_alone_and_is_read_again() {
    for (fault, words) in [
        (Fault::Eio, "layer-002.experts: reading"),
        (Fault::Short(4096), "layer-002.experts: truncated"),
        (Fault::Flip(77, 2), "expert 3 of layer 2 is damaged"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (sidecar, files) = sidecar(dir.path());
        let bad = sidecar.location(2, 3).unwrap();
        let times = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let plan = move |file: usize, offset: u64, _: usize| {
            let hit = (file, offset) == (bad.file, bad.offset);
            (hit && times.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0).then_some(fault)
        };
        let reader = reader(&sidecar, Submission::Auto).with_faults(Arc::new(plan));
        let mut bank = StreamingBank::new(sidecar, reader, 6, 2, Order::Tiles, EvictionPolicy::Lru).unwrap();
        bank.begin(2, &[1, 3, 5]).unwrap();
        let mut ends: Vec<_> = std::iter::from_fn(|| bank.next()).collect();
        assert_eq!(ends.len(), 3);
        let at = ends.iter().position(Result::is_err).unwrap();
        let error = ends.remove(at).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        assert!(ends.iter().all(Result::is_ok));
        assert!(bank.expert(2, 3).is_none() && bank.expert(2, 1).is_some());
        bank.end(2, &[1, 3, 5]);
        assert_eq!(bank.begin(2, &[3]).unwrap(), [] as [usize; 0]);
        assert!(bank.next().unwrap().is_ok());
        let stride = files[1].len() / EXPERTS;
        let gate = bank.expert(2, 3).unwrap().gate.data;
        assert!(gate == &files[1][3 * stride..3 * stride + gate.len()]);
    }
}
