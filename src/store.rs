//! Flags of the store of responses.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use mach_server::{Store, StoreConfig};
use tracing::info;

use crate::Exit;

/// Responses that clients may go on from (`previous_response_id`) or ask for again.
#[derive(Debug, Clone, Args)]
pub struct StoreArgs {
    /// Keep no responses; those who go on from one send the whole conversation
    #[arg(long, conflicts_with_all = ["response_store_mib"])]
    pub no_response_store: bool,

    /// Directory of kept responses, and of the key that seals encrypted_content; below the user's cache directory if not given
    #[arg(long, value_name = "DIR")]
    pub response_store_dir: Option<PathBuf>,

    /// Responses that are kept, in MiB; the oldest go first
    #[arg(long, default_value_t = 256, value_name = "MIB")]
    pub response_store_mib: u64,
}

/// Where responses are kept.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// Nowhere; the key of what is sealed is in this directory.
    Nowhere(Option<PathBuf>),
    /// There.
    There(StoreConfig),
}

impl StoreArgs {
    pub(crate) fn validate(&self) -> Result<Place, Exit> {
        let directory = self.response_store_dir.clone();
        let directory = directory.or_else(|| crate::prefix::caches().map(|caches| caches.join("responses")));
        if self.no_response_store {
            return Ok(Place::Nowhere(directory));
        }
        if !(1..=1 << 20).contains(&self.response_store_mib) {
            return Err(Exit::input("--response-store-mib: must be between 1 and 1048576"));
        }
        Ok(Place::There(StoreConfig { directory, bytes: self.response_store_mib << 20 }))
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        if self.no_response_store { 0 } else { StoreConfig::MEMORY }
    }
}

impl Place {
    /// Opens the store.
    pub(crate) fn open(&self) -> Result<Arc<Store>, Exit> {
        let store = match self {
            Self::Nowhere(directory) => Store::key_alone(directory.as_deref()),
            Self::There(config) => Store::open(config).map_err(Exit::failure)?,
        };
        if let Some(place) = store.place() {
            info!(path = %place.display(), "responses are kept");
        }
        Ok(Arc::new(store))
    }
}
