//! The directory of the store: its user's alone, its files never through links.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Name of the database.
pub(super) const DATABASE: &str = "responses.redb";
/// Name of the key.
const KEY: &str = "seal.key";

/// Opens a file that is this user's, and makes it where it is missing.
pub(super) fn file(directory: &Path, name: &str) -> Result<File, String> {
    let told = |e: std::io::Error| e.to_string();
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(told)?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(directory.join(name))
        .map_err(told)?;
    let meta = file.metadata().map_err(told)?;
    // SAFETY: geteuid takes nothing and cannot fail.
    let user = unsafe { libc::geteuid() };
    if !meta.is_file() || meta.uid() != user {
        return Err(format!("{name} is not a file of this user's"));
    }
    Ok(file)
}

/// The key of this directory, made at the first time. Servers that start together agree on one.
pub(super) fn key(directory: &Path) -> Result<[u8; 32], String> {
    let mut file = file(directory, KEY)?;
    file.lock().map_err(|e| e.to_string())?;
    let mut key = [0; 32];
    match file.read_exact(&mut key) {
        Ok(()) => return Ok(key),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => {}
        Err(e) => return Err(e.to_string()),
    }
    for half in key.chunks_mut(16) {
        half.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
    }
    file.set_len(0).map_err(|e| e.to_string())?;
    std::io::Seek::rewind(&mut file).map_err(|e| e.to_string())?;
    file.write_all(&key).and_then(|()| file.sync_all()).map_err(|e| e.to_string())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_key_and_lends_none_of_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        let one = key(&inner).unwrap();
        assert_eq!(key(&inner).unwrap(), one);
        assert_ne!(key(&dir.path().join("c")).unwrap(), one);
        assert_eq!(std::fs::metadata(inner.join(KEY)).unwrap().mode() & 0o777, 0o600);
        // A key that was cut is made anew.
        std::fs::write(inner.join(KEY), b"short").unwrap();
        let other = key(&inner).unwrap();
        assert!(other != one && key(&inner).unwrap() == other);
        std::fs::remove_file(inner.join(KEY)).unwrap();
        std::os::unix::fs::symlink(dir.path().join("c").join(KEY), inner.join(KEY)).unwrap();
        assert!(key(&inner).is_err());
    }
}
