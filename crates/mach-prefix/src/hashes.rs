//! Hashes of files, kept beside the cache under what each file was when it was hashed.

use std::io::{self, Read, Write};
use std::path::Path;
use std::time::SystemTime;

use crate::chain::{Hash, hex};
use crate::folder::{Access, Folder, Home, this_user};

const DIRECTORY: &str = "hashes";
const MAGIC: &[u8; 8] = b"MACHHASH";
const SUFFIX: &str = ".hash";
/// Most hashes kept; the longest unused go first.
const MOST: usize = 4096;

/// Hashes by the stamps of their files. One file each: magic, hash, and a checksum over both and the stamp.
#[derive(Debug)]
pub struct KeptHashes {
    home: Home,
    most: usize,
}

fn name(stamp: &[u8]) -> String {
    let hash = blake3::hash(stamp);
    format!("{}{SUFFIX}", hex(hash.as_bytes().get(..20).unwrap_or_default()))
}

fn is_name(name: &str) -> bool {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    name.strip_suffix(SUFFIX).is_some_and(|stem| stem.len() == 40 && stem.bytes().all(hex))
}

fn checksum(stamp: &[u8], hash: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(MAGIC).update(stamp).update(hash);
    *hasher.finalize().as_bytes()
}

impl KeptHashes {
    /// Those in the directory of a cache. Nothing is read or made yet.
    pub fn beside(cache: &Path) -> Self {
        KeptHashes { home: Home { path: cache.join(DIRECTORY), owner: this_user() }, most: MOST }
    }

    /// The hash of the file with this stamp, if it is known and undamaged.
    pub fn get(&self, stamp: &[u8]) -> Option<Hash> {
        let file = self.home.open().ok()?.file(&name(stamp), Access::Read).ok()?;
        let mut bytes = Vec::new();
        (&file).take(128).read_to_end(&mut bytes).ok()?;
        let hash = bytes.strip_prefix(MAGIC.as_slice())?.get(..32)?;
        if bytes.get(40..)? != checksum(stamp, hash) {
            return None;
        }
        // The longest unused go first.
        let _ = file.set_modified(SystemTime::now());
        hash.try_into().ok()
    }

    /// Keeps a hash.
    pub fn keep(&self, stamp: &[u8], hash: &Hash) -> io::Result<()> {
        let folder = self.home.make()?;
        self.make_room(&folder)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(hash);
        bytes.extend(checksum(stamp, hash));
        let name = name(stamp);
        // What is left of a torn one gives way.
        if folder.file(&name, Access::Read).is_ok_and(|file| is_ours(&file)) {
            folder.remove(&name)?;
        }
        match folder.file(&name, Access::Create) {
            // Another server was quicker.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            file => {
                let mut file = file?;
                file.write_all(&bytes)?;
                file.sync_all()
            }
        }
    }

    fn make_room(&self, folder: &Folder) -> io::Result<()> {
        let names: Vec<String> = folder.names()?.into_iter().filter(|name| is_name(name)).collect();
        if names.len() < self.most {
            return Ok(());
        }
        let used = |name: String| {
            let file = folder.file(&name, Access::Read).ok().filter(is_ours)?;
            Some((file.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH), name))
        };
        let mut ours: Vec<(SystemTime, String)> = names.into_iter().filter_map(used).collect();
        ours.sort();
        let gone = ours.iter().take((ours.len() + 1).saturating_sub(self.most));
        gone.into_iter().try_for_each(|(_, name)| folder.remove(name))
    }
}

fn is_ours(mut file: &std::fs::File) -> bool {
    let mut start = [0; 8];
    file.read_exact(&mut start).is_ok() && start == *MAGIC
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_hash_comes_back_under_its_stamp_alone() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptHashes::beside(dir.path());
        assert_eq!(kept.get(b"one"), None);
        kept.keep(b"one", &[1; 32]).unwrap();
        kept.keep(b"two", &[2; 32]).unwrap();
        kept.keep(b"one", &[1; 32]).unwrap();
        let again = KeptHashes::beside(dir.path());
        let all = [b"one".as_slice(), b"two", b"three"].map(|stamp| again.get(stamp));
        assert_eq!(all, [Some([1; 32]), Some([2; 32]), None]);
        // Under the name of another it counts for nothing.
        let file = |stamp: &[u8]| dir.path().join(DIRECTORY).join(name(stamp));
        fs::copy(file(b"one"), file(b"two")).unwrap();
        assert_eq!(again.get(b"two"), None);
    }

    #[test]
    fn a_damaged_hash_is_none_and_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptHashes::beside(dir.path());
        kept.keep(b"one", &[1; 32]).unwrap();
        let file = dir.path().join(DIRECTORY).join(name(b"one"));
        let good = fs::read(&file).unwrap();
        for bit in 0..8 * good.len() {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, bad).unwrap();
            assert_eq!(kept.get(b"one"), None, "bit {bit}");
        }
        for bad in [&good[..good.len() - 1], &good[..20], &good[..0], &[good.as_slice(), b"x"].concat()] {
            fs::write(&file, bad).unwrap();
            assert_eq!(kept.get(b"one"), None);
        }
        kept.keep(b"one", &[3; 32]).unwrap();
        assert_eq!(kept.get(b"one"), Some([3; 32]));
        // What is not mach's stays.
        fs::write(&file, "notes").unwrap();
        kept.keep(b"one", &[3; 32]).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"notes");
    }

    #[test]
    fn the_longest_unused_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let kept = KeptHashes { most: 3, ..KeptHashes::beside(dir.path()) };
        for stamp in 0..3u8 {
            kept.keep(&[stamp], &[stamp; 32]).unwrap();
            let file = fs::File::open(dir.path().join(DIRECTORY).join(name(&[stamp]))).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(stamp.into())).unwrap();
        }
        fs::write(dir.path().join(DIRECTORY).join("notes.hash"), "").unwrap();
        assert_eq!(kept.get(&[0]), Some([0; 32]), "used again");
        kept.keep(&[3], &[3; 32]).unwrap();
        let left = [0, 1, 2, 3].map(|stamp| kept.get(&[stamp]).is_some());
        assert_eq!(left, [true, false, true, true]);
        assert_eq!(fs::read_dir(dir.path().join(DIRECTORY)).unwrap().count(), 4);
    }
}
