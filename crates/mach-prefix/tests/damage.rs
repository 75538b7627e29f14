//! Whatever happens to the files: never a wrong state, never a failed start.

mod common;

use std::fs;
use std::io::{BufRead, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use common::{check, insert, open, tokens};
use mach_prefix::Kind;

fn files(dir: &Path) -> Vec<PathBuf> {
    let list = |dir: &Path| fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let inner = list(dir).into_iter().filter(|p| p.is_dir()).flat_map(|p| list(&p));
    inner.filter(|p| p.extension().is_some_and(|e| e == "seg")).collect()
}

fn saved(dir: &Path, seeds: u32) {
    let cache = open(Some(dir), false, |_| ());
    for seed in 0..seeds {
        let key = insert(&cache, &tokens(seed, 300), false, false, Kind::PromptEnd);
        cache.save(&key);
        cache.wait_saved(Duration::from_secs(10));
    }
    cache.close();
}

/// Looks all conversations up after a start; gives how many came back and how many files were set aside.
fn restore(dir: &Path, seeds: u32) -> (usize, u64) {
    let cache = open(Some(dir), false, |_| ());
    let mut found = 0;
    for seed in 0..seeds {
        let prompt = tokens(seed, 301);
        if let Some(restored) = cache.lookup(&cache.root(None), &prompt) {
            check(&restored, &prompt, false);
            found += 1;
        }
    }
    (found, cache.stats().l2.unwrap().quarantined)
}

#[test]
fn files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    saved(dir.path(), 1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let file = files(dir.path()).remove(0);
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
}

#[test]
fn damaged_files_are_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    saved(dir.path(), 1);
    let file = files(dir.path()).remove(0);
    let good = fs::read(&file).unwrap();
    let flips = (0..good.len()).step_by(211).map(|at| {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        bad
    });
    let cuts = [0, 1, 100, 4096, good.len() - 4096, good.len() - 1].map(|n| good[..n].to_vec());
    let longer = [[good.clone(), vec![0; 4096]].concat(), b"something else".to_vec(), vec![0; 40_000]];
    for (i, bad) in flips.chain(cuts).chain(longer).enumerate() {
        fs::write(&file, &bad).unwrap();
        let (found, aside) = restore(dir.path(), 1);
        // A flip in the padding at the end of the body changes nothing.
        assert!(found == 1 || aside == 1, "damage {i} was lost");
        assert!(found == 1 || !file.exists());
    }
    fs::write(&file, &good).unwrap();
    assert_eq!(restore(dir.path(), 1), (1, 0));
    assert!(files(dir.path()).len() <= 9, "few damaged files are kept");
}

#[test]
fn another_models_file_is_not_used() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    saved(dir.path(), 2);
    let foreign = open(Some(other.path()), true, |c| c.namespace = [9; 32]);
    let key = insert(&foreign, &tokens(0, 300), true, false, Kind::PromptEnd);
    foreign.save(&key);
    foreign.close();
    let target = files(dir.path()).remove(0);
    fs::copy(&files(other.path())[0], &target).unwrap();
    assert_eq!(restore(dir.path(), 2), (1, 1));
}

#[test]
fn a_directory_that_cannot_be_used_is_no_failure() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let cache = open(Some(&file), false, |_| ());
    let key = insert(&cache, &tokens(0, 300), false, false, Kind::PromptEnd);
    cache.save(&key);
    assert!(cache.lookup(&cache.root(None), &tokens(0, 301)).is_some());
    assert!(!cache.stats().l2.unwrap().writable);
    cache.close();
}

#[test]
fn a_directory_that_goes_away_costs_saves_only() {
    let dir = tempfile::tempdir().unwrap();
    let cache = open(Some(dir.path()), false, |_| ());
    fs::remove_dir_all(dir.path()).unwrap();
    let key = insert(&cache, &tokens(0, 300), false, false, Kind::PromptEnd);
    cache.save(&key);
    cache.wait_saved(Duration::from_secs(10));
    assert_eq!(cache.stats().l2.unwrap().save_failures, 1);
    assert!(cache.lookup(&cache.root(None), &tokens(0, 301)).is_some());
}

#[test]
fn clocks_may_jump() {
    let dir = tempfile::tempdir().unwrap();
    saved(dir.path(), 2);
    let times = [SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(1 << 30)];
    for (file, time) in files(dir.path()).iter().zip(times) {
        fs::File::options().write(true).open(file).unwrap().set_modified(time).unwrap();
    }
    assert_eq!(restore(dir.path(), 2), (2, 0));
}

