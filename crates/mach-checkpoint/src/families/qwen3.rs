//! Qwen3 without experts on disk: as `qwen3_moe`, with a dense network in every layer.

use super::{DENSE, Row, SpecdecKind};
use crate::Family;

pub(super) static ROW: Row = Row {
    model_type: "qwen3",
    family: Family::Qwen3,
    specdec_kind: SpecdecKind::SpecdecV7,
    module: "mach_models::qwen3",
    ..DENSE
};
