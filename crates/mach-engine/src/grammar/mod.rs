//! Answers that follow a grammar, by [`llguidance`](https://github.com/guidance-ai/llguidance).
//!
//! A grammar is compiled off the engine thread ([`GrammarCompiler`]), within limits of time, memory and size. Each choice follows a
//! copy of its own: tokens that the grammar does not allow are taken out before one is chosen, and the grammar moves on
//! with the token that was. Proposed tokens are looked at row by row like any others, so that nothing is ever taken back.

mod compiler;
mod guide;
mod vocabulary;

pub use compiler::{GrammarCompiler, GrammarError, GrammarText, OwnText};
pub use guide::Grammar;
pub(crate) use guide::{Guide, Lost};

/// The back ends of this build.
pub fn backends() -> &'static [&'static str] {
    &["llguidance"]
}
