//! Any bytes as a chat request: a valid request, or an error that is a 400.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mach_api::ChatRequest;
use mach_api::chat::Limits;

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    match ChatRequest::parse(bytes, &limits) {
        Ok(request) => {
            assert!(!request.messages.is_empty());
            assert!((1..=limits.choices).contains(&request.n));
            assert!(request.sampling.temperature.is_none_or(|t| (0.0..=2.0).contains(&t)));
        }
        Err(error) => assert_eq!(error.kind.status(), 400),
    }
});
