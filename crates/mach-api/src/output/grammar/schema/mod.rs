//! Schemas as grammars.
//!
//! A schema is first said in fewer words ([`rewrite`]), then taken apart into alternatives in each of which everything that must hold
//! stands together ([`leaves`]), then written as rules in the notation of the answer ([`write`], [`text`]). Texts and numbers are sets of
//! texts ([`rx`]), so that all digits count and a value that stands in the answer as it is can be held to its pattern.

mod accepts;
mod decimal;
mod fields;
mod format;
pub(super) mod leaves;
mod numbers;
mod pattern;
pub(in crate::output) mod pointer;
mod range;
mod rewrite;
pub(super) mod rx;
mod text;
mod write;

pub(super) use leaves::{Schemas, document};
pub(super) use text::Tagged;
pub use write::LONGEST;
pub(super) use write::{GrammarWriter, Notation};

/// A path below a schema, and what is wrong there.
pub(super) type Unsupported = (String, String);
