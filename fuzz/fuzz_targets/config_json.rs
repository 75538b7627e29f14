//! Any bytes as `config.json`: settings that hold together, or an error.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mach_checkpoint::ModelConfig;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = ModelConfig::from_json(Path::new("config.json"), bytes) {
        assert!(config.num_heads.is_multiple_of(config.num_kv_heads));
        assert!(config.moe.top_k <= config.moe.num_experts);
        assert!(config.rope.rotary_dim <= config.head_dim);
        assert_eq!(config.layers.len(), config.moe_layers.len());
    }
});
