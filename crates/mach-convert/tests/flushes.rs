//! What is on the drive before a conversion has its name, as the C library is asked for it: this test's own `fsync` takes the
//! place of the library's.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use common::{converted, project};

/// A flush: under which name, of which bytes, or of which names.
#[derive(Debug)]
struct Flush {
    path: PathBuf,
    bytes: Vec<u8>,
    names: Vec<String>,
}

static FLUSHES: Mutex<Vec<Flush>> = Mutex::new(Vec::new());

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().into_string().unwrap()).collect()
}

fn flushed(fd: i32) -> i32 {
    let path = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    let flush = Flush { bytes: fs::read(&path).unwrap_or_default(), names: names(&path), path };
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

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all
}

#[test]
fn everything_is_flushed_before_the_result_has_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    converted(&project("fixtures/qwen3_moe/bf16"), &out, None).unwrap();
    let flushes = FLUSHES.lock().unwrap();
    let made = |path: &Path| path.strip_prefix(dir.path()).is_ok_and(|p| p.starts_with("out.partial"));
    // Every file, with its last byte, while the result had no name.
    for file in files(&out) {
        let (bytes, name) = (fs::read(&file).unwrap(), file.file_name().unwrap().to_str().unwrap());
        let same = |f: &&Flush| f.path.file_name().unwrap().to_str().unwrap().starts_with(name);
        let whole = flushes.iter().filter(same).any(|f| made(&f.path) && f.bytes == bytes);
        assert!(whole, "{} is not flushed", file.display());
    }
    // Every directory, with all of its names, and then the one that the result is in.
    let at = |of: &dyn Fn(&Flush) -> bool| flushes.iter().rposition(of);
    for (path, finished) in
        [("out.partial", out.clone()), ("out.partial/expert_sidecar", out.join("expert_sidecar"))]
    {
        let last = at(&|f| f.path == dir.path().join(path)).expect(path);
        let missing: Vec<_> =
            names(&finished).into_iter().filter(|n| !flushes[last].names.contains(n)).collect();
        assert!(missing.is_empty(), "{missing:?} of {path}");
        let files_after = flushes[last..].iter().filter(|f| !f.bytes.is_empty()).count();
        assert_eq!(files_after, 0, "files are flushed after their directory {path}");
    }
    let parent = at(&|f| f.path == dir.path()).expect("the directory that the result is in");
    assert!(parent + 1 == flushes.len() && flushes[parent].names.contains(&"out".to_owned()));
}
