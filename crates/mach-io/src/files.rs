//! The files that a reader reads, opened past the page cache where that works.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::{HugeBuf, READ_ALIGN};

/// Whether reads go through the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Caching {
    /// Past it (`O_DIRECT`, `F_NOCACHE`) if the filesystem takes that, else through it.
    #[default]
    Direct,
    /// Through it, without read-ahead.
    Buffered,
}

impl Caching {
    /// `direct` or `buffered`.
    pub fn as_str(self) -> &'static str {
        match self {
            Caching::Direct => "direct",
            Caching::Buffered => "buffered",
        }
    }
}

/// Why a read did not bring its bytes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// A file cannot be opened.
    #[error("{}: cannot be opened: {source}", file.display())]
    Open {
        /// The file that was to be read.
        file: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The drive or filesystem failed.
    #[error("{}: reading {len} bytes at offset {offset}: {source}", file.display())]
    Io {
        /// The file that was to be read.
        file: PathBuf,
        /// Offset of the read.
        offset: u64,
        /// Bytes wanted.
        len: usize,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file ends too early: it was cut after it was opened, or is not what its manifest says.
    #[error("{}: truncated: {found} of {len} bytes at offset {offset}", file.display())]
    Truncated {
        /// The file that was to be read.
        file: PathBuf,
        /// Offset of the read.
        offset: u64,
        /// Bytes wanted.
        len: usize,
        /// Bytes there.
        found: usize,
    },
    /// A read that breaks the rules of [`Read`](crate::Read).
    #[error("read of {len} bytes at offset {offset} of file {file}: {reason}")]
    Invalid {
        /// Index of the file.
        file: usize,
        /// Offset of the read.
        offset: u64,
        /// Bytes wanted.
        len: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Memory or threads for reading cannot be had.
    #[error("no reader: {0}")]
    Setup(String),
}

/// One open file. A file that is replaced on disk keeps its old contents here; one that is overwritten in place is for
/// checksums to detect.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    pub(crate) len: u64,
}

/// Opens all files; the second value is the mode that they are truly in, the same for all.
pub(crate) fn open_all(paths: &[PathBuf], wanted: Caching) -> Result<(Vec<OpenFile>, Caching), ReadError> {
    if wanted == Caching::Direct
        && let Some(files) = paths.iter().map(|p| open_direct(p)).collect::<Result<Option<Vec<_>>, _>>()?
    {
        return Ok((files, Caching::Direct));
    }
    let files = paths.iter().map(|path| {
        let file = File::open(path).map_err(|source| error(path, source))?;
        #[cfg(target_os = "linux")]
        {
            // Read-ahead around random records only wastes the drive. Failing costs speed, nothing else.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
        }
        finish(path, file)
    });
    Ok((files.collect::<Result<_, _>>()?, Caching::Buffered))
}

fn error(path: &Path, source: std::io::Error) -> ReadError {
    ReadError::Open { file: path.to_owned(), source }
}

fn finish(path: &Path, file: File) -> Result<OpenFile, ReadError> {
    let meta = file.metadata().map_err(|source| error(path, source))?;
    if !meta.is_file() {
        return Err(error(path, std::io::Error::other("not a regular file")));
    }
    Ok(OpenFile { path: path.to_owned(), file, len: meta.len() })
}

/// The file past the page cache; `None` if its filesystem does not do that.
fn open_direct(path: &Path) -> Result<Option<OpenFile>, ReadError> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(libc::O_DIRECT);
    }
    let refused = |e: &std::io::Error| e.raw_os_error() == Some(libc::EINVAL);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(e) if refused(&e) => return Ok(None),
        Err(e) => return Err(error(path, e)),
    };
    #[cfg(target_os = "macos")]
    {
        use std::os::fd::AsRawFd;
        // SAFETY: a valid descriptor and a command without pointers.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_NOCACHE, 1) } < 0 {
            return Ok(None);
        }
    }
    let open = finish(path, file)?;
    // Some filesystems accept the flag and refuse the read.
    let mut sector = HugeBuf::zeroed(READ_ALIGN).map_err(|e| ReadError::Setup(e.to_string()))?;
    match open.file.read_at(&mut sector, 0) {
        Err(e) if refused(&e) => Ok(None),
        Err(source) => Err(ReadError::Io { file: path.to_owned(), offset: 0, len: READ_ALIGN, source }),
        Ok(_) => Ok(Some(open)),
    }
}
