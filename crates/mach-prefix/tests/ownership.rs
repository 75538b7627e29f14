//! Whose files are whose: what is not mach's stays, and servers that share a directory do not hinder each other.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{check, insert, open, tokens};
use mach_prefix::{Kind, PrefixCache};

const SEGMENT: &str = "0123456789abcdef0123456789abcdef01234567.seg";
const NAMESPACE: &str = "0123456789abcdef0123456789abcdef";
const BUDGET: u64 = 300_000;

fn small(dir: &Path) -> PrefixCache {
    open(Some(dir), false, |c| c.disk_budget = BUDGET)
}

fn save(cache: &PrefixCache, seed: u32) -> [u8; 32] {
    let key = insert(cache, &tokens(seed, 300), false, false, Kind::PromptEnd);
    cache.save(&key);
    cache.wait_saved(Duration::from_secs(20));
    key
}

fn save_all(cache: &PrefixCache, seeds: std::ops::Range<u32>) {
    for seed in seeds {
        save(cache, seed);
    }
}

/// The directory of the namespace that [`open`] uses.
fn own(dir: &Path) -> PathBuf {
    dir.join("0".repeat(32))
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(own(dir)).unwrap().map(|e| e.unwrap().path());
    files.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect()
}

/// Every plain file below a directory, links not followed, and what is in it.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            all.extend(contents(&entry.path()));
        } else if kind.is_file() {
            all.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    all
}

#[test]
fn what_is_not_machs_is_neither_removed_nor_written() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let head = b"MACHSEG1 and something of another model".as_slice();
    let theirs = [
        // Of the user, by name or by place.
        ("videos/part-001.seg", b"a film".as_slice()),
        ("notes.txt", b"notes"),
        // Another model's, whole.
        (&format!("{NAMESPACE}/{SEGMENT}"), head),
        // In mach's directories, but not by name.
        (&format!("{}/part.seg", "0".repeat(32)), head),
        (&format!("{}/tmp-notes", "0".repeat(32)), head),
        (&format!("{}/tmp-1-2", "0".repeat(32)), b"not by its beginning"),
        (&format!("{}/quarantine/part.seg", "0".repeat(32)), head),
        (&format!("{}/quarantine/{SEGMENT}", "0".repeat(32)), b"not by its beginning"),
    ];
    for (name, bytes) in theirs {
        let file = dir.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
    // Links out of the directory: of a file, of a namespace, of any directory.
    fs::write(elsewhere.path().join(SEGMENT), head).unwrap();
    symlink(elsewhere.path().join(SEGMENT), own(dir.path()).join(SEGMENT)).unwrap();
    symlink(elsewhere.path(), dir.path().join(NAMESPACE.replace('0', "f"))).unwrap();
    symlink(elsewhere.path(), dir.path().join("link")).unwrap();
    let (inside, outside) = (contents(dir.path()), contents(elsewhere.path()));

    let cache = small(dir.path());
    for seed in 0..30 {
        save(&cache, seed);
    }
    cache.close();
    let l2 = cache.stats().l2.unwrap();
    assert!(l2.evicted_for_budget > 10 && l2.save_failures == 0 && l2.bytes <= BUDGET, "{l2:?}");
    assert_eq!(l2.other_namespaces_bytes, head.len() as u64);
    let after = contents(dir.path());
    for (file, bytes) in inside {
        assert_eq!(after.get(&file), Some(&bytes), "{}", file.display());
    }
    assert_eq!(contents(elsewhere.path()), outside);
}

#[test]
fn a_namespace_that_is_a_link_is_not_used() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let real = tempfile::tempdir().unwrap();
    save(&small(real.path()), 1);
    for file in segments(real.path()) {
        fs::copy(&file, elsewhere.path().join(file.file_name().unwrap())).unwrap();
    }
    let before = contents(elsewhere.path());
    symlink(elsewhere.path(), own(dir.path())).unwrap();
    let cache = small(dir.path());
    assert!(cache.lookup(&cache.root(None), &tokens(1, 301)).is_none());
    save(&cache, 2);
    assert!(!cache.stats().l2.unwrap().writable);
    assert_eq!(contents(elsewhere.path()), before);
}

#[test]
fn what_took_a_segments_name_is_not_removed_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let cache = small(dir.path());
    let (first, second) = (save(&cache, 0), save(&cache, 1));
    let (first, second) = (cache.file(&first).unwrap(), cache.file(&second).unwrap());
    let target = dir.path().join("target");
    fs::write(&target, "theirs").unwrap();
    fs::write(first, "theirs").unwrap();
    fs::remove_file(&second).unwrap();
    symlink(&target, &second).unwrap();
    for seed in 2..30 {
        save(&cache, seed);
    }
    assert!(cache.stats().l2.unwrap().evicted_for_budget > 10);
    // What is in mach's directory under a segment's name may be set aside, no more.
    assert!(contents(&own(dir.path())).values().any(|bytes| bytes == b"theirs"));
    assert!(second.is_symlink() && fs::read(&target).unwrap() == b"theirs");
}

#[test]
fn a_dead_writers_files_are_removed_and_a_living_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    drop(small(dir.path()));
    let file = |name: &str| own(dir.path()).join(name);
    for name in ["tmp-1-0", "tmp-1-1"] {
        fs::write(file(name), b"MACHSEG1 begun").unwrap();
    }
    let living = fs::File::open(file("tmp-1-1")).unwrap();
    living.lock().unwrap();
    drop(small(dir.path()));
    assert_eq!([file("tmp-1-0").exists(), file("tmp-1-1").exists()], [false, true]);
    drop(living);
    drop(small(dir.path()));
    assert!(!file("tmp-1-1").exists());
}

