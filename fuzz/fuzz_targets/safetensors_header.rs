//! Any bytes as a safetensors file: entries inside the file, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // Most random lengths are absurd, so the input is also tried as the JSON of a well-framed header.
    let mut framed = (bytes.len() as u64).to_le_bytes().to_vec();
    framed.extend_from_slice(bytes);
    framed.extend_from_slice(&[0; 64]);
    for file in [bytes, &framed[..framed.len() - 64], &framed] {
        if let Ok((entries, data)) = mach_checkpoint::parse_header(file) {
            for entry in entries {
                assert!(data <= entry.start && entry.start <= entry.end && entry.end <= file.len());
            }
        }
    }
});
