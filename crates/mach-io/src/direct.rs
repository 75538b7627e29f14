//! Parts of a file, read past the page cache, one at a time.

use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::files::{OpenFile, open_all};
use crate::{Caching, HugeBuf, READ_ALIGN, ReadError};

/// A file that any thread may read parts of: past the page cache where the filesystem allows it.
#[derive(Debug)]
pub struct DirectFile {
    open: OpenFile,
    caching: Caching,
}

impl DirectFile {
    /// Opens the file.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let (mut files, caching) = open_all(&[path.to_owned()], Caching::Direct)?;
        match files.pop() {
            Some(open) => Ok(DirectFile { open, caching }),
            None => Err(ReadError::Setup("nothing was opened".to_owned())),
        }
    }

    /// Whether reads truly bypass the page cache.
    pub fn caching(&self) -> Caching {
        self.caching
    }

    /// Bytes that a buffer must have for a part of `len` bytes at any offset.
    pub fn buffer_len(len: usize) -> usize {
        len.next_multiple_of(READ_ALIGN) + READ_ALIGN
    }

    /// Reads `len` bytes at any `offset` by way of `buffer`, which has [`buffer_len`](Self::buffer_len) bytes.
    pub fn read<'a>(&self, offset: u64, len: usize, buffer: &'a mut HugeBuf) -> Result<&'a [u8], ReadError> {
        let align = READ_ALIGN as u64;
        let (start, skip) = (offset / align * align, (offset % align) as usize);
        let invalid = |reason| ReadError::Invalid { file: 0, offset, len, reason };
        let window = (skip + len).next_multiple_of(READ_ALIGN);
        let Some(window) = buffer.get_mut(..window) else {
            return Err(invalid("the buffer is too small"));
        };
        let mut done = 0;
        while done < skip + len {
            let rest = window.get_mut(done..).unwrap_or_default();
            match self.open.file.read_at(rest, start + done as u64) {
                Ok(0) => {
                    let (file, found) = (self.open.path.clone(), done.saturating_sub(skip));
                    return Err(ReadError::Truncated { file, offset, len, found });
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(ReadError::Io { file: self.open.path.clone(), offset, len, source });
                }
            }
        }
        Ok(window.get(skip..skip + len).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_of_a_file_comes_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let bytes: Vec<u8> = (0..3 * READ_ALIGN + 77).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = DirectFile::open(&path).unwrap();
        for (offset, len) in
            [(0, 1), (0, bytes.len()), (4095, 2), (5000, 7000), (READ_ALIGN * 3, 77), (bytes.len() - 1, 1)]
        {
            let mut buffer = HugeBuf::zeroed(DirectFile::buffer_len(len)).unwrap();
            assert_eq!(file.read(offset as u64, len, &mut buffer).unwrap(), &bytes[offset..offset + len]);
        }
        let mut buffer = HugeBuf::zeroed(DirectFile::buffer_len(100)).unwrap();
        let error = file.read(3 * READ_ALIGN as u64, 78, &mut buffer).unwrap_err();
        assert!(matches!(error, ReadError::Truncated { found: 77, len: 78, .. }), "{error}");
        assert!(file.read(0, 1 << 20, &mut buffer).is_err());
    }
}
