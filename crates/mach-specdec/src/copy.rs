//! Continuations copied from the prompt and the answer so far: summaries, edits and quotations repeat their source.

use std::collections::HashMap;

use crate::{DraftError, Drafting, Proposed, Proposer};

/// Finds the last place where the newest tokens occurred before, by a hash table over runs of [`RUN`](Self::RUN)
/// tokens, and proposes what followed there. How far back the two places agree says how sure that is.
#[derive(Debug, Default)]
pub struct CopyProposer {
    /// Run of tokens to the position after its last occurrence that has a continuation.
    places: HashMap<[u32; Self::RUN], usize>,
    /// Runs that end before this position are in the table.
    indexed: usize,
}

impl CopyProposer {
    /// Tokens that must agree before anything is copied.
    pub const RUN: usize = 3;

    /// Agreeing tokens that are counted; more make it no surer.
    const LONGEST: usize = 16;

    /// For a new sequence.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Proposer for CopyProposer {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn propose(&mut self, drafting: Drafting<'_>, out: &mut Proposed) -> Result<(), DraftError> {
        let tokens = drafting.tokens;
        // The run at the very end has no continuation yet.
        for end in self.indexed.max(Self::RUN)..tokens.len() {
            let run = tokens.get(end - Self::RUN..end).and_then(|run| run.try_into().ok());
            self.places.extend(run.map(|run: [u32; Self::RUN]| (run, end)));
        }
        self.indexed = tokens.len();
        let Some(run) = tokens.last_chunk::<{ Self::RUN }>() else { return Ok(()) };
        let Some(&place) = self.places.get(run) else { return Ok(()) };
        let (head, source) = tokens.split_at(place.min(tokens.len()));
        let agree = head.iter().rev().zip(tokens.iter().rev()).take(Self::LONGEST);
        let agree = agree.take_while(|(a, b)| a == b).count();
        // A copy that reaches the end goes on with itself: text that repeats has a period.
        out.tokens.extend(source.iter().cycle().take(drafting.most));
        out.margins.extend((0..out.tokens.len()).map(|i| (agree + i) as f32));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoModel;

    impl mach_models::Model for NoModel {
        fn config(&self) -> &mach_checkpoint::ModelConfig {
            unreachable!("copies need no model")
        }
        fn new_state(&self) -> mach_models::SequenceState {
            mach_models::SequenceState::without_layers()
        }
        fn state_bytes(&self, _tokens: usize) -> usize {
            0
        }
        fn forward(
            &mut self,
            _segments: &mut [mach_models::Segment<'_>],
            _observer: &mut dyn mach_models::Observer,
        ) -> Result<mach_models::Logits, mach_models::ModelError> {
            unreachable!("copies need no model")
        }
        fn card(&self) -> mach_models::ModelCard {
            mach_models::ModelCard::without_device("none", 0)
        }
        fn numerics(&self) -> String {
            "none".to_owned()
        }
    }

    fn copies(proposer: &mut CopyProposer, tokens: &[u32], most: usize) -> Proposed {
        let mut out = Proposed::default();
        let drafting = Drafting { tokens, most, model: &mut NoModel, picker: &mut crate::Argmax };
        proposer.propose(drafting, &mut out).unwrap();
        out
    }

    #[test]
    fn the_last_place_is_continued() {
        let mut proposer = CopyProposer::new();
        assert_eq!(copies(&mut proposer, &[1, 2, 3, 4, 5, 6, 7, 8], 4), Proposed::default());
        let again = copies(&mut proposer, &[1, 2, 3, 4, 5, 6, 7, 8, 3, 4, 5], 2);
        assert_eq!((again.tokens, again.margins), (vec![6, 7], vec![3.0, 4.0]));
        let longer = copies(&mut proposer, &[1, 2, 3, 4, 5, 6, 7, 8, 3, 4, 5, 6], 1);
        assert_eq!((longer.tokens, longer.margins), (vec![7], vec![4.0]));
    }

    #[test]
    fn repetition_goes_on() {
        let looped = copies(&mut CopyProposer::new(), &[9, 1, 2, 1, 2, 1, 2], 5);
        assert_eq!(looped.tokens, [1, 2, 1, 2, 1]);
        assert_eq!(copies(&mut CopyProposer::new(), &[1, 2], 5), Proposed::default());
    }
}
