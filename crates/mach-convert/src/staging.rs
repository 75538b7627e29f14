//! The directory that a conversion grows in, and how it takes its place.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ConvertError;

/// File that marks a staging directory and says what grows in it.
const MARKER: &str = "conversion.json";

/// Ending of files that are being written.
const UNFINISHED: &str = "unfinished";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    format: String,
    source: String,
}

/// A staging directory, held by a lock while this value lives.
#[derive(Debug)]
pub(crate) struct Staging {
    dir: PathBuf,
    _lock: File,
}

impl Staging {
    /// Makes the directory `dir`, or goes on with one that an interrupted conversion of the same `source` left.
    pub(crate) fn begin(dir: PathBuf, source: &str) -> Result<Self, ConvertError> {
        let path = dir.join(MARKER);
        let wanted = Marker { format: "mach-conversion-1".to_owned(), source: source.to_owned() };
        if dir.exists() {
            let bytes = std::fs::read(&path).unwrap_or_default();
            let found: Option<Marker> = serde_json::from_slice(&bytes).ok();
            let empty = std::fs::read_dir(&dir).map_err(ConvertError::io(&dir))?.next().is_none();
            if found.as_ref() != Some(&wanted) && !empty {
                return Err(ConvertError::Input(format!(
                    "{}: left by something else than an interrupted conversion of this checkpoint with these options; remove it",
                    dir.display()
                )));
            }
        }
        std::fs::create_dir_all(&dir).map_err(ConvertError::io(&dir))?;
        if !path.exists() {
            let json = serde_json::to_vec(&wanted).map_err(|e| ConvertError::Input(e.to_string()))?;
            write_file(&path, |file| file.write_all(&json))?;
        }
        let lock = File::open(&path).map_err(ConvertError::io(&path))?;
        if lock.try_lock().is_err() {
            return Err(ConvertError::Input(format!("{}: another conversion is writing it", dir.display())));
        }
        Ok(Staging { dir, _lock: lock })
    }

    /// The temporary directory that is written to.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Renames the directory to `to`, which does not exist or is empty, once all of `dirs` (and itself) are on the drive.
    pub(crate) fn finish(self, to: &Path, dirs: &[&Path]) -> Result<(), ConvertError> {
        for dir in dirs {
            sync_dir(dir)?;
        }
        sync_dir(&self.dir)?;
        std::fs::rename(&self.dir, to).map_err(ConvertError::io(to))?;
        if let Some(parent) = parent(to) {
            sync_dir(parent)?;
        }
        // From here on the result stands; what only helped to make it may go or stay.
        let _ = std::fs::remove_file(to.join(MARKER));
        Ok(())
    }
}

/// The directory that a path lies in.
pub(crate) fn parent(path: &Path) -> Option<&Path> {
    path.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p })
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), ConvertError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(ConvertError::io(dir))
}

/// Writes a file under another name and renames it when it is on the drive. A failed one is removed.
pub(crate) fn write_file<E>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<(), E>,
) -> Result<(), ConvertError>
where
    E: IntoConvert,
{
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(UNFINISHED);
    let unfinished = PathBuf::from(name);
    let mut file = File::create(&unfinished).map_err(ConvertError::io(&unfinished))?;
    let written = write(&mut file)
        .map_err(|e| e.into_convert(path))
        .and_then(|()| file.sync_all().map_err(ConvertError::io(path)));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&unfinished);
        return Err(error);
    }
    std::fs::rename(&unfinished, path).map_err(ConvertError::io(path))
}

/// Errors that a writer of a file may have.
pub(crate) trait IntoConvert {
    fn into_convert(self, file: &Path) -> ConvertError;
}

impl IntoConvert for std::io::Error {
    fn into_convert(self, file: &Path) -> ConvertError {
        ConvertError::io(file)(self)
    }
}

impl IntoConvert for ConvertError {
    fn into_convert(self, _: &Path) -> ConvertError {
        self
    }
}
