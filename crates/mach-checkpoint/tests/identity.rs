//! Files of weights: whether they are those that were opened, and what is in them.

mod common;

use std::fs::{self, FileTimes};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use common::{copy_of, fixture};
use mach_checkpoint::{Checkpoint, FileStamp, WeightFile};

/// Changes one byte in place and puts the time of modification back.
fn edit(path: &Path, at: u64) {
    let times = fs::metadata(path).unwrap();
    // The clock that stamps files may stand still for some milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let byte = fs::read(path).unwrap()[at as usize];
    let mut file = fs::File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte ^ 1]).unwrap();
    file.set_times(FileTimes::new().set_modified(times.modified().unwrap())).unwrap();
    assert_eq!(fs::metadata(path).unwrap().modified().unwrap(), times.modified().unwrap());
}

fn hash(file: &WeightFile) -> io::Result<[u8; 32]> {
    file.hash(&mut |_| Ok(()))
}

#[test]
fn every_byte_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    // Longer than what is read at a time.
    let mut bytes: Vec<u8> = (0..9_000_000u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let mut hashes = std::collections::HashSet::new();
    for at in [None, Some(0), Some(1), Some(8 << 20), Some((8 << 20) - 1), Some(bytes.len() - 1)] {
        at.into_iter().for_each(|at: usize| bytes[at] ^= 1);
        fs::write(&path, &bytes).unwrap();
        let file = WeightFile::at(path.clone()).unwrap();
        assert_eq!(hash(&file).unwrap(), *blake3::hash(&bytes).as_bytes());
        assert!(hashes.insert(hash(&file).unwrap()), "{at:?}");
    }
    let mut told = 0;
    let file = WeightFile::at(path.clone()).unwrap();
    file.hash(&mut |bytes| {
        told += bytes;
        Ok(())
    })
    .unwrap();
    assert_eq!(told, bytes.len());
    assert!(file.hash(&mut |_| Err(io::Error::other("stop"))).is_err());
    fs::write(&path, "").unwrap();
    assert_eq!(hash(&WeightFile::at(path).unwrap()).unwrap(), *blake3::hash(b"").as_bytes());
}

#[test]
fn an_edit_in_place_with_its_time_put_back_is_seen() {
    let copy = copy_of("qwen3_moe/bf16");
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    let files = checkpoint.unverified_files();
    assert_eq!((files.len(), checkpoint.files()), (1, files.clone()));
    let before = hash(&files[0]).unwrap();
    assert!(files[0].is_unchanged());
    edit(&files[0].path, files[0].stamp.bytes / 2 + 5);
    assert!(!files[0].is_unchanged());
    // What was opened is not there any more: its hash cannot be had.
    assert!(hash(&files[0]).is_err());
    let again = Checkpoint::open(copy.path()).unwrap().unverified_files();
    assert_ne!(hash(&again[0]).unwrap(), before);
    // Another file of the same bytes in its place is another file, of the same hash.
    let other = copy.path().join("other");
    fs::copy(&again[0].path, &other).unwrap();
    fs::rename(&other, &again[0].path).unwrap();
    assert!(!again[0].is_unchanged());
    let third = Checkpoint::open(copy.path()).unwrap().unverified_files();
    assert_eq!(hash(&third[0]).unwrap(), hash(&WeightFile::at(third[0].path.clone()).unwrap()).unwrap());
    fs::remove_file(&third[0].path).unwrap();
    assert!(!third[0].is_unchanged() && hash(&third[0]).is_err());
}

#[test]
fn an_edit_while_it_is_hashed_is_seen() {
    let copy = copy_of("qwen3_moe/bf16");
    let file = &Checkpoint::open(copy.path()).unwrap().files()[0];
    let mut edited = false;
    let hash = file.hash(&mut |_| {
        if !std::mem::replace(&mut edited, true) {
            edit(&file.path, 9000);
        }
        Ok(())
    });
    assert!(hash.is_err());
}

#[test]
fn what_was_converted_vouches_for_itself() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo");
    let checkpoint = Checkpoint::open(&demo).unwrap();
    assert_eq!((checkpoint.files().len(), checkpoint.unverified_files().len()), (1, 0));
    assert_eq!(Checkpoint::open(&fixture("qwen3_moe/bf16")).unwrap().unverified_files().len(), 1);
}

#[test]
fn all_of_a_stamp_is_in_its_bytes() {
    let stamp = FileStamp { device: 1, inode: 2, bytes: 3, modified: 4, changed: -5 };
    let others = [
        FileStamp { device: 9, ..stamp },
        FileStamp { inode: 9, ..stamp },
        FileStamp { bytes: 9, ..stamp },
        FileStamp { modified: 9, ..stamp },
        FileStamp { changed: 9, ..stamp },
        FileStamp { changed: 5, ..stamp },
        FileStamp { device: 1 << 56, ..stamp },
    ];
    for other in others {
        assert_ne!(other.to_bytes(), stamp.to_bytes(), "{other:?}");
    }
    assert_eq!(
        stamp.to_bytes()[..24],
        [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]
    );
}
