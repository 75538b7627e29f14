//! Experts that are brought before they are asked for: there when they are needed, the same bytes, and harmless when the
//! drive fails.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mach_experts::{
    BankOptions, Demand, EvictionPolicy, ExpertFiles, HotExperts, LayerEntry, MANIFEST_FORMAT, Manifest,
    RECORD_ALIGN, RecordLayout, Sidecar, StreamingBank, StreamingError, checksums,
};
use mach_io::ReaderOptions;
use mach_io::faults::{Fault, FaultPlan};
use mach_quant::{Bits, Codec, FloatType, MatrixLayout, Order};
use proptest::prelude::*;

const LAYERS: usize = 3;
const EXPERTS: usize = 8;

fn bank(dir: &Path, slots: usize, faults: Option<FaultPlan>) -> (StreamingBank, Vec<Vec<u8>>) {
    let codec = Codec::Affine { bits: Bits::B4, group: 64, scales: FloatType::Bf16 };
    let matrix = |rows, cols| MatrixLayout { rows, cols, codec, order: Order::Tiles };
    let (up, down) = (matrix(64, 128), matrix(128, 64));
    let record = RecordLayout::new(up, up, down);
    let stride = record.stride();
    let (mut files, mut layers) = (Vec::new(), Vec::new());
    for layer in 0..LAYERS {
        let byte = |b: usize| ((b * 31 + b / 256 * 7 + layer * 13) % 251) as u8;
        let bytes: Vec<u8> = (0..stride * EXPERTS).map(byte).collect();
        let file = LayerEntry::file_name(layer);
        std::fs::write(dir.join(&file), &bytes).unwrap();
        let crc32c = bytes.chunks(stride).map(crc32c::crc32c).collect();
        layers.push(LayerEntry { layer, file, length: bytes.len() as u64, stride, record, crc32c });
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
    let sidecar = Sidecar::from_manifest(dir, manifest).unwrap();
    let reader = sidecar.reader(&ReaderOptions { depth: 3, ..Default::default() }).unwrap();
    let reader = match faults {
        Some(plan) => reader.with_faults(plan),
        None => reader,
    };
    let options = BankOptions {
        bank_slots: slots,
        arena_slots: 4,
        top_k: 2,
        order: Order::Tiles,
        eviction: EvictionPolicy::default(),
        probed_bandwidth: None,
    };
    (StreamingBank::new(ExpertFiles::Records { sidecar, reader }, options).unwrap(), files)
}

fn layer(
    bank: &mut StreamingBank,
    layer: usize,
    experts: &[usize],
    banked: bool,
    file: &[u8],
) -> Result<(), StreamingError> {
    let demands: Vec<_> = experts.iter().map(|&expert| Demand { expert, banked, counts: banked }).collect();
    bank.begin(layer, &demands, Some(layer + 1))?;
    let mut seen = Vec::new();
    while let Some(batch) = bank.ready(3, &mut checksums)? {
        for &expert in &batch {
            let record = &file[expert * file.len() / EXPERTS..];
            let view = bank.expert(layer, expert).unwrap();
            assert!(view.gate.data == &record[..view.gate.data.len()], "expert {expert}");
            seen.push(expert);
        }
        bank.done(&batch);
        bank.pump();
    }
    bank.end();
    seen.sort_unstable();
    assert_eq!(seen, experts);
    Ok(())
}

/// Pumps as the steps between layers do, until nothing is left to be brought.
fn bring(bank: &mut StreamingBank, lists: [&[u16]; LAYERS]) {
    bank.bring(&HotExperts { layers: lists.map(<[u16]>::to_vec).to_vec() });
    let started = Instant::now();
    while bank.to_bring() > 0 {
        bank.pump();
        assert!(started.elapsed() < Duration::from_secs(20), "{} are left", bank.to_bring());
    }
}

fn counts(bank: &mut StreamingBank, file: &[u8]) -> (u64, u64, u64, u64) {
    // The last layer publishes.
    layer(bank, LAYERS - 1, &[0], true, file).unwrap();
    let s = bank.stats().snapshot();
    (s.total.hits, s.total.misses, s.background_reads, s.background_failures)
}

#[test]
fn what_was_brought_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bank, files) = bank(dir.path(), 12, None);
    bring(&mut bank, [&[5, 1], &[2], &[0, 7]]);
    layer(&mut bank, 0, &[1, 5], true, &files[0]).unwrap();
    layer(&mut bank, 1, &[2], false, &files[1]).unwrap();
    assert_eq!(counts(&mut bank, &files[2]), (3, 0, 5, 0));
    assert_eq!(bank.stats().snapshot().total.transient_hits, 1);
}