#[test]
fn few_damaged_files_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 0..20 {
        let cache = small(dir.path());
        let file = save(&cache, seed);
        let file = cache.file(&file).unwrap();
        cache.close();
        let mut bytes = fs::read(&file).unwrap();
        bytes[100] ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(small(dir.path()).stats().l2.unwrap().quarantined, 1);
    }
    let kept = fs::read_dir(own(dir.path()).join("quarantine")).unwrap().count();
    assert_eq!(kept, 8);
    // They give way before anything else does.
    let cache = small(dir.path());
    save_all(&cache, 20..29);
    let kept = fs::read_dir(own(dir.path()).join("quarantine")).unwrap().count();
    let l2 = cache.stats().l2.unwrap();
    assert!(kept < 8 && l2.files == 9 && l2.evicted_for_budget == 8 - kept as u64, "{kept} kept, {l2:?}");
}

/// What [`many_segments_need_few_open_files`] starts where few files may be open; its directory comes on stdin.
#[test]
#[ignore = "started by another test"]
fn reader_of_many() {
    let mut dir = String::new();
    std::io::stdin().lock().read_line(&mut dir).unwrap();
    let cache = open(Some(Path::new(dir.trim())), false, |_| ());
    assert_eq!(cache.stats().l2.unwrap().files, 100);
}

#[test]
fn many_segments_need_few_open_files() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(Some(dir.path()), false, |_| ());
    save_all(&cache, 0..100);
    cache.close();
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -n 40 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["reader_of_many", "--exact", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{}", dir.path().display()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn what_another_server_removed_is_a_miss_and_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let cache = small(dir.path());
    save_all(&cache, 0..5);
    assert_eq!(cache.stats().l2.unwrap().files, 5);
    segments(dir.path()).iter().for_each(|file| fs::remove_file(file).unwrap());
    cache.clear_memory();
    assert!(cache.lookup(&cache.root(None), &tokens(0, 301)).is_none());
    // Room is made as if they were there, and they are not.
    save_all(&cache, 5..40);
    let l2 = cache.stats().l2.unwrap();
    assert_eq!((l2.save_failures, l2.quarantined, l2.saved), (0, 0, 40), "{l2:?}");
    assert_eq!(l2.files, segments(dir.path()).len());
}

#[test]
fn a_segment_that_another_server_saved_anew_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let first = small(dir.path());
    let key = save(&first, 0);
    let file = first.file(&key).unwrap();
    // The same tokens with the logits after them, as a server saves them that computed the whole prompt.
    let other = tempfile::tempdir().unwrap();
    let second = small(other.path());
    let key = insert(&second, &tokens(0, 300), false, true, Kind::PromptEnd);
    second.save(&key);
    second.wait_saved(Duration::from_secs(20));
    fs::copy(second.file(&key).unwrap(), &file).unwrap();
    first.clear_memory();
    let restored = first.lookup(&first.root(None), &tokens(0, 301)).expect("on disk");
    check(&restored, &tokens(0, 301), false);
    assert_eq!(first.stats().l2.unwrap().quarantined, 0);
    first.clear_memory();
    let restored = first.lookup(&first.root(None), &tokens(0, 300)).expect("with its logits");
    check(&restored, &tokens(0, 300), false);
}

/// What [`two_processes_share_a_directory`] starts: saves and looks up beside others. Its directory and first conversation come
/// on stdin.
#[test]
#[ignore = "started by another test"]
fn neighbour() {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).unwrap();
    let (first, dir) = line.trim().split_once(' ').unwrap();
    let (first, mut found) = (first.parse::<u32>().unwrap(), 0);
    let cache = small(Path::new(dir));
    for round in 0..60 {
        let key = insert(&cache, &tokens(first + round, 300), false, false, Kind::PromptEnd);
        cache.save(&key);
        cache.wait_saved(Duration::from_secs(20));
        cache.clear_memory();
        // The neighbour's latest, if its rounds are about as far.
        for seed in (0..2).map(|other| 1000 * other + round.saturating_sub(1)) {
            let prompt = tokens(seed, 301);
            if let Some(restored) = cache.lookup(&cache.root(None), &prompt) {
                check(&restored, &prompt, false);
                found += usize::from(seed / 1000 != first / 1000);
            }
        }
    }
    let l2 = cache.stats().l2.unwrap();
    assert_eq!((l2.saved, l2.quarantined), (60, 0), "{l2:?}");
    cache.close();
    println!("\nfound {found}");
}

#[test]
fn two_processes_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let start = |first: u32| {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["neighbour", "--exact", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{first} {}", dir.path().display()).unwrap();
        child
    };
    let children = [start(0), start(1000)];
    let mut found = 0;
    for child in children {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        let count = said.lines().find_map(|line| line.strip_prefix("found ")).unwrap();
        found += count.parse::<usize>().unwrap();
    }
    assert!(found > 0, "they find each other's");
    let left: Vec<u64> = segments(dir.path()).iter().map(|file| file.metadata().unwrap().len()).collect();
    let largest = left.iter().max().unwrap();
    // Both may see the same room at once.
    assert!(left.iter().sum::<u64>() <= BUDGET + largest, "{left:?}");
    assert!(left.len() > 3);
    let names = fs::read_dir(own(dir.path())).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.starts_with("tmp-")));
}
