//! Any bytes as the head of a segment of the prefix cache: what is accepted is written back as it was. Half of the inputs
//! get a fitting checksum, so that what lies behind it is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mach_prefix::segment::{ALIGN, Head, head_len};

fuzz_target!(|bytes: &[u8]| {
    let _ = head_len(bytes);
    check(bytes);
    let mut sealed = bytes.to_vec();
    sealed.resize(bytes.len().next_multiple_of(ALIGN).max(ALIGN), 0);
    let end = sealed.len() - 32;
    let hash = blake3::hash(&sealed[..end]);
    sealed[end..].copy_from_slice(hash.as_bytes());
    check(&sealed);
});

fn check(bytes: &[u8]) {
    if let Ok(head) = Head::parse(bytes) {
        assert_eq!(Head::parse(&head.to_bytes()), Ok(head.clone()));
        assert!(head.file_len() >= head.len() as u64 + head.body);
    }
}