#[test]
fn it_takes_empty_slots_only_and_stops_for_prompts() {
    let dir = tempfile::tempdir().unwrap();
    let (mut bank, files) = bank(dir.path(), 6, None);
    for (i, file) in files.iter().enumerate() {
        layer(&mut bank, i, &[3, 4], true, file).unwrap();
    }
    let all: Vec<u16> = (0..8).collect();
    bring(&mut bank, [&all, &all, &all]);
    let evictions = bank.layers().iter().map(|l| l.evictions).sum::<u64>();
    assert_eq!((evictions, bank.stats().snapshot().background_reads), (0, 0));
    let dir = tempfile::tempdir().unwrap();
    let (mut bank, files) = self::bank(dir.path(), 12, None);
    bank.bring(&HotExperts { layers: vec![vec![0, 1], vec![], vec![9, 2]] });
    bank.pass(3);
    bank.pump();
    layer(&mut bank, 0, &[6], false, &files[0]).unwrap();
    assert_eq!(bank.to_bring(), 3, "a prompt is read; expert 9 does not exist");
    bank.pass(0);
    bank.pump();
    assert_eq!(bank.to_bring(), 3);
    while bank.to_bring() > 0 {
        bank.pump();
    }
    // The arena's expert moved into the bank as well.
    assert_eq!(bank.layers().iter().map(|l| l.resident).sum::<usize>(), 4);
}

#[test]
fn a_failing_drive_changes_nothing() {
    for fault in [Fault::Eio, Fault::Short(4096), Fault::Flip(100, 3)] {
        let dir = tempfile::tempdir().unwrap();
        // The first reads fail, whoever asks for them first.
        let left = Arc::new(std::sync::atomic::AtomicI32::new(3));
        let plan: FaultPlan = Arc::new(move |_, _, _| {
            (left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) > 0).then_some(fault)
        });
        let (mut bank, files) = bank(dir.path(), 12, Some(plan));
        bring(&mut bank, [&[5, 1], &[2], &[]]);
        layer(&mut bank, 0, &[1, 5], true, &files[0]).unwrap();
        layer(&mut bank, 1, &[2], false, &files[1]).unwrap();
        let (_, _, reads, failures) = counts(&mut bank, &files[2]);
        assert_eq!((reads, failures), (0, 3), "{fault:?}");
        layer(&mut bank, 0, &[1, 5], true, &files[0]).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn passes_never_see_the_difference(
        slots in 6usize..24,
        steps in prop::collection::vec(
            (prop::collection::btree_set(0..EXPERTS, 1..5), any::<bool>(), 0u16..8, any::<bool>(), any::<bool>()), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let slow: FaultPlan = Arc::new(|file, offset, _| {
            let odd = (offset >> 14).is_multiple_of(3) || file == 1;
            odd.then_some(Fault::Delay(Duration::from_micros(200)))
        });
        let (mut bank, files) = bank(dir.path(), slots, Some(slow));
        for (i, (experts, banked, from, bring, prompt)) in steps.into_iter().enumerate() {
            let experts: Vec<usize> = experts.into_iter().collect();
            if bring {
                // Asked for at once, so that passes meet reads on their way.
                let list: Vec<u16> = (0..8).map(|e| (e + from) % 8).collect();
                bank.bring(&HotExperts { layers: vec![list; LAYERS] });
                bank.pump();
            }
            bank.pass(usize::from(prompt));
            let at = i % LAYERS;
            layer(&mut bank, at, &experts, banked && experts.len() * LAYERS <= slots, &files[at]).unwrap();
            let resident: usize = bank.layers().iter().map(|l| l.resident).sum();
            prop_assert!(resident <= slots);
        }
    }
}
