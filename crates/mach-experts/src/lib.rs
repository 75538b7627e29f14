//! Expert residency: where the weights of routed experts are while the model runs.
//!
//! On disk experts lie in a [`Sidecar`], one file a layer, described by a [`Manifest`]. An expert is one contiguous record (gate, up, down) in a [`Bank`], the single allocation that holds experts. With
//! all experts resident every (layer, expert) has a slot of its own.

#![forbid(unsafe_code)]

mod bank;
mod manifest;
mod record;
mod sidecar;

pub use bank::{Bank, BankError};
pub use manifest::{LayerEntry, MANIFEST_FORMAT, Manifest, ManifestError};
pub use record::{ExpertView, MatrixView, RECORD_ALIGN, RecordLayout};
pub use sidecar::{Location, Sidecar, SidecarError, source_id};
