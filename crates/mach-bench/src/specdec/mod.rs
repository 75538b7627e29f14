//! Speculation: what a verify pass costs by its rows, and what a whole answer gains by kind of prompt.

mod answers;
mod report;
mod verify;

pub use answers::{Answers, AnswersPlan, measure_answers};
pub use report::SpecdecReport;
pub use verify::{DraftCost, VerifyCost, VerifyPlan, measure_draft, measure_verify};

/// The middle value; of an even number the upper one. 0 for none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
