//! Any bytes as a completion request, read as the server reads it: at least one prompt, none empty; or an error that is a 400.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mach_api::Dialect;
use mach_api::chat::Limits;
use mach_api::completions::CompletionDialect;
use mach_api::turn::{Input, Parsed};

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    match CompletionDialect::parse(bytes, &limits) {
        Ok(Parsed { turns, .. }) => {
            assert!(
                !turns.is_empty() && turns.len() * turns[0].settings.n as usize <= limits.choices as usize
            );
            for turn in turns {
                match turn.input {
                    Input::Text(text) => assert!(!text.is_empty()),
                    Input::Tokens(ids) => assert!(!ids.is_empty()),
                    Input::Conversation(_) => panic!("a prompt is no conversation"),
                }
            }
        }
        Err(error) => assert_eq!(error.kind.status(), 400),
    }
});
