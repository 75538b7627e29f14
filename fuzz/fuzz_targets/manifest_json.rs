//! Any bytes as a sidecar's `manifest.json`: records that lie inside their files, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mach_experts::Manifest;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(manifest) = Manifest::parse(bytes) {
        for entry in &manifest.layers {
            assert!(entry.record.weight_bytes() <= entry.stride);
            assert_eq!(Some(entry.length), (entry.stride as u64).checked_mul(manifest.num_experts as u64));
            assert_eq!(entry.crc32c.len(), manifest.num_experts);
        }
    }
});
