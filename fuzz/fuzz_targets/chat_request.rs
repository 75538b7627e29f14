//! Any bytes as a chat request, read as the server reads it: turns that hold together, and a prompt; or an error that is a 400.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mach_api::chat::{ChatDialect, Limits};
use mach_api::turn::{Input, Parsed};
use mach_api::{ChatTemplate, Dialect};

/// A template that shows all parts of messages.
static TEMPLATE: LazyLock<ChatTemplate> = LazyLock::new(|| {
    ChatTemplate::compile(include_str!("../../demo/chat_template.jinja"), Default::default()).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let limits = Limits::default();
    match ChatDialect::parse(bytes, &limits) {
        Ok(Parsed { turns, .. }) => {
            assert_eq!(turns.len(), 1);
            for turn in turns {
                assert!((1..=limits.choices).contains(&turn.settings.n));
                assert!(turn.settings.sampling.temperature.is_none_or(|t| (0.0..=2.0).contains(&t)));
                let Input::Conversation(chat) = turn.input else { panic!("a chat is a conversation") };
                assert!(!chat.messages.is_empty());
                let _ = TEMPLATE.render(&chat.messages, &chat.tools, &chat.template_kwargs);
            }
        }
        Err(error) => assert_eq!(error.kind.status(), 400),
    }
});
