//! Experts that stream through a small bank are those of the files; faults are errors of one expert and nothing more.

use std::path::Path;
use std::sync::Arc;

use mach_experts::{
    BankOptions, Demand, EvictionPolicy, ExpertFiles, LayerEntry, MANIFEST_FORMAT, Manifest, RECORD_ALIGN,
    RecordLayout, Sidecar, StreamingBank, StreamingError, checksums,
};
use mach_io::faults::Fault;
use mach_io::{Reader, ReaderOptions, Submission};
use mach_quant::{Bits, Codec, FloatType, MatrixLayout, Order};
use proptest::prelude::*;

const LAYERS: [usize; 3] = [0, 2, 3];
const EXPERTS: usize = 8;

/// A sidecar of random records, the second file with larger ones.
fn sidecar(dir: &Path) -> (Sidecar, Vec<Vec<u8>>) {
    let mut files = Vec::new();
    let mut layers = Vec::new();
    for (i, layer) in LAYERS.into_iter().enumerate() {
        let group = if i == 1 { 32 } else { 64 };
        let codec = Codec::Affine { bits: Bits::B4, group, scales: FloatType::Bf16 };
        let matrix = |rows, cols| MatrixLayout { rows, cols, codec, order: Order::Tiles };
        let (up, down) = (matrix(64, 128), matrix(128, 64));
        let record = RecordLayout::new(up, up, down);
        let stride = record.stride();
        let bytes: Vec<u8> =
            (0..stride * EXPERTS).map(|b| ((b * 31 + b / 256 * 7 + layer * 13) % 251) as u8).collect();
        let entry = LayerEntry {
            layer,
            file: LayerEntry::file_name(layer),
            length: bytes.len() as u64,
            stride,
            record,
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

fn bank_of(
    (sidecar, reader): (Sidecar, Reader),
    slots: usize,
    arena: usize,
    eviction: EvictionPolicy,
) -> Result<StreamingBank, StreamingError> {
    let options = BankOptions {
        bank_slots: slots,
        arena_slots: arena,
        top_k: 2,
        order: Order::Tiles,
        eviction,
        probed_bandwidth: None,
    };
    StreamingBank::new(ExpertFiles::Records { sidecar, reader }, options)
}

fn bank(
    dir: &Path,
    slots: usize,
    arena: usize,
    policy: EvictionPolicy,
    submission: Submission,
) -> (StreamingBank, Vec<Vec<u8>>) {
    let (sidecar, files) = sidecar(dir);
    let reader = reader(&sidecar, submission);
    (bank_of((sidecar, reader), slots, arena, policy).unwrap(), files)
}

fn demands(experts: &[usize], banked: bool) -> Vec<Demand> {
    experts.iter().map(|&expert| Demand { expert, banked, counts: banked }).collect()
}

/// Runs a layer and hands each expert to `each` as it comes.
fn layer(
    bank: &mut StreamingBank,
    layer: usize,
    demands: &[Demand],
    each: &mut dyn FnMut(&StreamingBank, usize),
) -> Result<(), StreamingError> {
    bank.begin(layer, demands, Some(layer + 1))?;
    while let Some(batch) = bank.ready(3, &mut checksums)? {
        assert!(!batch.is_empty() && batch.len() <= 3);
        batch.iter().for_each(|&e| each(bank, e));
        bank.done(&batch);
        bank.pump();
    }
    bank.end();
    Ok(())
}

fn is_record(bank: &StreamingBank, layer: usize, expert: usize, file: &[u8]) -> bool {
    let stride = file.len() / EXPERTS;
    let record = &file[expert * stride..(expert + 1) * stride];
    let view = bank.expert(layer, expert).unwrap();
    let inside = |bytes: &[u8]| record.windows(bytes.len()).any(|w| w == bytes);
    view.gate.data == &record[..view.gate.data.len()] && inside(view.up.data) && inside(view.down.data)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_streams_in_is_what_lies_on_disk(
        slots in prop_oneof![Just(0usize), 6usize..30],
        arena in 1usize..12,
        policy in 0usize..3,
        pread in any::<bool>(),
        passes in prop::collection::vec(
            (prop::collection::btree_set(0..EXPERTS, 1..=EXPERTS), prop::collection::vec(any::<bool>(), EXPERTS)),
            1..60,
        ),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let submission = if pread { Submission::Pread } else { Submission::Auto };
        let (mut bank, files) = bank(dir.path(), slots, arena, EvictionPolicy::ALL[policy], submission);
        prop_assert_eq!(bank.slots(), slots.min(LAYERS.len() * EXPERTS));
        let (mut asked, mut banked) = (0, 0);
        for (i, (experts, bank_it)) in passes.into_iter().enumerate() {
            let (file, layer_index) = (i % 3, LAYERS[i % 3]);
            let demands: Vec<Demand> = experts
                .iter()
                .map(|&expert| Demand { expert, banked: bank_it[expert], counts: bank_it[expert] })
                .collect();
            let mut seen = Vec::new();
            layer(&mut bank, layer_index, &demands, &mut |bank, e| {
                assert!(is_record(bank, layer_index, e, &files[file]));
                seen.push(e);
            })
            .unwrap();
            seen.sort_unstable();
            prop_assert_eq!(seen, experts.iter().copied().collect::<Vec<_>>());
            asked += experts.len() as u64;
            banked += demands.iter().filter(|d| d.banked).count() as u64;
        }
        let stats = bank.stats().snapshot();
        let total = &stats.total;
        prop_assert!(total.hits + total.misses <= banked);
        prop_assert!(total.hits + total.misses + total.transient_hits + total.transient_reads <= asked);
        let resident: usize = bank.layers().iter().map(|s| s.resident).sum();
        prop_assert!(resident <= bank.slots());
        let mut counted = 0;
        for (uses, summary) in bank.stats().uses().layers().iter().zip(&stats.layers) {
            prop_assert_eq!(Some(uses.layer), summary.layer);
            let sum = |counts: &[u32]| counts.iter().map(|&n| u64::from(n)).sum::<u64>();
            let now = bank.layers()[uses.layer];
            prop_assert_eq!((sum(&uses.hits), sum(&uses.misses)), (now.hits, now.misses));
            prop_assert_eq!(uses.resident.iter().filter(|&&r| r).count(), now.resident);
            // The snapshot may be older.
            prop_assert!(sum(&uses.transient_hits) >= summary.transient_hits);
            prop_assert!(sum(&uses.transient_reads) >= summary.transient_reads);
            counted += sum(&uses.transient_hits) + sum(&uses.transient_reads) + now.hits + now.misses;
        }
        prop_assert_eq!(counted, asked);
        prop_assert_eq!(bank.reads().failures, 0);
        if slots >= LAYERS.len() * EXPERTS {
            prop_assert_eq!(total.evictions, 0);
        }
    }
}

#[test]
fn prompts_fill_an_empty_bank_evenly_and_evict_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bank, _) = bank(dir.path(), 9, 2, EvictionPolicy::Lru, Submission::Auto);
    let all: Vec<usize> = (0..EXPERTS).collect();
    let mut nothing = |_: &StreamingBank, _: usize| ();
    for l in LAYERS {
        layer(&mut bank, l, &demands(&all, false), &mut nothing).unwrap();
    }
    let resident = |bank: &StreamingBank| LAYERS.map(|l| bank.layers()[l].resident);
    assert_eq!(resident(&bank), [3, 3, 3]);
    let before = bank.reads().reads;
    let there: Vec<usize> = all.iter().copied().filter(|&e| bank.expert(2, e).is_some()).collect();
    layer(&mut bank, 2, &demands(&there, true), &mut nothing).unwrap();
    assert_eq!(bank.reads().reads, before, "what the prompt left there is used");
    for l in LAYERS {
        layer(&mut bank, l, &demands(&all, false), &mut nothing).unwrap();
    }
    assert_eq!(bank.layers().iter().map(|l| l.evictions).sum::<u64>(), 0);
    // Decoding evicts.
    let missing: Vec<usize> = all.iter().copied().filter(|&e| bank.expert(0, e).is_none()).collect();
    layer(&mut bank, 0, &demands(&missing[..2], true), &mut nothing).unwrap();
    assert_eq!(bank.layers().iter().map(|l| l.evictions).sum::<u64>(), 2);
}

#[test]
fn a_layer_that_uses_everything_has_the_next_one_read_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bank, files) = bank(dir.path(), 0, EXPERTS, EvictionPolicy::Lru, Submission::Auto);
    let all = demands(&(0..EXPERTS).collect::<Vec<_>>(), false);
    let mut nothing = |_: &StreamingBank, _: usize| ();
    layer(&mut bank, 2, &all, &mut nothing).unwrap();
    // Of the layer after it nothing was asked for, and yet it comes.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while (0..EXPERTS).any(|e| bank.expert(3, e).is_none()) {
        assert!(std::time::Instant::now() < deadline);
        bank.pump();
    }
    let before = bank.reads().reads;
    assert_eq!(before, 2 * EXPERTS as u64);
    layer(&mut bank, 3, &all, &mut |bank, e| assert!(is_record(bank, 3, e, &files[2]))).unwrap();
    assert_eq!(bank.reads().reads, before, "nothing is read twice");
    // A layer that uses little is not followed by a guess.
    layer(&mut bank, 0, &all[..2], &mut nothing).unwrap();
    assert_eq!(bank.reads().reads, before + 2);
}