#[test]
fn two_servers_may_share_a_directory() {
    let dir = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for first in [0, 5] {
            let dir = dir.path();
            scope.spawn(move || {
                let cache = open(Some(dir), false, |c| c.disk_budget = 300_000);
                for round in 0..10 {
                    for seed in first..first + 10 {
                        let prompt = tokens(seed, 301);
                        if let Some(restored) = cache.lookup(&cache.root(None), &prompt) {
                            check(&restored, &prompt, false);
                        }
                        let key = insert(&cache, &prompt[..300], false, false, Kind::PromptEnd);
                        cache.save(&key);
                        if round % 3 == 0 {
                            cache.clear_memory();
                        }
                    }
                    cache.wait_saved(Duration::from_secs(10));
                }
                assert_eq!(cache.stats().l2.unwrap().quarantined, 0);
                cache.close();
            });
        }
    });
    let (found, aside) = restore(dir.path(), 15);
    assert!(found >= 3 && aside == 0, "{found} found, {aside} set aside");
}

/// What [`a_disk_that_is_full_costs_saves_only`] starts where no file may grow beyond 64 KiB; its directory comes on stdin.
#[test]
#[ignore = "started by another test"]
fn writer_without_room() {
    let mut dir = String::new();
    std::io::stdin().lock().read_line(&mut dir).unwrap();
    let cache = open(Some(Path::new(dir.trim())), false, |_| ());
    for (seed, len) in [(0, 300), (1, 8000), (2, 300), (3, 8000)] {
        let key = insert(&cache, &tokens(seed, len), false, false, Kind::PromptEnd);
        cache.save(&key);
        cache.wait_saved(Duration::from_secs(10));
        let mut prompt = tokens(seed, len);
        prompt.push(7);
        check(&cache.lookup(&cache.root(None), &prompt).expect("in memory"), &prompt, false);
    }
    let l2 = cache.stats().l2.unwrap();
    assert_eq!((l2.saved, l2.save_failures, l2.files, l2.quarantined), (2, 2, 2, 0));
    cache.close();
}

/// A limit on the size of files makes writes fail in the middle of a file, as a full disk does.
#[test]
fn a_disk_that_is_full_costs_saves_only() {
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -f 128 || exit 9; exec \"$0\" \"$@\"";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["writer_without_room", "--exact", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{}", dir.path().display()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let own = fs::read_dir(dir.path()).unwrap().flatten().find(|e| e.path().is_dir()).unwrap().path();
    let left: Vec<_> = fs::read_dir(own).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("tmp-")), "{left:?}");
    let cache = open(Some(dir.path()), false, |_| ());
    let found = |seed, len: usize| cache.lookup(&cache.root(None), &tokens(seed, len + 1)).is_some();
    assert_eq!([found(0, 300), found(1, 8000), found(2, 300), found(3, 8000)], [true, false, true, false]);
}

const CONVERSATIONS: u32 = 24;

/// The writer that [`killed_writers_leave_no_wrong_state`] starts and kills; its directory comes on stdin.
#[test]
#[ignore = "started by another test"]
fn writer() {
    let mut dir = String::new();
    std::io::stdin().lock().read_line(&mut dir).unwrap();
    let cache =
        open(Some(Path::new(dir.trim())), false, |c| (c.disk_budget, c.remember_turns) = (1 << 20, true));
    println!("\nwriting");
    std::io::stdout().flush().unwrap();
    for i in 0.. {
        let seed = (i * 7 + std::process::id()) % CONVERSATIONS;
        let key = insert(&cache, &tokens(seed, 300), false, false, Kind::PromptEnd);
        cache.save(&key);
        cache.turns().unwrap().remember([seed as u8; 32], &[seed; 20]);
        cache.wait_saved(Duration::from_secs(10));
        cache.clear_memory();
    }
}

#[test]
fn killed_writers_leave_no_wrong_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut restored = 0;
    for kill in 0..200u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer", "--exact", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{}", dir.path().display()).unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line.trim() != "writing" {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "the writer did not start");
        }
        std::thread::sleep(Duration::from_micros(kill * 7919 % 30_000));
        child.kill().unwrap();
        child.wait().unwrap();
        let _ = out.read_to_string(&mut line);
        // A kill never leaves a damaged file behind, so nothing is set aside.
        let (found, aside) = restore(dir.path(), CONVERSATIONS);
        assert_eq!(aside, 0, "after kill {kill}");
        restored += found;
        let cache = open(Some(dir.path()), false, |c| c.remember_turns = true);
        for seed in 0..CONVERSATIONS {
            let turn = cache.turns().unwrap().recall(&[seed as u8; 32]);
            assert!(turn.is_none_or(|turn| *turn == [seed; 20]));
        }
    }
    assert!(restored > 200, "{restored} restores");
}
