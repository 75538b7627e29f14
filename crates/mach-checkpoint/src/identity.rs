//! Which bytes a checkpoint's weights are: hashes of whole files, and what tells that a file has not changed since.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What a file was at one moment. A change of its bytes changes this, even in place and with the time of modification put
/// back: the time of the last change of status cannot be set. Where a filesystem keeps no such time, the others have to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileStamp {
    /// Device of the filesystem.
    pub device: u64,
    /// Number of the file there.
    pub inode: u64,
    /// Length.
    pub bytes: u64,
    /// Nanoseconds since 1970 of the last modification.
    pub modified: i128,
    /// Nanoseconds since 1970 of the last change of bytes, name, owner or permissions.
    pub changed: i128,
}

impl FileStamp {
    /// Of a file whose metadata these are.
    pub fn new(meta: &Metadata) -> Self {
        let nanos = |seconds: i64, nanos: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        FileStamp {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.len(),
            modified: nanos(meta.mtime(), meta.mtime_nsec()),
            changed: nanos(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Of the file at this path; `None` if there is none.
    pub fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path).ok().map(|meta| Self::new(&meta))
    }

    /// All of it as bytes.
    pub fn to_bytes(&self) -> [u8; 56] {
        let mut out = [0; 56];
        let numbers = [self.device, self.inode, self.bytes].map(|n| i128::from(n).to_le_bytes());
        let parts = numbers.iter().map(|n| n.get(..8).unwrap_or_default());
        let (modified, changed) = (self.modified.to_le_bytes(), self.changed.to_le_bytes());
        let parts = parts.chain([modified.as_slice(), &changed]).flatten();
        out.iter_mut().zip(parts).for_each(|(to, from)| *to = *from);
        out
    }
}

/// A file of weights as it was when it was opened for loading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it was.
    pub stamp: FileStamp,
}

impl WeightFile {
    /// The file at this path; `None` if there is none.
    pub fn at(path: PathBuf) -> Option<Self> {
        FileStamp::of(&path).map(|stamp| WeightFile { path, stamp })
    }

    /// Whether the path still leads to that file, unchanged.
    pub fn is_unchanged(&self) -> bool {
        FileStamp::of(&self.path) == Some(self.stamp)
    }

    /// The BLAKE3 hash of all of its bytes, read in order. `pause` is called after every few MiB, with their number, and may end it.
    /// An error if the file is not, or no longer, the one that was opened.
    pub fn hash(&self, pause: &mut dyn FnMut(usize) -> io::Result<()>) -> io::Result<[u8; 32]> {
        const CHUNK: usize = 8 << 20;
        let changed = || io::Error::other(format!("{} has changed since it was opened", self.path.display()));
        let mut file = File::open(&self.path)?;
        let is_same = |file: &File| Ok::<_, io::Error>(FileStamp::new(&file.metadata()?) == self.stamp);
        if !is_same(&file)? {
            return Err(changed());
        }
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK.min(self.stamp.bytes as usize).max(1)];
        loop {
            let read = match file.read(&mut chunk) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            if read == 0 {
                break;
            }
            hasher.update(chunk.get(..read).unwrap_or_default());
            pause(read)?;
        }
        if is_same(&file)? { Ok(*hasher.finalize().as_bytes()) } else { Err(changed()) }
    }
}
