//! Mistral on disk: as `llama`, with one window for all layers where `sliding_window` says so.

use super::{DENSE, Row};
use crate::Family;

pub(super) static ROW: Row = Row {
    model_type: "mistral",
    family: Family::Mistral,
    sliding_interval: Some(1),
    module: "mach_models::mistral",
    ..DENSE
};
