//! The first Gemma on disk: norm weights minus one, the head the embedding.

use super::{DENSE, Row, SwigluVariant};
use crate::Family;

pub(super) static ROW: Row = Row {
    model_type: "gemma",
    family: Family::Gemma,
    norm_minus_one: true,
    tied_by_default: true,
    swiglu_variant: SwigluVariant::PlainGeglu,
    module: "mach_models::gemma",
    ..DENSE
};
