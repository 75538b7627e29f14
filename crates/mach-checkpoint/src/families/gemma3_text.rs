//! The text model of Gemma 3 on disk: norm weights minus one, five sliding layers, then a full one.

use super::{DENSE, KvCacheKind, Row, SwigluVariant};
use crate::Family;

pub(super) static ROW: Row = Row {
    model_type: "gemma3_text",
    family: Family::Gemma3Text,
    norm_minus_one: true,
    sliding_interval: Some(6),
    tied_by_default: true,
    swiglu_variant: SwigluVariant::PlainGeglu,
    kv_cache_kind: KvCacheKind::Rotating,
    module: "mach_models::gemma3_text",
    ..DENSE
};
