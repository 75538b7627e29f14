//! Every way of reading brings the bytes of the file, whatever goes wrong is an error, and nothing outlives its memory.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mach_io::faults::Fault;
use mach_io::{
    Caching, HugeBuf, READ_ALIGN, Read, ReadError, Reader, ReaderOptions, Slot, Submission, probe,
};
use proptest::prelude::*;
use tempfile::NamedTempFile;

/// A file of `sectors` sectors with contents that differ everywhere.
fn file_in(dir: &std::path::Path, sectors: usize, seed: u64) -> (NamedTempFile, Vec<u8>) {
    let mut x = seed | 1;
    let bytes: Vec<u8> = (0..sectors * READ_ALIGN)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect();
    let mut file = NamedTempFile::new_in(dir).unwrap();
    file.write_all(&bytes).unwrap();
    file.as_file().sync_all().unwrap();
    (file, bytes)
}

fn file(sectors: usize, seed: u64) -> (NamedTempFile, Vec<u8>) {
    file_in(&std::env::temp_dir(), sectors, seed)
}

fn slots(count: usize, sectors: usize) -> Vec<Slot> {
    HugeBuf::zeroed(count * sectors * READ_ALIGN).unwrap().into_slots(sectors * READ_ALIGN)
}

/// The ways that this system has.
fn ways() -> Vec<ReaderOptions> {
    let mut ways = Vec::new();
    let (probe_file, _) = file(1, 1);
    for submission in [Submission::Uring, Submission::Pread, Submission::Auto] {
        for caching in [Caching::Direct, Caching::Buffered] {
            for depth in [1, 5] {
                let options = ReaderOptions { submission, caching, depth, registered: Vec::new() };
                match Reader::open(&[probe_file.path().to_owned()], &options) {
                    Ok(_) => ways.push(options),
                    Err(e) => assert!(submission == Submission::Uring, "{e}"),
                }
            }
        }
    }
    assert!(ways.len() >= 8);
    ways
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn random_reads_equal_the_files(
        seed in any::<u64>(),
        reads in prop::collection::vec((0usize..2, 0u64..24, 1usize..8), 1..40),
        register in any::<bool>(),
    ) {
        let files = [file(32, seed), file(32, seed ^ 0xABCD)];
        let paths: Vec<PathBuf> = files.iter().map(|(f, _)| f.path().to_owned()).collect();
        for mut options in ways() {
            let mut free = slots(reads.len(), 8);
            if register {
                options.registered = free.iter().take(1).map(|s| s.region().clone()).collect();
            }
            let mut reader = Reader::open(&paths, &options).unwrap();
            let batch: Vec<Read> = reads.iter().enumerate().map(|(i, &(file, at, n))| Read {
                file, offset: at * READ_ALIGN as u64, len: n * READ_ALIGN, slot: free.pop().unwrap(), tag: i as u64,
            }).collect();
            reader.submit(batch);
            prop_assert_eq!(reader.pending(), reads.len());
            let mut seen = vec![false; reads.len()];
            while let Some(done) = reader.wait_any() {
                let (file, at, n) = reads[done.tag as usize];
                let slot = done.result.map_err(|e| e.error).unwrap();
                let from = at as usize * READ_ALIGN;
                prop_assert!(slot[..n * READ_ALIGN] == files[file].1[from..from + n * READ_ALIGN]);
                prop_assert!(slot[n * READ_ALIGN..].iter().all(|&b| b == 0), "wrote past the read's length");
                prop_assert!(!std::mem::replace(&mut seen[done.tag as usize], true), "completed twice");
            }
            prop_assert!(seen.iter().all(|&s| s));
            let stats = reader.stats();
            prop_assert_eq!(stats.reads, reads.len() as u64);
            prop_assert_eq!(stats.bytes, reads.iter().map(|r| (r.2 * READ_ALIGN) as u64).sum::<u64>());
            prop_assert_eq!(stats.latency.count(), stats.reads);
            prop_assert!(stats.in_flight_high_water <= options.depth);
            prop_assert_eq!(stats.in_flight_high_water, options.depth.min(reads.len()));
        }
    }
}

