//! What is flushed to the drive when a segment is saved, as the C library is asked for it: this test's own `fsync` takes the
//! place of the library's.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use common::{insert, open, tokens};
use mach_prefix::Kind;

/// A flush: of what, under which name, what was in it, what was beside it.
#[derive(Debug, Clone)]
struct Flush {
    path: PathBuf,
    bytes: Vec<u8>,
    names: Vec<String>,
}

static FLUSHES: Mutex<Vec<Flush>> = Mutex::new(Vec::new());

fn names(dir: &std::path::Path) -> Vec<String> {
    fs::read_dir(dir).into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

fn flushed(fd: i32) -> i32 {
    let path = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let dir = if path.is_dir() { path.as_path() } else { path.parent().unwrap() };
    let flush = Flush { bytes: fs::read(&path).unwrap_or_default(), names: names(dir), path: path.clone() };
    FLUSHES.lock().unwrap().push(flush);
    0
}

/// In the place of the C library's; nothing needs to reach a drive here.
// SAFETY: the symbol has the C library's signature, and every caller in this process may be told that a flush succeeded.
#[unsafe(no_mangle)]
extern "C" fn fsync(fd: i32) -> i32 {
    flushed(fd)
}

/// As [`fsync`].
// SAFETY: as above.
#[unsafe(no_mangle)]
extern "C" fn fdatasync(fd: i32) -> i32 {
    flushed(fd)
}

#[test]
fn a_segment_is_flushed_before_it_has_its_name_and_its_name_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(Some(dir.path()), false, |_| ());
    let key = insert(&cache, &tokens(0, 3000), false, false, Kind::PromptEnd);
    cache.save(&key);
    cache.wait_saved(Duration::from_secs(20));
    let file = cache.file(&key).unwrap();
    let (saved, name) = (fs::read(&file).unwrap(), file.file_name().unwrap().to_str().unwrap());
    let flushes = FLUSHES.lock().unwrap().clone();
    assert_eq!(flushes.len(), 2, "the file, then its directory: {:?}", flushes.iter().map(|f| &f.path));
    let (of_file, of_directory) = (&flushes[0], &flushes[1]);
    let temporary = of_file.path.file_name().unwrap().to_str().unwrap();
    assert!(temporary.starts_with("tmp-") && !of_file.names.iter().any(|n| n == name), "before the name");
    assert!(of_file.bytes == saved, "nothing is written after the flush");
    assert_eq!(of_directory.path, file.parent().unwrap());
    assert!(of_directory.names.iter().any(|n| n == name), "after the name");
    assert!(!of_directory.names.iter().any(|n| n == temporary));
}
