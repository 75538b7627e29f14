//! Fewer, larger chunks where the model is faster than the client.

use mach_engine::Event;

/// Joins texts of the same choice that follow each other. Texts with log probabilities stay as they are: those belong
/// to their own chunk.
pub(crate) fn coalesce<K: PartialEq>(events: impl IntoIterator<Item = (K, Event)>) -> Vec<(K, Event)> {
    let mut out: Vec<(K, Event)> = Vec::new();
    for (key, event) in events {
        if let (
            Some((last_key, Event::Text { choice: last, text, logprobs })),
            Event::Text { choice, text: more, logprobs: new },
        ) = (out.last_mut(), &event)
            && *last_key == key
            && last == choice
            && logprobs.is_empty()
            && new.is_empty()
        {
            text.push_str(more);
        } else {
            out.push((key, event));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(choice: u32, text: &str) -> (u32, Event) {
        (0, Event::Text { choice, text: text.into(), logprobs: Vec::new() })
    }

    #[test]
    fn neighbours_of_one_choice_are_joined_and_nothing_else() {
        let failed = (0, Event::Failed(mach_engine::EngineError::ShuttingDown));
        let logprob = mach_engine::TokenLogprob { id: 1, logprob: -1.0, top: Vec::new(), drafted: false };
        let with = (0, Event::Text { choice: 0, text: "d".into(), logprobs: vec![logprob] });
        let other = (1, text(0, "e").1);
        let given = [
            text(0, "a"),
            text(0, "b"),
            text(1, "c"),
            text(0, "c"),
            with.clone(),
            text(0, "d"),
            other.clone(),
            failed.clone(),
        ];
        let wanted = vec![text(0, "ab"), text(1, "c"), text(0, "c"), with, text(0, "d"), other, failed];
        assert_eq!(coalesce(given), wanted);
    }
}