#[test]
fn a_file_cut_after_opening_is_an_error_that_names_it() {
    for options in ways() {
        let (file, _) = file(8, 3);
        let mut reader = Reader::open(&[file.path().to_owned()], &options).unwrap();
        file.as_file().set_len(5 * READ_ALIGN as u64).unwrap();
        let mut s = slots(3, 4);
        let mut read = |offset: u64, tag| Read {
            file: 0,
            offset: offset * READ_ALIGN as u64,
            len: 4 * READ_ALIGN,
            slot: s.pop().unwrap(),
            tag,
        };
        reader.submit([read(4, 0), read(6, 1), read(0, 2)]);
        let mut ends: Vec<_> = std::iter::from_fn(|| reader.wait_any()).collect();
        ends.sort_by_key(|c| c.tag);
        for (i, found) in [(0, READ_ALIGN), (1, 0)] {
            let failure = ends[i].result.as_ref().unwrap_err();
            assert!(failure.slot.is_some());
            match &failure.error {
                ReadError::Truncated { file: path, found: n, .. } => {
                    assert_eq!((path.as_path(), *n), (file.path(), found), "{options:?}");
                }
                other => panic!("{other}"),
            }
        }
        assert!(ends[2].result.is_ok(), "other reads go on");
        assert_eq!(reader.stats().failures, 2);
    }
}

#[test]
fn a_replaced_file_keeps_its_old_contents() {
    for options in ways() {
        let (old, bytes) = file(4, 7);
        let (new, _) = file(4, 8);
        let mut reader = Reader::open(&[old.path().to_owned()], &options).unwrap();
        std::fs::rename(new.path(), old.path()).unwrap();
        let slot = slots(1, 4).pop().unwrap();
        reader.submit([Read { file: 0, offset: 0, len: 4 * READ_ALIGN, slot, tag: 0 }]);
        let slot = reader.wait_any().unwrap().result.unwrap();
        assert!(slot[..] == bytes[..]);
    }
}

#[test]
fn reads_that_break_the_rules_are_refused() {
    let (file, _) = file(8, 3);
    for options in ways() {
        let mut reader = Reader::open(&[file.path().to_owned()], &options).unwrap();
        for (index, offset, len) in
            [(1, 0, 4096), (0, 1, 4096), (0, 0, 4095), (0, 0, 0), (0, 0, 8192), (0, u64::MAX - 4095, 4096)]
        {
            let slot = slots(1, 1).pop().unwrap();
            reader.submit([Read { file: index, offset, len, slot, tag: 9 }]);
            let done = reader.wait_any().unwrap();
            assert_eq!(done.tag, 9);
            assert!(matches!(done.result.unwrap_err().error, ReadError::Invalid { .. }));
        }
        assert!(reader.wait_any().is_none());
        assert!(reader.poll().is_none());
    }
}

#[test]
fn missing_files_and_directories_are_named() {
    for options in ways() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().join("layer-007.experts"), dir.path().to_owned()] {
            let error = Reader::open(std::slice::from_ref(&path), &options).unwrap_err().to_string();
            assert!(error.contains(&*path.to_string_lossy()), "{error}");
        }
    }
}

/// The kernel must never write into memory that somebody else has: readers dropped with reads in flight, over and over,
/// beside new allocations that would be overwritten.
#[test]
fn dropping_with_reads_in_flight_waits_for_them() {
    let (file, _) = file(512, 5);
    for options in ways() {
        for round in 0..20 {
            let mut memory = slots(8, 32);
            let registered = if round % 2 == 0 { vec![memory[0].region().clone()] } else { Vec::new() };
            let options = ReaderOptions { registered, ..options.clone() };
            let mut reader = Reader::open(&[file.path().to_owned()], &options).unwrap();
            reader.submit((0..8).map(|i| Read {
                file: 0,
                offset: i * 32 * READ_ALIGN as u64,
                len: 32 * READ_ALIGN,
                slot: memory.pop().unwrap(),
                tag: i,
            }));
            if round % 3 == 0 {
                reader.wait_any();
            }
            drop(reader);
            let fresh = HugeBuf::zeroed(8 * 32 * READ_ALIGN).unwrap();
            assert!(fresh.iter().all(|&b| b == 0));
        }
    }
}

