//! Expert residency: where the weights of routed experts are while the model runs.
//!
//! On disk experts lie in a [`Sidecar`], one file a layer, described by a [`Manifest`]. An expert is one contiguous record ([`RecordLayout`]) in a [`Bank`], the single allocation that holds experts. With
//! all experts resident every (layer, expert) has a slot of its own. A [`StreamingBank`] has fewer: experts are read into
//! it when they are asked for, and an [`Eviction`] policy says which
//! make room; what only one layer of one pass needs goes through a transient arena. [`StreamingStats`] tells other threads what happens.

#![forbid(unsafe_code)]

/// Whether experts are read before a router asks for them. Peers lost 10 to 70 % with it on a busy drive.
pub const PREDICTS: bool = false;
/// Whether the bank lies in memory that an accelerator sees.
pub const IN_DEVICE_MEMORY: bool = false;

mod arena;
mod background;
mod bank;
mod eviction;
mod fetch;
mod fetcher;
mod heat;
mod joined;
mod manifest;
mod record;
mod residency;
mod sidecar;
mod slices;
mod streaming;
mod summary;
mod traffic;
mod uses;

pub use bank::{Bank, BankError};
pub use eviction::{Eviction, EvictionPolicy, ExpertKey};
pub use fetch::ExpertFiles;
pub use heat::{Heat, HotExperts};
pub use joined::{Join, Parts};
pub use manifest::{LayerEntry, MANIFEST_FORMAT, Manifest, ManifestError};
pub use record::{
    BiasAt, BiasView, ExpertView, MatrixView, Part, Projection, RECORD_ALIGN, RecordError, RecordLayout,
    RecordView,
};
pub use residency::{BankFull, LayerStats, Place, Reserved, Residency};
pub use sidecar::{Location, Sidecar, SidecarError, source_id};
pub use slices::{SlicePool, SliceSource};
pub use streaming::{BankOptions, Checksums, StreamingBank, StreamingError, checksums};
pub use summary::{DirectPread, LayerSummary, StreamingStats, StreamingSummary};
pub use traffic::Demand;
pub use uses::{ExpertUses, LayerUses};