#[test]
fn too_small_a_bank_is_refused_with_the_number_that_would_do() {
    let dir = tempfile::tempdir().unwrap();
    let (sidecar, _) = sidecar(dir.path());
    let reader = reader(&sidecar, Submission::Auto);
    let stride = sidecar.max_stride();
    let error = bank_of((sidecar, reader), 5, 4, EvictionPolicy::Lru).unwrap_err();
    match error {
        StreamingError::TooSmall { slots: 5, needed: 6, bytes } => assert_eq!(bytes, 6 * stride),
        other => panic!("{other}"),
    }
}

#[test]
fn what_the_bank_cannot_hold_at_once_goes_through_the_arena() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bank, files) = bank(dir.path(), 6, 1, EvictionPolicy::Lru, Submission::Auto);
    let all: Vec<usize> = (0..EXPERTS).collect();
    let mut seen = 0;
    layer(&mut bank, 0, &demands(&all, true), &mut |bank, e| {
        assert!(is_record(bank, 0, e, &files[0]));
        seen += 1;
    })
    .unwrap();
    assert_eq!(seen, EXPERTS);
    assert!(matches!(
        bank.begin(1, &demands(&[0], true), None),
        Err(StreamingError::Unknown { layer: 1, expert: 0 })
    ));
    assert!(bank.begin(0, &demands(&[EXPERTS], true), None).is_err());
    bank.abandon();
}