#[test]
fn faults_reach_the_caller_and_others_go_on() {
    let (file, bytes) = file(16, 11);
    for options in ways() {
        let reader = Reader::open(&[file.path().to_owned()], &options).unwrap();
        let mut reader = reader.with_faults(Arc::new(|_, offset, _| match offset / READ_ALIGN as u64 {
            1 => Some(Fault::Eio),
            2 => Some(Fault::Short(512)),
            3 => Some(Fault::Flip(100, 3)),
            4 => Some(Fault::Delay(Duration::from_millis(20))),
            _ => None,
        }));
        let mut memory = slots(8, 1);
        reader.submit((0..8).map(|i| Read {
            file: 0,
            offset: i * READ_ALIGN as u64,
            len: READ_ALIGN,
            slot: memory.pop().unwrap(),
            tag: i,
        }));
        let mut order = Vec::new();
        while let Some(done) = reader.wait_any() {
            order.push(done.tag);
            let at = done.tag as usize * READ_ALIGN;
            let mut expected = bytes[at..at + READ_ALIGN].to_vec();
            match (done.tag, done.result) {
                (1, Err(f)) => {
                    assert!(matches!(f.error, ReadError::Io { offset: 4096, .. }));
                    assert!(f.error.to_string().contains("at offset 4096"));
                }
                (2, Err(f)) => assert!(matches!(f.error, ReadError::Truncated { found: 512, .. })),
                (tag, Ok(slot)) => {
                    if tag == 3 {
                        expected[100] ^= 8;
                    }
                    assert!(slot[..] == expected[..], "read {tag}");
                }
                (tag, Err(f)) => panic!("read {tag}: {}", f.error),
            }
        }
        order.sort_unstable();
        assert_eq!(order, (0..8).collect::<Vec<_>>());
    }
}

/// Filesystems in memory may take or refuse direct reads; both must work.
#[test]
fn direct_reads_fall_back_where_they_are_refused() {
    for dir in [PathBuf::from("/dev/shm"), std::env::temp_dir()].iter().filter(|d| d.is_dir()) {
        let (file, bytes) = file_in(dir, 4, 13);
        let mut reader = Reader::open(&[file.path().to_owned()], &ReaderOptions::default()).unwrap();
        let slot = slots(1, 4).pop().unwrap();
        reader.submit([Read { file: 0, offset: 0, len: 4 * READ_ALIGN, slot, tag: 0 }]);
        assert!(reader.wait_any().unwrap().result.unwrap()[..] == bytes[..]);
        assert!(["direct", "buffered"].contains(&reader.caching().as_str()));
    }
}

#[test]
fn the_probe_chooses_what_it_measured() {
    let (file, _) = file(256, 17);
    for submission in [Submission::Auto, Submission::Pread] {
        let report =
            probe(&[file.path().to_owned()], 4 * READ_ALIGN, submission, Duration::from_millis(60)).unwrap();
        assert_eq!(report.read_kib, 16);
        let rows: Vec<_> = report.table.iter().filter(|r| r.caching == report.caching).collect();
        let chosen = rows.iter().find(|r| r.depth == report.depth).unwrap();
        assert!(chosen.bandwidth > 0.0 && chosen.bandwidth == report.bandwidth);
        let best = rows.iter().map(|r| r.bandwidth).fold(0.0, f64::max);
        assert!(chosen.bandwidth * 1.05 >= best);
        assert!(rows.iter().all(|r| r.depth >= report.depth || r.bandwidth * 1.05 < best));
    }
    let nothing = probe(&[file.path().to_owned()], 1 << 30, Submission::Auto, Duration::from_millis(10));
    assert!(nothing.unwrap_err().to_string().contains("no record"));
}
