//! Converting and running the project's checkpoints.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use mach_checkpoint::Checkpoint;
use mach_convert::{ConvertError, ConvertOptions, Quantize, Report, convert};
use mach_cpu::load;
use mach_models::{Activations, LoadOptions, LogitRows, ModelError, NoObserver, Segment};

/// A path below the project's root.
pub(crate) fn project(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

pub(crate) fn options(out: &Path, quantize: Option<Quantize>) -> ConvertOptions {
    ConvertOptions { out: out.to_owned(), quantize, threads: 2 }
}

pub(crate) fn converted(from: &Path, out: &Path, quantize: Option<Quantize>) -> Result<Report, ConvertError> {
    convert(&Checkpoint::open(from)?, &options(out, quantize), &mut |_| ())
}

/// The bits of the logits of a short prompt.
pub(crate) fn logits(dir: &Path, activations: Activations) -> Result<Vec<u32>, ModelError> {
    let checkpoint = Checkpoint::open(dir)?;
    let mut model =
        load(&checkpoint, &LoadOptions { activations, threads: 2, ..Default::default() }, &mut |_| ())?;
    let tokens: Vec<u32> = (0..24).map(|i| (i * 37 + 11) % checkpoint.config().vocab_size as u32).collect();
    let mut state = model.new_state();
    let mut segments = [Segment::prompt(&mut state, &tokens, LogitRows::All)];
    let logits = model.forward(&mut segments, &mut NoObserver)?;
    Ok(logits.data.iter().map(|v| v.to_bits()).collect())
}

/// Flips a bit of a file.
pub(crate) fn flip(path: &Path, at: u64) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at as usize] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

/// A copy of a checkpoint's own files.
pub(crate) fn copy_of(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    dir
}
