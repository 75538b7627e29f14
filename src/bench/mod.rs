//! Measuring: a speed is printed beside the limit that the machine sets to it, both from the same run.
//!
//! [`Ceilings`] says what memory and the integer units can do, [`TokenWork`] what one token needs of them,
//! [`measure`] what the model did; [`Report`] puts the three together.

mod ceilings;
mod machine;
mod report;
mod timing;
mod work;

pub use ceilings::{CeilingOptions, Ceilings};
pub use machine::Machine;
pub use report::Report;
pub use timing::{Plan, Samples, measure, token_ids};
pub use work::{TensorFacts, TokenWork};