/// A read that fails while its layer computes something else: the layer must not end as if the expert had not been asked for.
#[test]
fn a_failure_between_batches_is_told() {
    for banked in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let (sidecar, _) = sidecar(dir.path());
        let bad = sidecar.location(2, 3).unwrap();
        let plan = move |file: usize, offset: u64, _: usize| {
            ((file, offset) == (bad.file, bad.offset)).then_some(Fault::Eio)
        };
        let reader = reader(&sidecar, Submission::Auto).with_faults(Arc::new(plan));
        let mut bank = bank_of((sidecar, reader), 6, 3, EvictionPolicy::Lru).unwrap();
        bank.begin(2, &demands(&[1, 3, 5], banked), None).unwrap();
        // The other two have been computed, and everything has arrived, before anybody asks.
        while bank.reads().reads + bank.reads().failures < 3 {
            bank.pump();
        }
        let error = bank.ready(3, &mut checksums).unwrap_err().to_string();
        assert!(error.contains("expert 3 of layer 2"), "{error}");
        bank.abandon();
    }
}

#[test]
fn a_bad_record_fails_its_layer_and_is_read_again() {
    for banked in [true, false] {
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
            let mut bank = bank_of((sidecar, reader), 6, 2, EvictionPolicy::Lru).unwrap();
            let wanted = demands(&[1, 3, 5], banked);
            let error = layer(&mut bank, 2, &wanted, &mut |_, _| ()).unwrap_err().to_string();
            assert!(error.contains(words) && error.contains("expert 3 of layer 2"), "{error}");
            bank.abandon();
            assert!(bank.expert(2, 3).is_none());
            let mut seen = Vec::new();
            layer(&mut bank, 2, &wanted, &mut |bank, e| {
                assert!(is_record(bank, 2, e, &files[1]));
                seen.push(e);
            })
            .unwrap();
            seen.sort_unstable();
            assert_eq!(seen, [1, 3, 5]);
        }
    }
}
