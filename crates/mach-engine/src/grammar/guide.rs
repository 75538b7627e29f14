//! Following a grammar.

use std::time::{Duration, Instant};

use llguidance::Matcher;

/// A compiled grammar, at its beginning.
#[derive(Clone)]
pub struct Grammar(Matcher);

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Grammar")
    }
}

impl Grammar {
    pub(super) fn new(matcher: Matcher) -> Self {
        Self(matcher)
    }
}

/// The grammar cannot be followed any further: it became too costly.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Lost(String);

/// One choice's way through a grammar.
pub(crate) struct Guide {
    matcher: Matcher,
    /// Time spent here.
    pub(crate) took: Duration,
    /// Tokens that went through.
    pub(crate) tokens: u64,
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Guide {
    pub(crate) fn new(grammar: &Grammar) -> Self {
        // The caches are this choice's own, so that limits do not depend on others.
        Self { matcher: grammar.0.deep_clone(), took: Duration::ZERO, tokens: 0 }
    }

    fn timed<T>(&mut self, work: impl FnOnce(&mut Matcher) -> Result<T, String>) -> Result<T, Lost> {
        let started = Instant::now();
        let done = work(&mut self.matcher);
        self.took += started.elapsed();
        done.map_err(|reason| Lost(reason.split_whitespace().take(40).collect::<Vec<_>>().join(" ")))
    }

    /// How many of these tokens, from the first on, the grammar allows to follow.
    pub(crate) fn allowed(&mut self, tokens: &[u32]) -> Result<usize, Lost> {
        self.timed(|matcher| matcher.validate_tokens(tokens).map_err(|e| e.to_string()))
    }

    /// Takes out the logits of all tokens that may not follow.
    pub(crate) fn mask(&mut self, logits: &mut [f32]) -> Result<(), Lost> {
        self.timed(|matcher| {
            let mask = matcher.compute_mask_or_eos().map_err(|e| e.to_string())?;
            let mut words = mask.as_slice().iter();
            for logits in logits.chunks_mut(32) {
                match words.next().copied().unwrap_or(0) {
                    0 => logits.fill(f32::NEG_INFINITY),
                    u32::MAX => {}
                    word => {
                        let out = logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0);
                        out.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                    }
                }
            }
            Ok(())
        })
    }

    /// Moves on with the token that was chosen. True if nothing can follow it.
    pub(crate) fn take(&mut self, token: u32) -> Result<bool, Lost> {
        self.tokens += 1;
        self.timed(|matcher| {
            matcher.consume_token(token).map_err(|e| e.to_string())?;
            match matcher.stop_reason() {
                reason if !reason.is_ok() => Err(reason.to_string()),
                _ => Ok(matcher.is_stopped()),
            }
        })
    }
}
