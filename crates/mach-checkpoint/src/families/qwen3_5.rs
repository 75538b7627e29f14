//! Qwen3.5 without experts on disk: as `qwen3_5_moe`, with a dense network in every layer.

use super::{DENSE, KvCacheKind, Naming, PUBLISHED, Row, SpecdecKind};
use crate::Family;

pub(super) static ROW: Row = Row {
    model_type: "qwen3_5",
    family: Family::Qwen3_5,
    text_config: true,
    namings: &[
        Naming { prefix: "model.language_model.", head: "lm_head" },
        Naming { prefix: "language_model.model.", head: "language_model.lm_head" },
        PUBLISHED,
    ],
    norm_minus_one: true,
    partial_rotary_factor: 0.25,
    full_attention_interval: Some(4),
    kv_cache_kind: KvCacheKind::HybridGdn,
    specdec_kind: SpecdecKind::SpecdecV7,
    module: "mach_models::qwen3_5",
    ..DENSE
};
