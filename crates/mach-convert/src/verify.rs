//! Reading back everything that was written.

use mach_checkpoint::{Checkpoint, WeightSource};
use mach_experts::Sidecar;
use mach_io::ReaderOptions;
use mach_models::{ResidentWeight, resident_weights};

use crate::{ConvertError, Progress};

/// Reads every record of the sidecar past the page cache, and for a converted checkpoint every other tensor, and compares
/// with the checksums.
pub fn verify(checkpoint: &Checkpoint, progress: &mut dyn FnMut(Progress)) -> Result<(), ConvertError> {
    let sidecar = Sidecar::open(checkpoint)?;
    let bytes_total = sidecar.manifest().layers.iter().map(|e| e.length).sum();
    if checkpoint.resident_index().is_some() {
        // Vectors are checked as they are listed.
        for weight in resident_weights(checkpoint)? {
            let ResidentWeight::Matrix { module, rows, cols, .. } = weight else { continue };
            if let WeightSource::Packed(packed) = checkpoint.weights(&module, rows, cols)?
                && crc32c::crc32c(packed.data) != packed.crc32c
            {
                return Err(packed.damaged().into());
            }
        }
    }
    let mut reader = sidecar.reader(&ReaderOptions::default())?;
    sidecar.verify_all(&mut reader, &mut |bytes_done| progress(Progress { bytes_done, bytes_total }))?;
    Ok(())
}
