//! Measuring: a speed is printed beside the limit that the machine sets to it, both from the same run.
//!
//! [`Ceilings`] says what memory and the integer units can do, [`TokenWork`] what one token needs of them,
//! [`measure`] what the model did; [`Report`] puts the three together. [`specdec`] compares decoding with and without
//! speculation, [`stream`] the drive with what streaming reaches of it, [`trace`] eviction policies on recorded routing.
//! What is asked for comes in plain structures: arguments are read by whoever calls.

mod ceilings;
pub mod grammar;
pub mod kv;
mod machine;
pub mod prefix;
mod report;
pub mod serve;
pub mod specdec;
pub mod stream;
mod timing;
pub mod trace;
mod work;

pub use ceilings::{CeilingOptions, Ceilings};
pub use machine::Machine;
pub use report::{CardCeilings, Report};
pub use timing::{Samples, TimingPlan, measure, token_ids};
pub use work::{TensorFacts, TokenWork};
