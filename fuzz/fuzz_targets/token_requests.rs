//! Any bytes as the bodies of `/tokenize`, `/detokenize` and `/v1/cache/warm_prefix`: a request, or an error that is a 400.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mach_api::ApiError;
use mach_api::chat::{Limits, WarmRequest};
use mach_api::tokens::{DetokenizeRequest, TokenizeInput, TokenizeRequest};

fn refused<T>(result: Result<T, ApiError>) -> Option<T> {
    result.map_err(|error| assert_eq!(error.kind.status(), 400)).ok()
}

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    if let Some(request) = refused(TokenizeRequest::parse(bytes, &limits))
        && let TokenizeInput::Chat { messages, .. } = request.input
    {
        assert!(!messages.is_empty());
    }
    refused(DetokenizeRequest::parse(bytes, &limits));
    if let Some(warm) = refused(WarmRequest::parse(bytes, &limits)) {
        assert!(warm.cache_salt.is_none_or(|salt| (1..=1024).contains(&salt.len())));
    }
});
